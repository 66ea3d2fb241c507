"""Shards over Ray Data: every pending shard goes to an actor of an autoscaling pool, which publishes it.

The grain of work is the grain of resuming. The driver holds one small row per shard in flight. A shard whose actor or node
was lost is done again elsewhere; since it is published whole and its seeds do not depend on who draws, that is harmless.
A shard that ends every process it is given to stops the stage after `compute.max_retries` further tries.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from jobs.attempts import start_attempts
from jobs.cluster import ray_session, share_of_cpus
from zerogr import storage
from zerogr.config import ComputeConfig
from zerogr.errors import Fault, UserError
from zerogr.generation import ShardReport
from zerogr.index import Index
from zerogr.progress import Progress

logger = logging.getLogger(__name__)

ShardWorker = Callable[[int], ShardReport | None]
"""Publishes a shard; None = there was nothing left to do."""


class ShardActor:
    """Holds the stage's worker (and its loaded model) for as many shards as it is given, until one of them ends in an error.

    An engine that has raised is not asked again: what it holds, a CUDA context for one, may be beyond repair. The process
    ends, Ray starts another and gives it the same shard.
    """

    def __init__(
        self, make_worker: Callable[[], ShardWorker], num_threads: int, attempts: Any, max_retries: int
    ) -> None:
        """`attempts` is the handle of an `Attempts` actor."""
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self._make_worker, self._num_threads = make_worker, num_threads
        self._worker: ShardWorker | None = None
        self._attempts, self._max_retries = attempts, max_retries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the shard made, with a sentence if it was not: the user's `mistake`, or the machines' `fault`."""
        import ray

        shard = int(row["shard"])
        outcome = {"shard": shard, "mistake": "", "fault": ""}
        tries, error = ray.get(self._attempts.begin.remote(shard))
        if tries > self._max_retries:
            fault = f"it failed {tries} times, the last time with {error}; what is published is kept"
            return {**outcome, "fault": f"{fault}, and the same command goes on from there"}
        try:
            # Not in the constructor: a model that cannot be loaded is a failed try like any other, and is counted.
            self._worker = self._worker or self._load()
            self._worker(shard)
        except UserError as mistake:
            return {**outcome, "mistake": str(mistake)}
        except Fault as fault:
            return {**outcome, "fault": str(fault)}
        except Exception as broken:
            logger.exception("shard %d failed; it is tried again in a new process", shard)
            error = textwrap.shorten(f"{type(broken).__name__}: {broken}", 300, placeholder=" ...")
            ray.get(self._attempts.fail.remote(shard, error))
            end_process()
        return outcome

    def _load(self) -> ShardWorker:
        worker = self._make_worker()
        if torch := sys.modules.get("torch"):  # a worker without a language model need not wait for it
            torch.set_num_threads(self._num_threads)
        return worker


def end_process() -> NoReturn:
    """Ends this process at once, and what it had started: vLLM's processes would live on and hold the GPU's memory."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)  # Ray takes an exit by exception for a wish to stay away


def run_shards(
    stage: str,
    index: Index,
    folder: str,
    make_worker: Callable[[], ShardWorker],
    compute: ComputeConfig,
    *,
    needs_engine: bool,
) -> None:
    """Publishes every shard of the corpus that `folder` does not hold yet.

    Args:
        stage: Shown in the progress.
        index: Where the shards are.
        folder: Its subfolder to complete.
        make_worker: See `run_pending`, as for what follows.

    Raises:
        UserError: The worker raised one; it is not retried.
        Fault: A shard failed more than `compute.max_retries` times, or where trying again does not help.
    """
    pending = {shard: storage.parquet_num_rows(index.shard("corpus", shard)) for shard in index.pending_shards(folder)}
    total = index.require("corpus").counts["rows"]
    make = partial(_make_sparing_worker, index, folder, make_worker)
    run_pending(stage, pending, total, make, compute, needs_engine=needs_engine)


def _make_sparing_worker(index: Index, folder: str, make_worker: Callable[[], ShardWorker]) -> ShardWorker:
    """Returns the stage's worker, which leaves a published shard alone: its maker was lost before it could say so."""
    worker = make_worker()

    def make(shard: int) -> ShardReport | None:
        return None if storage.exists(index.shard(folder, shard)) else worker(shard)

    return make


def run_pending(
    stage: str,
    pending: dict[int, int],
    total: int,
    make_worker: Callable[[], ShardWorker],
    compute: ComputeConfig,
    *,
    needs_engine: bool,
) -> None:
    """Makes every pending shard.

    Args:
        stage: Shown in the progress.
        pending: {shard: its documents}.
        total: Documents of all shards, the finished ones too.
        make_worker: Called once in every actor; returns what turns a shard number into a published shard.
        compute: Pool size, threads, GPUs, retries.
        needs_engine: Whether the worker holds a language model; without one it gets no GPU.

    Raises:
        UserError: The worker raised one; it is not retried.
        Fault: A shard failed more than `compute.max_retries` times, or where trying again does not help.
    """
    if not pending:
        return
    num_pending_rows = sum(pending.values())
    if num_pending_rows < total:
        logger.info("%s: %d of %d documents were done before", stage, total - num_pending_rows, total)
    with ray_session():
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False  # ours counts documents, Ray's blocks
        context.print_on_execution_start = False
        num_workers = min(compute.num_engine_workers, len(pending))
        num_threads = share_of_cpus(compute.num_cpus_per_engine, num_workers)
        outcomes = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending)).map(
            ShardActor,
            fn_constructor_args=(make_worker, num_threads, start_attempts(), compute.max_retries),
            compute=ActorPoolStrategy(min_size=1, max_size=num_workers),
            num_cpus=num_threads if os.environ.get("RAY_ADDRESS") else 1,
            num_gpus=compute.num_gpus_per_engine if needs_engine else 0,
        )
        progress = Progress(stage, total=total, unit="documents", done=total - num_pending_rows)
        try:
            for outcome in outcomes.iter_rows():
                if outcome["mistake"]:
                    raise UserError(outcome["mistake"])
                if outcome["fault"]:
                    raise Fault(f"stage '{stage}' gave up at shard {outcome['shard']}: {outcome['fault']}")
                progress.advance(pending[outcome["shard"]])
        finally:
            progress.close()
