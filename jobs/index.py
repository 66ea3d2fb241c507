"""Runs every stage in order on one Ray session, each resumable. `zerogr index CONFIG`"""

from __future__ import annotations

import argparse
import contextlib
import importlib

from jobs.cluster import ray_session
from jobs.command import run_module
from jobs.evaluate import check
from jobs.stages import rebuild
from jobs.tables import print_comparison, print_stages
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import EVALUATION, INDEX


def run(config: Config) -> dict[str, StageRecord]:
    """Runs all stages; returns their records in order. Ray is started only when a stage that needs it has work left."""
    stages = [stage for stage in INDEX.stages if stage.is_wanted(config)]
    if EVALUATION in stages:
        check(config)  # what is wrong there must not be found out after days of training
    index = Index(config.index)
    needs_ray = any(stage.uses_ray and index.record(stage.name) is None for stage in stages)
    records: dict[str, StageRecord] = {}
    with contextlib.ExitStack() as session:
        for stage in stages:
            if stage.uses_ray and needs_ray:
                session.enter_context(ray_session())
                needs_ray = False
            if stage is EVALUATION:
                session.close()  # the decoder wants the machine for itself
            records[stage.name] = importlib.import_module(f"jobs.{stage.command}").run(config)
    return records


def command(options: argparse.Namespace) -> None:
    """Runs the stages and prints what they did."""
    rebuild(options)
    records = run(options.config)
    print_stages(options.config.index, records)
    if EVALUATION.name in records:
        print()
        rows = records[EVALUATION.name].counts["rows_compared"]
        print_comparison(rows, options.config.evaluation.metrics)


if __name__ == "__main__":
    run_module("index", command)
