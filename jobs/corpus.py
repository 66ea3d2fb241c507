"""Reads the source; writes corpus/ and the document frequencies. A large source is cut, and read by Ray Data in two passes.
`zerogr corpus CONFIG`"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from jobs.cluster import ray_session
from jobs.command import run_module
from jobs.shards import ShardWorker, run_pending
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.corpus.assembly import SplitWriter, finish_corpus, pending_splits, pending_surveys
from zerogr.corpus.numbering import number
from zerogr.corpus.splits import Splits, cut
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.corpus.survey import FOLDER, Surveyor, write_splits
from zerogr.errors import UserError
from zerogr.index.index import Index, StageRecord, shards_in
from zerogr.index.stage import CORPUS
from zerogr.index.versions import is_update
from zerogr.machine import num_cores
from zerogr.store import storage

logger = logging.getLogger(__name__)

FEWEST_ON_A_CLUSTER = 4
"""Readers, where nobody says how many: nodes come when there is work for them."""


def run(config: Config) -> StageRecord:
    """Runs the corpus stage."""
    return run_stage(CORPUS, config, corpus_inputs(config), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    if is_update(index):
        from zerogr.editing.existing import Existing

        return build_corpus(config, index, held=Existing(index).held)
    splits = cut(config.corpus)
    if len(splits.pieces) > 1 and _can_share(config, splits):
        counts = _read_in_parallel(config, index, splits)
    else:
        counts = build_corpus(config, index)
    storage.delete(index.path(FOLDER))
    return counts


def _can_share(config: Config, splits: Splits) -> bool:
    """Whether others can help to read: they see the source, and there are any."""
    if config.compute.num_reading_workers == 1:
        return False
    if os.environ.get("RAY_ADDRESS"):
        # Where the index is on a disk, all nodes have that disk.
        return storage.is_local(config.index) or not storage.is_local(splits.files[0].uri)
    return config.compute.num_reading_workers > 1 or num_cores() > 1


def _read_in_parallel(config: Config, index: Index, splits: Splits) -> dict[str, Any]:
    try:
        with ray_session():
            write_splits(index, splits)
            sizes = {split: max(weight >> 20, 1) for split, weight in enumerate(splits.weights)}
            pending = {split: sizes[split] for split in pending_surveys(index, splits)}
            _run(config, index, pending, sum(sizes.values()), Surveyor, unit="MiB")
            numbering = number(config, index, splits)
            logger.info("corpus: %d documents in %d parts", numbering.kept[-1], len(splits.pieces))
            writing = pending_splits(config, index, numbering)
            _run(config, index, writing, numbering.kept[-1], SplitWriter, unit="documents")
    except UserError:
        if not shards_in(index.path("corpus")):  # a mistake that made nothing binds nobody
            storage.delete(index.path(FOLDER))
        raise
    return finish_corpus(config, index, numbering)


def _run(
    config: Config,
    index: Index,
    pending: dict[int, int],
    total: int,
    reader: Callable[[Config, Index], ShardWorker],
    *,
    unit: str,
) -> None:
    """Has every pending split read."""
    # A process reads one split at a time: two would share one core, and how long a cell may be is the interpreter's setting.
    one = {"num_engine_workers": _num_readers(config), "num_cpus_per_engine": 1, "shards_in_flight": 1}
    compute = config.compute.model_copy(update=one)
    make = partial(make_worker, config, reader)
    run_pending("corpus", index, pending, total, make, compute, needs_engine=False, unit=unit, notes_hosts=False)


def make_worker(config: Config, reader: Callable[[Config, Index], ShardWorker]) -> ShardWorker:
    """Returns what reads a split; called in the actor."""
    return reader(config, Index(config.index))


def _num_readers(config: Config) -> int:
    if config.compute.num_reading_workers:
        return config.compute.num_reading_workers
    if not os.environ.get("RAY_ADDRESS"):
        return num_cores()
    import ray

    return max(int(ray.cluster_resources().get("CPU", 0)), FEWEST_ON_A_CLUSTER)


command = stage_command(CORPUS, run)

if __name__ == "__main__":
    run_module("corpus", command)
