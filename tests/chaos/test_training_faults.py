"""Training that meets a fault of the machine: one sentence, and the same command goes on from the newest checkpoint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.cli import main
from jobs.train import ENDING
from tests.chaos.conftest import Mount
from tests.chaos.noting_driver import PAUSE
from tests.chaos.settings import write_config
from tests.chaos.test_nodes import DEADLINE_S, REPOSITORY, wait
from tests.processes import kill_with_descendants
from zerogr import storage
from zerogr.index import Index
from zerogr.training.checkpoints import latest_step

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


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
    assert storage.read_json(f"{index}/work/training/checkpoints/latest.json")["step"] == 5

    mount(100 * 2**20)
    assert main(["train", config]) == 0
    trained = load_file(Path(index, "retriever", "model.safetensors"))
    assert all((trained[name] == weights[name]).all() for name in weights)


def test_driver_that_is_told_to_end_leaves_a_checkpoint(
    tiny_index: str, collection: Path, tiny_model: Path, tmp_path: Path
) -> None:
    index, diary, log = str(tmp_path / "index"), tmp_path / "diary", tmp_path / "driver.log"
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    diary.mkdir()
    config = write_config(index, collection, tiny_model, tmp_path, training__checkpoint_every=1000)
    with log.open("wb") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.noting_driver", config, str(diary)],
            cwd=REPOSITORY, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait((diary / "waiting-1-0").exists, driver)
        driver.terminate()
        wait(Path(index, "work", "training", ENDING).exists, driver)
        (diary / "go").touch()
        assert driver.wait(timeout=DEADLINE_S) == 1
    finally:
        print(log.read_text(errors="replace"))
        if driver.poll() is None:
            kill_with_descendants(driver.pid)
        driver.wait()
    step = latest_step(f"{index}/work/training/checkpoints")
    assert (
        PAUSE[1] == 18 and step == 21
    )  # it was told in the middle of step 18; it asks every ten steps, before the next one
    assert log.read_text().splitlines()[-1] == (
        f"zerogr: told to end by SIGTERM; the checkpoint after step {step} is kept, and the same command goes on from there"
    )
    assert main(["train", config]) == 0
    trained, expected = (load_file(Path(uri, "retriever", "model.safetensors")) for uri in (index, tiny_index))
    assert all((trained[name] == expected[name]).all() for name in expected)
