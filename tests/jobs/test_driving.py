"""Which commands drive an index: they are refused while another driver has it, and those that read are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from jobs.driving import driving
from tests import tiny
from zerogr.index.driver import lease_of
from zerogr.index.index import Index
from zerogr.index.lease import FOLDER as LEASE
from zerogr.index.lease import holder_of, own_lease, path_of
from zerogr.store import storage

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tiny_index: str, tmp_path: Path, collection: Path, tiny_model: Path) -> Iterator[Path]:
    """A copy of a finished index, with its configuration; other folders of it are teacher data, studies and ablations."""
    shutil.copytree(tiny_index, tmp_path / "index")
    tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
    tree |= {"distil": {"model": str(tiny_model), "engine": "fake", "out": str(tmp_path / "teacher")}}
    tree |= {
        "tuning": {"model": str(tiny_model), "out": str(tmp_path / "generators"), "teacher": str(tmp_path / "teacher")}
    }
    tree |= {
        "evaluation": {"dataset": str(collection)},
        "ablation": {"out": str(tmp_path / "ablation"), "grids": [{"seed": [1]}]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "new.jsonl").write_text(
        json.dumps({"_id": "new", "text": "Quicksilver thermometers of an expedition."})
    )
    yield tmp_path


def drive_elsewhere(uri: str) -> None:
    """Another machine's driver has an index from here on."""
    number = 1 + max([int(name[:6]) for name in storage.list_files(f"{uri}/{LEASE}")], default=0)
    other = replace(own_lease(), host="elsewhere", machine="another", command="zerogr index theirs.yaml")
    storage.write_json(path_of(Index(uri), number), other.as_json())


CONFIG, INDEX = "{place}/config.yaml", "{place}/index"
DRIVERS: dict[str, list[str]] = {
    INDEX: [
        f"index {CONFIG}",
        *(f"{stage} {CONFIG}" for stage in ("corpus", "docids", "queries", "trie", "train", "statistics")),
        f"train {CONFIG} --rebuild retriever",
        f"update {INDEX} --add {{place}}/new.jsonl",
        f"update {INDEX} --discard",
        f"update {INDEX} --rollback 0",
        f"clean {INDEX}",
        f"clean {INDEX} --dry-run",
    ],
    "{place}/teacher": [f"distil {CONFIG}"],
    "{place}/ablation/indexes/base": [f"ablate {CONFIG}"],
}


@pytest.mark.parametrize(("held", "command"), [(held, each) for held, commands in DRIVERS.items() for each in commands])
def test_is_refused(place: Path, held: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = held.format(place=place)
    drive_elsewhere(uri)
    before = storage.list_files(uri)
    assert main(command.format(place=place).split()) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zerogr: ")]
    assert said.startswith(f"zerogr: '{uri}' is being changed by elsewhere, process ")
    assert "`zerogr index theirs.yaml`" in said
    assert storage.list_files(uri) == before


@pytest.mark.parametrize(
    "command",
    [
        f"status {INDEX}",
        f"search {INDEX} espresso",
        f"explain {INDEX} espresso --doc coffee-0",
        f"evaluate {INDEX} --dataset {{collection}} --strategy greedy --baseline",
    ],
)
def test_who_reads_needs_no_lease(place: Path, collection: Path, command: str) -> None:
    drive_elsewhere(str(place / "index"))
    assert main(command.format(place=place, collection=collection).split()) == 0


def test_status_says_who(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(place / "index")
    drive_elsewhere(uri)
    assert main(["status", uri]) == 0
    assert "being changed by elsewhere, process" in capsys.readouterr().out
    assert main(["status", uri, "--json"]) == 0
    driver = json.loads(capsys.readouterr().out)["driver"]
    assert (driver["host"], driver["command"]) == ("elsewhere", "zerogr index theirs.yaml")


def test_a_command_is_one_lease(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two stages of a command nobody else can step in."""
    uri = str(place / "index")
    numbers = set[str]()
    list_files = storage.list_files

    def noting(of: str, *rest: Any) -> dict[str, int]:
        found = list_files(of, *rest)
        numbers.update(name for name in found if of.endswith(LEASE))
        return found

    monkeypatch.setattr(storage, "list_files", noting)
    before = set(list_files(f"{uri}/{LEASE}"))
    assert main(["update", uri, "--add", str(place / "new.jsonl"), "--set", "update.max_forgetting=1"]) == 0
    assert len(numbers - before) == 1
    assert holder_of(Index(uri)) is None


def test_a_fault_of_a_driver_that_lost_is_told_in_a_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import clean

    uri = str(place / "index")

    def lose(*_: Any, **__: Any) -> list[Any]:
        drive_elsewhere(uri)
        monkeypatch.setattr("zerogr.index.driver.clock", lambda: 1e12)
        storage.delete(f"{uri}/trie")
        return []

    monkeypatch.setattr(clean, "find_leftovers", lose)
    assert main(["clean", uri]) == 1
    assert "was lost after" in capsys.readouterr().err
    assert storage.list_files(f"{uri}/trie")


def test_many_indexes_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name in "abc":
            stack.enter_context(driving(str(tmp_path / name)))
        with lease_of(Index(str(tmp_path / "a"))):
            storage.write_json(str(tmp_path / "a" / "file.json"), {})
    assert all(holder_of(Index(str(tmp_path / name))) is None for name in "abc")
