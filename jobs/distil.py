"""Reads the corpora of all tasks; writes what a teacher makes of them with Ray Data: docids/ and queries/ below distil.out.
`zerogr distil CONFIG`"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from jobs.command import run_module
from jobs.driving import driving
from jobs.shards import run_pending
from jobs.stages import rebuild, run_stage
from jobs.tables import print_stages
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import DISTIL
from zerogr.llm.generation import load_generator
from zerogr.teaching.distil import Distiller, build_corpora, distil_counts, distil_inputs, pending_shards, tasks_of


def run(config: Config) -> StageRecord:
    """Makes the teacher data."""
    return run_stage(DISTIL, config, distil_inputs(config), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    build_corpora(config)
    total = sum(task.corpus.require("corpus").counts["rows"] for task in tasks_of(config))
    make = partial(make_worker, config)
    run_pending(DISTIL.name, index, pending_shards(config), total, make, config.compute, needs_engine=True)
    return distil_counts(config, index)


def make_worker(config: Config) -> Distiller:
    """Returns what makes the teacher data of a shard; called in the actor."""
    compute = config.compute
    engine = load_generator(config.distil, batch_size=compute.engine_batch_size, options=compute.engine_options)
    return Distiller(config, engine)


def command(options: argparse.Namespace) -> None:
    """Makes the teacher data and prints what it holds."""
    with driving(options.config.distil.out, wait=options.wait):
        rebuild(options.config, options.rebuild)
        record = run(options.config)
    counts = record.counts
    print_stages(options.config.distil.out, {DISTIL.name: record})
    width = max(map(len, counts["tasks"]))
    for name, pairs in counts["tasks"].items():
        print(
            f"    {name:<{width}}  {pairs['documents']:>9,} documents  {pairs['docids']:>9,} docids"
            f"  {pairs['queries']:>9,} queries"
        )
    print(f"    valid: {counts['valid_docids']:.1%} of the docids, {counts['valid_queries']:.1%} of the queries")


if __name__ == "__main__":
    run_module("distil", command)
