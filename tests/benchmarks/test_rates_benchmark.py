"""The rates benchmark: rates that are not positive and finite would make every plan free, or endless."""

from __future__ import annotations

import json
import sys
from math import isfinite
from pathlib import Path

import pytest

from benchmarks import rates


def test_every_rate_is_positive(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rates.md"
    monkeypatch.setattr(sys, "argv", ["rates", "--quick", "--model", str(tiny_model), "--out", str(out)])
    rates.main()
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    for name in ("prompt_tokens_per_s", "new_tokens_per_s", "training_tokens_per_s", "training_step_s"):
        assert figures[name] > 0 and isfinite(figures[name]), name
    assert 5 < figures["tokens_per_pair"] < 100
    assert "training_tokens_per_s" in out.read_text()
