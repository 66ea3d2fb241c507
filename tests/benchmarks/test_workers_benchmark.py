from __future__ import annotations

import json
import sys

import pytest

from benchmarks import workers


@pytest.mark.integration
@pytest.mark.slow
def test_two_workers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(workers, "SHARDS_PER_WORKER", 3)
    monkeypatch.setattr(sys, "argv", ["workers", "--quick"])
    workers.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["share_of_linear_1"] == 1
    assert figures["share_of_linear_2"] == pytest.approx(
        figures["shards_per_s_2"] / figures["shards_per_s_1"] / 2, abs=1e-3
    )
    assert figures["driver_cores_2"] > 0 and figures["workers_of_a_driver"] > 0
