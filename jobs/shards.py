"""Shards over Ray Data: every pending shard goes to an actor of an autoscaling pool, which publishes it.

The grain of work is the grain of resuming. The driver holds one small row per shard in flight. A shard whose actor or node
was lost is done again elsewhere; since it is published whole and its seeds do not depend on who draws, that is harmless.
A shard that ends every process it is given to stops the stage after `compute.max_retries` further tries.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NoReturn

from jobs.attempts import start_attempts
from jobs.cluster import cause_of, ray_session, share_of_cpus
from jobs.hosts import Hosts
from zerogr.config.tree import ComputeConfig
from zerogr.errors import Fault, UserError
from zerogr.index.driver import Ticket, ticket_of, working_under
from zerogr.index.index import Index
from zerogr.index.ledger import Effort, Ledger
from zerogr.index.versions import is_update
from zerogr.llm.generation import ShardReport
from zerogr.machine import num_cores
from zerogr.progress import Progress
from zerogr.store import storage

logger = logging.getLogger(__name__)

ShardWorker = Callable[[int], ShardReport | None]
"""Publishes a shard; None = there was nothing left to do."""
OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""Of Python's memory management. Its own 700 suit programs that hold few objects."""
BUSY = 0.875
"""Share of the actors' hands that are full from which Ray Data adds actors: half its own, which has as many shards wait."""


class ShardActor:
    """Holds the stage's worker (and its loaded model) for as many shards as it is given, until one of them ends in an error.

    Several threads may call it: while the last samples of one shard are drawn, the next one's are. An engine that has raised is
    not asked again: what it holds, a CUDA context for one, may be beyond repair. What is in hand is brought to its end, good or
    bad; then the process ends, and Ray starts another and gives it the shards that are left.
    """

    def __init__(
        self, make_worker: Callable[[], ShardWorker], num_threads: int, attempts: Any, max_retries: int
    ) -> None:
        """`attempts` is the handle of an `Attempts` actor."""
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self._make_worker, self._num_threads = make_worker, num_threads
        self._worker: ShardWorker | None = None
        self._loading = threading.Lock()
        self._attempts, self._max_retries = attempts, max_retries
        self._hands = Hands()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns what became of the shard, an `Outcome` as a dict."""
        import ray

        shard = int(row["shard"])
        outcome = Outcome(shard)
        self._hands.take()
        tries, error = ray.get(self._attempts.begin.remote(shard))
        try:
            if tries > self._max_retries:
                raise Fault(
                    f"it failed {tries} times, the last time with {error}; what is published is kept, "
                    "and the same command goes on from there"
                )
            outcome.add(self._loaded(shard)(shard))
        except UserError as mistake:
            outcome.mistake = str(mistake)
        except Fault as fault:
            outcome.fault = str(fault)
        except Exception as broken:
            ray.get(self._attempts.fail.remote(shard, _in_short(shard, broken)))
            self._hands.wait_for_others()
            end_process()
        else:
            ray.get(self._attempts.succeed.remote(shard))
        outcome.engine_seconds = self._hands.release()
        return asdict(outcome)

    def _loaded(self, shard: int) -> ShardWorker:
        # Not in the constructor: a model that cannot be loaded is a failure like any other, and is counted.
        import ray

        with self._loading:
            if self._worker is None:
                try:
                    self._worker = self._make_worker()
                except (UserError, Fault):
                    raise
                except Exception as broken:
                    ray.get(self._attempts.fail_to_load.remote(_in_short(shard, broken)))
                    end_process()
                ray.get(self._attempts.loaded.remote())
                # What is loaded stays, and a shard's own rows are many: walking through them took half of its time.
                gc.freeze()
                gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
                if torch := sys.modules.get("torch"):  # a worker without a language model need not wait for it
                    torch.set_num_threads(self._num_threads)
            return self._worker


def _in_short(shard: int, error: Exception) -> str:
    """Logs an error at full length, and returns it at a length to be told."""
    logger.error("shard %d failed; it is tried again in a new process", shard, exc_info=error)
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


@dataclass(slots=True)
class Outcome:
    """What became of a shard: its counts, or a sentence if it was not made."""

    shard: int
    rows: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_seconds: float = 0.0
    host: str = ""
    """Who has published it; "" = nobody in this run."""
    mistake: str = ""
    """The user's."""
    fault: str = ""
    """The machines'."""

    def add(self, report: ShardReport | None) -> None:
        """Takes over the counts of the worker's report, and notes where that was."""
        if report is not None:
            self.host = socket.gethostname()
            self.rows, self.rejected = report.rows, report.rejected
            self.prompt_tokens, self.output_tokens = report.prompt_tokens, report.output_tokens


