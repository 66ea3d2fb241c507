"""Reads corpus/; writes pseudo-queries and spans per shard with Ray Data (queries/). `zerogr queries CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.command import run_module
from jobs.shards import run_shards
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import QUERIES
from zerogr.llm.generation import load_generator
from zerogr.queries.stage import QueryWriter, queries_counts, queries_inputs


def run(config: Config) -> StageRecord:
    """Runs the pseudo-query stage."""
    return run_stage(QUERIES, config, queries_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    needs_engine = config.queries.num_queries_per_document > 0
    run_shards("queries", index, "queries", partial(make_worker, config), config.compute, needs_engine=needs_engine)
    return queries_counts(index)


def make_worker(config: Config) -> QueryWriter:
    """Returns what writes the queries of a shard; called in the actor."""
    engine = None
    if config.queries.num_queries_per_document:
        engine = load_generator(
            config.queries, batch_size=config.compute.engine_batch_size, options=config.compute.engine_options
        )
    return QueryWriter(config, Index(config.index), engine)


command = stage_command(QUERIES, run)

if __name__ == "__main__":
    run_module("queries", command)
