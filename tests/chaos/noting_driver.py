"""Runs `zerogr train` as a driver of its own, whose ranks note what they compute and wait for something to happen to them.

    python -m tests.chaos.noting_driver CONFIG DIARY

A rank notes every step in a file of its own below DIARY. Two ranks wait in step `PAUSE[2]`, one alone in step `PAUSE[1]`,
until the file DIARY/go is there or Ray ends them to make a new group of workers. In step N they wait while
DIARY/hold-N is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.processes import ON_A_CLUSTER, running
from zerogr.index.stage import RETRIEVER
from zerogr.store import storage

PAUSE = {2: 8, 1: 18}
"""Ranks -> optimiser step, counted from 1. Both lie in the middle of an epoch, and a checkpoint follows neither."""


def noting_train_on_worker(arguments: dict[str, Any], *, diary: str) -> None:
    """The trainer's own function in every worker, with a hand on what its learner is given."""
    import numpy as np
    from ray import train as ray_train

    from jobs.train import train_on_worker
    from zerogr.training.checkpoints import StorageCheckpointer, latest_step
    from zerogr.training.learner import Learner, Work

    context = ray_train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    begun, at_work = time.time(), {"step": 0}
    ids_of: dict[int, list[int]] = {}
    every = arguments["config"]["training"]["checkpoint_every"]
    checkpoints = storage.join(arguments["config"]["index"], RETRIEVER.work[0], "checkpoints")
    restore, prepare, step = StorageCheckpointer.restore, Learner.prepare, Learner.step

    def noting_restore(self: Any, *state: Any) -> int:
        at_work["step"] = restore(self, *state)
        return int(at_work["step"])

    def noting_prepare(self: Learner, examples: Any, ids: np.ndarray, choices: Any) -> Work:
        work = prepare(self, examples, ids, choices)
        ids_of[id(work)] = ids[rank::num_ranks].tolist()
        return work

    def noting_step(self: Learner, work: Work, *rest: Any, **options: Any) -> Any:
        at_work["step"] += 1
        number = at_work["step"]
        note = {"begun": begun, "rank": rank, "num_ranks": num_ranks, "step": number, "ids": ids_of.pop(id(work))}
        if number == PAUSE[num_ranks]:
            while latest_step(checkpoints) < (number - 1) // every * every:  # a thread may still be writing it
                time.sleep(0.05)
            Path(diary, f"waiting-{num_ranks}-{rank}").touch()
            while not Path(diary, "go").exists():
                time.sleep(0.05)
        while Path(diary, f"hold-{number}").exists():
            time.sleep(0.05)
        taken = step(self, work, *rest, **options)
        with Path(diary, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        return taken

    StorageCheckpointer.restore, Learner.prepare, Learner.step = noting_restore, noting_prepare, noting_step  # type: ignore
    train_on_worker(arguments)


@contextmanager
def noting_driver(config: str, diary: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the driver for the length of a block. Its output is DIARY/driver.log."""
    diary.mkdir()
    if "RAY_ADDRESS" in environment:
        environment |= ON_A_CLUSTER
    with running("tests.chaos.noting_driver", config, str(diary), log=diary / "driver.log", **environment) as driver:
        yield driver


if __name__ == "__main__":
    from ray import train as ray_train

    import jobs.train
    from jobs.cli import main
    from tests.chaos.noting_driver import noting_train_on_worker as by_its_module

    config, folder = sys.argv[1:]
    jobs.train.train_on_worker = partial(by_its_module, diary=folder)  # type: ignore[assignment]
    ray_train.ScalingConfig = partial(ray_train.ScalingConfig, elastic_resize_monitor_interval_s=1.0)  # type: ignore
    sys.exit(main(["train", config]))