class Hands:
    """The shards that a process has in hand, and the time it has had any: with several at once it counts once."""

    PATIENCE_S = 60.0
    """Longest wait for the others, when one of them has failed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_held, self._counted_to = 0, 0.0
        self._is_ending = False

    def take(self) -> None:
        """One more shard; in a process that is ending this never returns."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_ending)
            if not self._num_held:
                self._counted_to = time.monotonic()
            self._num_held += 1

    def release(self) -> float:
        """One shard less; returns the busy seconds that were not returned before."""
        with self._changed:
            self._num_held -= 1
            self._changed.notify_all()
            before, self._counted_to = self._counted_to, time.monotonic()
            return self._counted_to - before

    def wait_for_others(self) -> None:
        """The process is to end: releases the caller's shard and waits until the others are finished or have failed, too."""
        with self._changed:
            self._is_ending = True
            self._num_held -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._num_held, timeout=self.PATIENCE_S)


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
    num_rows = index.rows_of_shards()
    pending = {shard: num_rows[shard] for shard in index.pending_shards(folder)}
    make = partial(_make_sparing_worker, index, folder, make_worker)
    total = sum(num_rows.values())
    run_pending(stage, index, pending, total, make, compute, needs_engine=needs_engine, here=is_update(index))


def _make_sparing_worker(index: Index, folder: str, make_worker: Callable[[], ShardWorker]) -> ShardWorker:
    """Returns the stage's worker, which leaves a published shard alone: its maker was lost before it could say so."""
    worker = make_worker()

    def make(shard: int) -> ShardReport | None:
        return None if storage.exists(index.shard(folder, shard)) else worker(shard)

    return make


def _make_worker_under(ticket: Ticket | None, make_worker: Callable[[], ShardWorker]) -> ShardWorker:
    """Returns the stage's worker, which publishes nothing once its driver has lost the index to another."""
    worker = make_worker()

    def make(shard: int) -> ShardReport | None:
        with working_under(ticket):
            return worker(shard)

    return make


def run_pending(
    stage: str,
    index: Index,
    pending: dict[int, int],
    total: int,
    make_worker: Callable[[], ShardWorker],
    compute: ComputeConfig,
    *,
    needs_engine: bool,
    here: bool = False,
    unit: str = "documents",
    notes_hosts: bool = True,
) -> None:
    """Makes every pending shard.

    Args:
        stage: Shown in the progress.
        index: Keeps what the run has cost (`zerogr.index.ledger`).
        pending, total: {shard: its documents, or what `unit` says}, and the sum over all shards, the finished ones too.
        make_worker: Called once in every actor; returns what turns a shard number into a published shard.
        compute: Pool size, threads, GPUs, retries.
        needs_engine: Whether the worker holds a language model; without one it gets no GPU.
        here: Whether a single shard is made in this process, unless a cluster is named.
        unit: What is counted in the progress.
        notes_hosts: Whether `zerogr status` says where which shard was made.

    Raises:
        UserError: The worker raised one; it is not retried.
        Fault: A shard failed more than `compute.max_retries` times, or where trying again does not help.
    """
    if not pending:
        return
    if here and len(pending) == 1 and not os.environ.get("RAY_ADDRESS"):
        return _make_here(stage, index, next(iter(pending)), make_worker)
    num_pending_rows = sum(pending.values())
    if num_pending_rows < total:
        logger.info("%s: %d of %d %s were done before", stage, total - num_pending_rows, total, unit)
    with ray_session():
        import ray

        num_gpus = compute.num_gpus_per_engine if needs_engine else 0
        outcomes = _outcomes(list(pending), make_worker, compute, num_gpus, ticket_of(index))
        progress = Progress(stage, total=total, unit=unit, done=total - num_pending_rows)
        ledger, hosts = Ledger(index, stage), Hosts(index, stage)
        try:
            for outcome in _made(stage, outcomes):
                ledger.add(_effort_of(outcome, num_gpus))
                hosts.add(outcome.host if notes_hosts else "", outcome.shard)
                num_pending_rows -= pending[outcome.shard]
                progress.advance(pending[outcome.shard], _note(ledger.effort, num_pending_rows))
        except ray.exceptions.RayError as error:  # of Ray itself; what a shard can meet is an outcome
            logger.error("stage '%s' failed", stage, exc_info=error)
            raise Fault(
                f"stage '{stage}' gave up: Ray ended with {cause_of(error)}; what is published is kept, and the same command "
                "goes on from there"
            ) from error
        finally:
            progress.close()
        ledger.write()
        hosts.write()


