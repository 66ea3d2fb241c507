from __future__ import annotations

from pathlib import Path

import pytest

from zerogr.index import ledger
from zerogr.index.index import RUNS, Index
from zerogr.index.ledger import Effort, Ledger, read_effort
from zerogr.store.storage import list_files


def test_the_runs_of_a_stage_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: clock[0])
    index = Index(str(tmp_path))
    first, other = Ledger(index, "docids"), Ledger(index, "queries")
    clock[0] += 10
    first.add(Effort(rows=7, rejected=1, prompt_tokens=800, output_tokens=80, engine_seconds=16.0, gpu_seconds=32.0))
    assert not list_files(index.path(RUNS))  # too soon
    clock[0] += ledger.WRITE_EVERY_S
    first.add(Effort(rows=8, engine_seconds=4.0, gpu_seconds=8.0))
    first.add(Effort(rows=99))  # never written: the run was killed
    second = Ledger(index, "docids")
    clock[0] += ledger.WRITE_EVERY_S + 10
    second.add(Effort(rows=4, engine_seconds=20.0, gpu_seconds=40.0))
    second.write()
    other.write()
    effort = read_effort(index, "docids")
    assert effort == Effort(
        rows=19, rejected=1, prompt_tokens=800, output_tokens=80, seconds=80.0, engine_seconds=40.0, gpu_seconds=80.0
    )
    assert effort.rates() == {
        "rows_per_second": 0.25,
        "prompt_tokens_per_second": 10.0,
        "output_tokens_per_second": 1.0,
    }
    assert effort.remaining(9000) == {"remaining_hours": 10.0, "remaining_gpu_hours": 10.0}


def test_before_the_first_row_nothing_is_projected(tmp_path: Path) -> None:
    effort = read_effort(Index(str(tmp_path)), "docids")
    assert effort == Effort()
    assert effort.rates() == {} and effort.remaining(10) == {}


def test_a_rebuild_forgets_what_the_stage_cost(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    for stage in ("docids", "queries"):
        index.begin(stage, {})
        Ledger(index, stage).write()
    index.rebuild("docids")
    assert [name.partition("-")[0] for name in list_files(index.path(RUNS))] == ["queries"]
