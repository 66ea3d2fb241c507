"""The script for a machine with a GPU, gone through with toy shapes: it must not fail first where a GPU is paid for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import REPOSITORY

PARTS = {"attention", "equality", "decode", "training", "engine", "chain"}


def test_dry_run(tmp_path: Path, collection: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--model", str(tiny_model), "--data", str(collection)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= PARTS and all(found[part]["rows"] for part in PARTS)
    assert sum(row["answers"] for row in found["equality"]["rows"]) == 408 + 6 + 60
    assert not any(row["other answers"] for row in found["equality"]["rows"])
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert json.loads(again.stdout.splitlines()[-1]) == found  # what is there is not measured again
