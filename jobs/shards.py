"""Shards over Ray Data: every pending shard goes to an actor of an autoscaling pool, which publishes it and returns its counts.

The grain of work is the grain of resuming. The driver holds one small row per shard in flight. A shard whose actor or node
was lost is done again elsewhere; since it is published whole and its seeds do not depend on who draws, that is harmless.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jobs.cluster import ray_session, share_of_cpus
from zerogr import storage
from zerogr.config import ComputeConfig
from zerogr.errors import UserError
from zerogr.generation import ShardReport
from zerogr.index import Index
from zerogr.progress import Progress

logger = logging.getLogger(__name__)

ShardWorker = Callable[[int], ShardReport]


class ShardActor:
    """Holds the stage's worker (and its loaded model) for as many shards as it is given."""

    def __init__(self, make_worker: Callable[[], ShardWorker], num_threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        import torch

        torch.set_num_threads(num_threads)
        self._mistake = ""
        try:
            self._worker = make_worker()
        except UserError as error:
            # Raised here, it would be taken for a fault of the machine and tried again.
            self._mistake = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the report of one shard as a row; `mistake` holds a sentence for the user, or nothing."""
        report, mistake = ShardReport(int(row["shard"]), 0, 0), self._mistake
        try:
            report = report if mistake else self._worker(report.shard)
        except UserError as error:
            mistake = str(error)
        return {**asdict(report), "mistake": mistake}


def run_shards(
    stage: str,
    index: Index,
    folder: str,
    make_worker: Callable[[], ShardWorker],
    compute: ComputeConfig,
    *,
    needs_engine: bool,
) -> None:
    """Publishes every shard of `folder` that is missing.

    Args:
        stage: Shown in the progress.
        index: Where the shards are.
        folder: Its subfolder to complete.
        make_worker: Called once in every actor; returns what turns a shard number into a published shard.
        compute: Pool size, threads, GPUs, retries.
        needs_engine: Whether the worker holds a language model; without one it gets no GPU.

    Raises:
        UserError: The worker raised one; it is not retried.
    """
    pending = index.pending_shards(folder)
    if not pending:
        return
    total = index.require("corpus").counts["rows"]
    num_pending_rows = sum(storage.parquet_num_rows(index.shard("corpus", shard)) for shard in pending)
    if num_pending_rows < total:
        logger.info("%s: %d of %d documents were done before", stage, total - num_pending_rows, total)
    with ray_session():
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False  # ours counts documents, Ray's blocks
        context.print_on_execution_start = False
        context.actor_task_retry_on_errors = [OSError, ConnectionError]
        context.actor_init_max_retries = compute.max_retries
        num_workers = min(compute.num_engine_workers, len(pending))
        num_threads = share_of_cpus(compute.num_cpus_per_engine, num_workers)
        reports = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending)).map(
            ShardActor,
            fn_constructor_args=(make_worker, num_threads),
            compute=ActorPoolStrategy(min_size=1, max_size=num_workers),
            num_cpus=num_threads if os.environ.get("RAY_ADDRESS") else 1,
            num_gpus=compute.num_gpus_per_engine if needs_engine else 0,
        )
        progress = Progress(stage, total=total, unit="documents", done=total - num_pending_rows)
        try:
            for report in reports.iter_rows():
                if report["mistake"]:
                    raise UserError(report["mistake"])
                progress.advance(report["rows"] + report["rejected"])
        finally:
            progress.close()
