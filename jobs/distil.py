"""Reads the corpora of all tasks; writes what a teacher makes of them with Ray Data: docids/ and queries/ below distil.out.
`zerogr distil CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.shards import run_pending
from jobs.stages import run_stage
from zerogr.config import Config
from zerogr.distil import Distiller, build_corpora, distil_counts, distil_inputs, pending_shards, tasks_of
from zerogr.generation import load_generator
from zerogr.index import DISTIL, Index, StageRecord


def run(config: Config) -> StageRecord:
    """Makes the teacher data."""
    return run_stage(DISTIL, config, distil_inputs(config), _build, uri=config.distil.out)


def _build(config: Config, index: Index) -> dict[str, Any]:
    build_corpora(config)
    total = sum(task.corpus.require("corpus").counts["rows"] for task in tasks_of(config))
    make = partial(make_worker, config)
    run_pending(DISTIL, index, pending_shards(config), total, make, config.compute, needs_engine=True)
    return distil_counts(config, index)


def make_worker(config: Config) -> Distiller:
    """Returns what makes the teacher data of a shard; called in the actor."""
    compute = config.compute
    engine = load_generator(config.distil, batch_size=compute.engine_batch_size, options=compute.engine_options)
    return Distiller(config, engine)


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("distil")
