"""Training that meets a fault of the machine: one sentence, and the same command goes on from the newest checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.cli import main
from tests.chaos.conftest import Mount
from tests.chaos.settings import write_config
from zerogr import storage
from zerogr.index import Index

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
