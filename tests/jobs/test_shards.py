from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jobs import shards
from jobs.attempts import WITHOUT_A_WORD, Attempts
from jobs.cluster import ray_session
from jobs.shards import Hands, run_pending
from zerogr.config.tree import ComputeConfig
from zerogr.index.index import Index
from zerogr.llm.generation import ShardReport


def test_engines_where_nobody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for num_cores, num_workers in ((1, 1), (2, 2), (16, 4)):
        monkeypatch.setattr(shards, "num_cores", lambda num_cores=num_cores: num_cores)
        assert shards.most_workers(0) == num_workers
    assert shards.most_workers(1) == 1
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert shards.most_workers(0) == 1


def test_attempts_of_a_shard() -> None:
    attempts = Attempts()
    assert attempts.begin(3) == (0, "")
    assert attempts.begin(3) == (1, WITHOUT_A_WORD)
    attempts.fail(3, "out of memory")
    assert attempts.begin(3) == (2, "out of memory")
    assert attempts.begin(4) == (0, "")


def test_engines_that_cannot_be_loaded_are_counted_for_all_shards() -> None:
    attempts = Attempts()
    for shard in range(2):
        attempts.begin(shard)
        attempts.fail_to_load("no such file")
    assert attempts.begin(7) == (2, "no such file")
    attempts.loaded()
    assert attempts.begin(8) == (0, "")


def test_a_shard_that_was_made_starts_anew() -> None:
    attempts = Attempts()
    for _ in range(3):
        assert attempts.begin(3) == (0, "")
        attempts.succeed(3)


def test_time_with_several_shards_in_hand_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 14.0, 100.0, 101.0])
    monkeypatch.setattr(shards.time, "monotonic", lambda: next(clock))
    hands = Hands()
    hands.take()  # at 0
    hands.take()
    assert hands.release() == 10.0
    assert hands.release() == 4.0  # at 14; idle until 100
    hands.take()
    assert hands.release() == 1.0


def test_a_process_ends_when_its_other_shards_are_finished() -> None:
    hands = Hands()
    for _ in range(3):
        hands.take()
    ending = [threading.Thread(target=hands.wait_for_others, daemon=True) for _ in range(2)]
    taking = threading.Thread(target=hands.take, daemon=True)
    for thread in ending:
        thread.start()
    ending[0].join(0.05)
    taking.start()
    assert ending[0].is_alive() and ending[1].is_alive()  # one shard is still being made
    hands.release()
    for thread in ending:
        thread.join()
    taking.join(0.05)
    assert taking.is_alive()  # nothing is begun in a process that ends


def _begins_with_others(folder: Path, num_shards: int) -> Callable[[int], ShardReport]:
    """Returns what makes no shard before so many have begun, and notes which process has which."""

    def make(shard: int) -> ShardReport:
        (folder / f"{shard}-{os.getpid()}").touch()
        until = time.monotonic() + 60
        while len(list(folder.iterdir())) < num_shards:
            assert time.monotonic() < until, "the others wait for this one"
            time.sleep(0.05)
        return ShardReport(shard, rows=1, rejected=0)

    return make


def test_few_shards_go_to_as_many_engines(tmp_path: Path) -> None:
    """However early the first engine is ready."""
    folder = tmp_path / "begun"
    folder.mkdir()
    compute = ComputeConfig(num_engine_workers=2, max_retries=0)
    with ray_session():
        run_pending(
            "queries", Index(str(tmp_path / "index")), {0: 1, 1: 1}, 2, partial(_begins_with_others, folder, 2), compute,
            needs_engine=False,
        )  # fmt: skip
    assert len({file.name.partition("-")[2] for file in folder.iterdir()}) == 2
