"""Training that meets a fault of the machine: one sentence, and the same command goes on from the newest checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.cli import main
from jobs.train import ENDING
from tests.chaos.conftest import Mount
from tests.chaos.noting_driver import PAUSE, noting_driver
from tests.chaos.settings import write_config
from tests.chaos.test_nodes import DEADLINE_S, wait
from tests.processes import command_line, descendants
from zerogr.index.index import Index
from zerogr.index.stage import RETRIEVER
from zerogr.store import storage
from zerogr.training.checkpoints import latest_step

TRAINING = RETRIEVER.work[0]
pytestmark = [pytest.mark.integration]


def test_disk_that_fills_up_during_a_checkpoint(
    mount: Mount,
    tiny_index: str,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = load_file(Path(tiny_index, "retriever", "model.safetensors"))
    checkpoint_bytes = 12 * sum(tensor.numel() for tensor in weights.values())
    disk = mount(100 * 2**20)
    index = str(disk / "index")
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    used = sum(storage.list_files(index).values())
    mount(2 * used + int(1.5 * checkpoint_bytes))  # blocks are larger than files; the second checkpoint finds no room

    config = write_config(index, collection, tiny_model, tmp_path, compute__max_retries=0)
    assert main(["train", config]) == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("zerogr: retriever: training gave up, the last time with")
    assert "no space left on device" in last_line and last_line.endswith("the same command goes on from there")
    assert latest_step(f"{index}/{TRAINING}/checkpoints") == 5

    mount(100 * 2**20)
    assert main(["train", config]) == 0
    trained = load_file(Path(index, "retriever", "model.safetensors"))
    assert all((trained[name] == weights[name]).all() for name in weights)


def test_rank_killed(tiny_index: str, collection: Path, tiny_model: Path, tmp_path: Path) -> None:
    index, diary = str(tmp_path / "index"), tmp_path / "diary"
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    config = write_config(index, collection, tiny_model, tmp_path)
    with noting_driver(config, diary) as driver:
        wait((diary / "waiting-1-0").exists, driver)
        ranks = [pid for pid in descendants(driver.pid) if command_line(pid).startswith("ray::RayTrainWorker")]
        assert len(ranks) == 1
        os.kill(ranks[0], signal.SIGKILL)
        (diary / "go").touch()  # its successor need not wait
        assert driver.wait(timeout=DEADLINE_S) == 0
    assert len(list(diary.glob("*.jsonl"))) == 2  # two processes took steps
    trained, expected = (load_file(Path(uri, "retriever", "model.safetensors")) for uri in (index, tiny_index))
    assert all((trained[name] == expected[name]).all() for name in expected)


def test_driver_that_is_told_to_end_leaves_a_checkpoint(
    tiny_index: str, collection: Path, tiny_model: Path, tmp_path: Path
) -> None:
    index, diary = str(tmp_path / "index"), tmp_path / "diary"
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    config = write_config(index, collection, tiny_model, tmp_path, training__checkpoint_every=1000)
    with noting_driver(config, diary) as driver:
        wait((diary / "waiting-1-0").exists, driver)
        (diary / "hold-23").touch()  # training does not end by itself
        driver.terminate()
        wait(Path(index, TRAINING, ENDING).exists, driver)
        (diary / "go").touch()
        assert driver.wait(timeout=DEADLINE_S) == 1
    step = latest_step(f"{index}/{TRAINING}/checkpoints")
    assert (
        PAUSE[1] == 18 and step == 21
    )  # it was told in the middle of step 18; it asks every ten steps, before the next one
    assert (diary / "driver.log").read_text().splitlines()[-1] == (
        f"zerogr: told to end by SIGTERM; the checkpoint after step {step} is kept, and the same command goes on from there"
    )
    assert main(["train", config]) == 0
    trained, expected = (load_file(Path(uri, "retriever", "model.safetensors")) for uri in (index, tiny_index))
    assert all((trained[name] == expected[name]).all() for name in expected)
