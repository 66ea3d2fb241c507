"""The training benchmark: a ratio is worth nothing if its two sides do different work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import training


def test_both_sides_train_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [
        "training",
        "--quick",
        "--model",
        str(tiny_model),
        "--batch-size",
        "4",
        "--precision",
        "fp32",
        "--steps",
        "4",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "training.md")])
    training.main()
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures["loss_difference"] < 1e-4
    assert figures["first_loss"] > 1 and figures["last_loss"] != figures["first_loss"]
    assert figures["share_of_useful"] > figures["share_of_useful_trainer"] > 0
    assert figures["mfu"] is None
    assert figures["packed_ratio_vs_sdpa"] > 0 and figures["allowed_ratio_vs_vocabulary"] > 0
    assert "useful_tokens_ratio_vs_trainer" in (tmp_path / "training.md").read_text()
