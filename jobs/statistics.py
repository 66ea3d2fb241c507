"""Reads queries/ and retriever/; writes statistics/, which updates that edit the retriever read. `zerogr statistics CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.command import run_module
from jobs.shards import run_pending
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.editing.counting import KeyCounter, build_statistics, groups_of, statistics_inputs
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import STATISTICS


def run(config: Config) -> StageRecord:
    """Runs the statistics stage."""
    return run_stage(STATISTICS, config, statistics_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    pending = groups_of(config, index)
    total = sum(pending.values())
    run_pending(
        "statistics", index, pending, total, partial(make_worker, config), config.compute, needs_engine=True, here=True
    )
    return build_statistics(config, index)


def make_worker(config: Config) -> KeyCounter:
    """Returns what counts the keys of a group of shards; called in the actor."""
    return KeyCounter(config, Index(config.index))


command = stage_command(STATISTICS, run)

if __name__ == "__main__":
    run_module("statistics", command)
