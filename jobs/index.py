"""Runs every stage in order on one Ray session, each resumable. `zerogr index CONFIG`"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import time
from collections.abc import Sequence

from jobs.cluster import ray_session
from jobs.command import run_module
from jobs.driving import driving
from jobs.evaluate import check
from jobs.stages import rebuild
from jobs.tables import print_comparison, print_stages
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import EVALUATION, INDEX
from zerogr.index.versions import Version
from zerogr.progress import duration
from zerogr.search.check import queries_of, read_check, write_check

logger = logging.getLogger(__name__)


def run(config: Config, *, forget: Sequence[str] = (), wait: bool = False) -> dict[str, StageRecord]:
    """Runs all stages; returns their records in order. Ray is started only when a stage that needs it has work left.

    Args:
        config: Of the index.
        forget: Stages that are forgotten first, with all that was made from them.
        wait: Whether to wait while another driver is at work there, which is refused otherwise.
    """
    stages = [stage for stage in INDEX.stages if stage.is_wanted(config)]
    if EVALUATION in stages:
        check(config)  # what is wrong there must not be found out after days of training
    index = Index(config.index)
    records: dict[str, StageRecord] = {}
    with driving(config.index, wait=wait), contextlib.ExitStack() as session:
        rebuild(config, forget)
        needs_ray = any(stage.uses_ray and index.record(stage.name) is None for stage in stages)
        for stage in stages:
            if stage.uses_ray and needs_ray:
                session.enter_context(ray_session())
                needs_ray = False
            if stage is EVALUATION:
                session.close()  # the decoder wants the machine for itself
            records[stage.name] = importlib.import_module(f"jobs.{stage.command}").run(config)
        if config.serving.stored_query:
            session.close()
            _write_check(index)
    return records


def _write_check(index: Index) -> None:
    """Writes what a service compares before it answers with the version that the index began with, if that is missing."""
    manifest = index.manifest()
    if Version.of(manifest).number or read_check(index, manifest):
        return
    from zerogr.retriever import Retriever

    start = time.monotonic()
    check = write_check(index, Retriever.load(index.uri), queries_of(index))
    logger.info("check: %d files and a query in %s", len(check.files), duration(time.monotonic() - start))


def command(options: argparse.Namespace) -> None:
    """Runs the stages and prints what they did."""
    records = run(options.config, forget=options.rebuild, wait=options.wait)
    print_stages(options.config.index, records)
    if EVALUATION.name in records:
        print()
        rows = records[EVALUATION.name].counts["rows_compared"]
        print_comparison(rows, options.config.evaluation.metrics)


if __name__ == "__main__":
    run_module("index", command)
