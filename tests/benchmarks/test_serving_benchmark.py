from __future__ import annotations

import json
import sys

import pytest

from benchmarks import serving
from benchmarks.serving import Answered, summary


def test_figures_of_a_rate() -> None:
    answered = [Answered(200, 0.4 * i, 0.1 * i, 0.5 * i) for i in range(1, 11)] + [
        Answered(503, 0.98, 0.02, 1.0),
        Answered(0, 1.0, 3.0, 4.0),
    ]
    found = summary(answered)
    assert found["searches"] == 12 and found["served_per_s"] == 2.0
    assert (found["p50_ms"], found["refused"], found["refused_p99_ms"], found["lost"]) == (550.0, 1, 20.0, 1)


@pytest.mark.integration
def test_a_tiny_index_is_served_and_measured(
    tiny_index: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service is a process of its own, with a Ray of its own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serving, "RATES", (0.02,))
    monkeypatch.setattr(serving, "CALM", 0.02)
    monkeypatch.setattr(sys, "argv", ["serving", tiny_index, "-k", "3", "--seconds", "2"])
    serving.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    calm, last = figures["rates"]
    assert figures["recovery_s"] >= 0
    assert calm["lost"] == last["lost"] == 0
    assert last["rate"] == pytest.approx(2 * calm["served_per_s"] / figures["bare_before_and_after"][0], abs=0.02)
    assert 0 < figures["knee_per_s"] == max(calm["served_per_s"], last["served_per_s"])
    assert figures["ratio_vs_bare_decoder"] == pytest.approx(figures["knee_per_s"] / figures["bare_per_s"], abs=1e-3)
