"""Reads queries/ and docids/; writes documents that are not relevant to each query, per shard with Ray Data (negatives/), for
losses that compare documents. `zerogr mine CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.command import run_module
from jobs.shards import run_shards
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import NEGATIVES
from zerogr.llm.generation import read_counts
from zerogr.mining.stage import Miner, negatives_inputs
from zerogr.queries.negatives import FOLDER


def run(config: Config) -> StageRecord:
    """Runs the negatives stage. Raises UserError if no loss would read what it finds."""
    if not config.training.loss.needs_negatives:
        raise UserError(
            f"training.loss {config.training.loss.name} compares no documents; choose another, such as margin or ranknet"
        )
    return run_stage(NEGATIVES, config, negatives_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    needs_engine = "decoded" in config.negatives.sources or config.negatives.teacher is not None
    run_shards("negatives", index, FOLDER, partial(make_worker, config), config.compute, needs_engine=needs_engine)
    counts = read_counts(index, FOLDER)
    queries = {"queries": counts["rows"], "negatives": counts["negatives"]}
    return queries | ({"judged": Miner(config, index).judged()} if config.training.judged else {})


def make_worker(config: Config) -> Miner:
    """Returns what mines a shard; called in the actor."""
    return Miner(config, Index(config.index))


command = stage_command(NEGATIVES, run)

if __name__ == "__main__":
    run_module("mine", command)
