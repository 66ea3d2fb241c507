"""Reads corpus/ and docids/; writes each document's terms per shard with Ray Data (work/lexical/), then lexical/.
`zerogr lexical CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.apart import build_apart
from jobs.command import run_module
from jobs.shards import run_shards
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import LEXICAL
from zerogr.ranking.stage import FOLDER, TermCounter, build_lexical, lexical_inputs


def run(config: Config) -> StageRecord:
    """Runs the lexical stage."""
    return run_stage(LEXICAL, config, lexical_inputs(Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    run_shards("lexical", index, FOLDER, partial(make_worker, config), config.compute, needs_engine=False)
    return build_apart("lexical", gather, config, index)


def gather(_: Config, index: Index) -> dict[str, Any]:
    """Makes lexical/ of the terms of all shards; returns the stage's counts."""
    return build_lexical(index)


def make_worker(config: Config) -> TermCounter:
    """Returns what counts the terms of a shard; called in the actor."""
    return TermCounter(Index(config.index))


command = stage_command(LEXICAL, run)

if __name__ == "__main__":
    run_module("lexical", command)
