"""Reads corpus/; writes candidates per shard with Ray Data (work/docids/), resolves their collisions, writes docids/.
`zerogr docids CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.apart import build_apart
from jobs.command import run_module
from jobs.shards import run_shards
from jobs.stages import run_stage, stage_command
from zerogr.config.base import EngineConfig
from zerogr.config.tree import Config
from zerogr.docids.scheme import Taken
from zerogr.docids.stage import FOLDER, DocidProposer, assign_docids, docids_inputs
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import DOCIDS
from zerogr.index.versions import is_update
from zerogr.llm.generation import load_generator


def run(config: Config) -> StageRecord:
    """Runs the docid stage."""
    return run_stage(DOCIDS, config, docids_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    run_shards(
        "docids", index, FOLDER, partial(make_worker, config), config.compute, needs_engine=config.docids.needs_engine
    )
    return build_apart("docids", resolve, config, index)


def resolve(config: Config, index: Index) -> dict[str, Any]:
    """Resolves the collisions of all proposals and writes docids/; returns the stage's counts."""
    return assign_docids(config, index, taken=taken_in(config, index))


def make_worker(config: Config) -> DocidProposer:
    """Returns what makes the candidates of a shard; called in the actor."""
    engine = None
    if isinstance(config.docids, EngineConfig):
        engine = load_generator(
            config.docids, batch_size=config.compute.engine_batch_size, options=config.compute.engine_options
        )
    index = Index(config.index)
    return DocidProposer(config, index, engine, taken_in(config, index))


def taken_in(config: Config, index: Index) -> Taken | None:
    """Returns the docids that the documents of an update may not have; None where an index begins, or none is written."""
    if not is_update(index) or config.docids.has_shared:
        return None
    from zerogr.editing.existing import Existing

    return Existing(index)


command = stage_command(DOCIDS, run)

if __name__ == "__main__":
    run_module("docids", command)
