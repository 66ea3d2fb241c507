from __future__ import annotations

from pathlib import Path

import pytest

from jobs import hosts
from jobs.hosts import Hosts, read_hosts
from jobs.shards import Outcome
from zerogr.index.index import RUNS, Index
from zerogr.index.ledger import WRITE_EVERY_S, Effort, Ledger, read_effort
from zerogr.llm.generation import ShardReport
from zerogr.store.storage import list_files


def test_runs_add_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    index = Index(str(tmp_path))
    first = Hosts(index, "docids")
    first.add("a", 3)
    first.add("", 2)  # it was there already
    assert read_hosts(index, "docids") == {}  # too soon
    clock[0] += WRITE_EVERY_S
    first.add("a", 0)
    first.add("b", 9)  # never written: the run was killed
    second = Hosts(index, "docids")
    second.add("a", 1)
    second.add("b", 4)
    second.write()
    assert read_hosts(index, "docids") == {"a": [0, 1, 3], "b": [4]}
    assert read_hosts(index, "queries") == {}


def test_they_do_not_count_as_effort_and_go_with_their_stage(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.begin("docids", {})
    ledger, noted = Ledger(index, "docids"), Hosts(index, "docids")
    ledger.add(Effort(rows=3))
    noted.add("a", 0)
    ledger.write()
    noted.write()
    assert read_effort(index, "docids").rows == 3
    Ledger(index, "docids").write()
    assert sorted(list_files(index.path(RUNS))) == ["docids-0000.json", "docids-0001.json", "docids.hosts.json"]
    index.rebuild("docids")
    assert not list_files(index.path(RUNS))


def test_only_who_publishes_is_noted() -> None:
    outcome = Outcome(3)
    outcome.add(None)
    assert outcome.host == ""
    outcome.add(ShardReport(shard=3, rows=1, rejected=0))
    assert outcome.host