def _made(stage: str, outcomes: Any) -> Iterator[Outcome]:
    """Yields what became of every shard; raises what a shard ended with, as `run_pending`."""
    for row in outcomes.iter_rows():
        outcome = Outcome(**row)
        if outcome.mistake:
            raise UserError(outcome.mistake)
        if outcome.fault:
            raise Fault(f"stage '{stage}' gave up at shard {outcome.shard}: {outcome.fault}")
        yield outcome


def _make_here(stage: str, index: Index, shard: int, make_worker: Callable[[], ShardWorker]) -> None:
    """Makes one shard of a small update in this process: starting Ray would take longer than the work."""
    ledger, outcome, start = Ledger(index, stage), Outcome(shard), time.monotonic()
    outcome.add(make_worker()(shard))
    outcome.engine_seconds = time.monotonic() - start
    ledger.add(_effort_of(outcome, 0))
    ledger.write()


def _outcomes(
    pending: list[int],
    make_worker: Callable[[], ShardWorker],
    compute: ComputeConfig,
    num_gpus: float,
    ticket: Ticket | None,
) -> Any:
    """Returns the dataset of what becomes of the shards; they are made while it is read."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts documents, Ray's blocks
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = BUSY
    num_workers = min(compute.num_engine_workers or most_workers(num_gpus), len(pending))
    in_flight = min(compute.shards_in_flight, -(-len(pending) // num_workers))
    num_threads = share_of_cpus(compute.num_cpus_per_engine, num_workers)
    return ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending)).map(
        ShardActor,
        fn_constructor_args=(
            partial(_make_worker_under, ticket, make_worker),
            num_threads,
            start_attempts(),
            compute.max_retries,
        ),
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=num_workers,
            max_concurrent_calls_per_actor=in_flight,
            max_tasks_in_flight_per_actor=in_flight,  # Ray's default, twice as many, gives the first actor all of a few
            enable_true_multi_threading=True,
        ),
        num_cpus=num_threads if os.environ.get("RAY_ADDRESS") else 1,
        num_gpus=num_gpus,
    )


def most_workers(num_gpus: float) -> int:
    """Returns how many engine actors there should be where nobody says so.

    Engines of one thread each share nothing; the threads of one engine wait for each other at every layer (docs/log.md).
    """
    return 1 if num_gpus or os.environ.get("RAY_ADDRESS") else min(num_cores(), 4)


def _effort_of(outcome: Outcome, num_gpus: float) -> Effort:
    return Effort(
        rows=outcome.rows,
        rejected=outcome.rejected,
        prompt_tokens=outcome.prompt_tokens,
        output_tokens=outcome.output_tokens,
        engine_seconds=outcome.engine_seconds,
        gpu_seconds=outcome.engine_seconds * num_gpus,
    )


def _note(effort: Effort, remaining_rows: int) -> str:
    """Returns what the progress says besides documents and time: tokens, and GPU-hours where there are GPUs."""
    if not effort.output_tokens or not effort.engine_seconds:
        return ""
    note = f"{effort.output_tokens / effort.engine_seconds:,.0f} tokens/s per engine"
    if effort.gpu_seconds:
        note += f", {effort.remaining(remaining_rows)['remaining_gpu_hours']:,.1f} GPU-hours left"
    return note
