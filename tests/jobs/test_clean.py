"""Cleaning a real index: every version that is kept opens and answers as before, and the next update is the same."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import update as update_job
from jobs.cli import main
from tests import tiny
from zerogr import Retriever
from zerogr.editing.update import Request
from zerogr.index.index import Index
from zerogr.index.versions import Version, publish
from zerogr.store import storage

pytestmark = pytest.mark.integration

QUERIES = ["chess", "the tyre of bicycles", "quicksilver thermometers"]
METHODS = ("none", "certificate", "memit", "finetune")


@pytest.fixture
def place(tiny_index: str, tmp_path: Path) -> Path:
    """A copy of a finished index, and files of new documents."""
    shutil.copytree(tiny_index, tmp_path / "index")
    for number in range(8):
        row = {"_id": f"new-{number}", "text": f"Quicksilver thermometers, volume {number}, of a polar expedition."}
        (tmp_path / f"new-{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path


def update(place: Path, *, add: int | None, remove: tuple[str, ...] = (), compact: bool = False, method: str) -> None:
    """Runs an update of the index at a place."""
    source = None if add is None else str(place / f"new-{add}.jsonl")
    request = Request(source=source, remove=remove, compact=compact)
    update_job.run(str(place / "index"), request, ["update.max_forgetting=1", f"update.method.name={method}"])


def answers(place: Path, version: int | None) -> str:
    """Returns what a version answers."""
    retriever = Retriever.load(str(place / "index"), device="cpu", version=version)
    return repr([retriever.search(QUERIES, k=50, strategy=each, seed=3) for each in ("beam", "reverse_annealing")])


def cleaned(place: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Returns what the command tells of cleaning the index at a place."""
    capsys.readouterr()
    assert main(["clean", str(place / "index"), *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_kept_versions_answer_as_before(place: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(seed)
    root = Index(str(place / "index"))
    for number in range(6):
        kind = draw.choice(["adds", "adds", "removes", "compacts"])
        update(
            place,
            add=number if kind == "adds" else None,
            remove=(f"chess-{number}",) if kind == "removes" or draw.random() < 0.3 else (),
            compact=kind == "compacts",
            method=draw.choice(METHODS),
        )
        if draw.random() < 0.2:
            publish(root, draw.randrange(number + 2))
    current = Version.of(root.manifest())
    keep = draw.randint(1, 3)
    others = [number for number in range(current.last, 0, -1) if number != current.number]
    kept = sorted({current.number, *others[: keep - 1], 0})
    before = {number: answers(place, number) for number in kept}
    shutil.copytree(place / "index", place / "copy")

    planned = cleaned(place, "--keep-versions", str(keep), "--dry-run", capsys=capsys)
    assert {number: answers(place, number) for number in kept} == before
    done = cleaned(place, "--keep-versions", str(keep), capsys=capsys)
    assert done["leftovers"] == planned["leftovers"] and (done["dry_run"], planned["dry_run"]) == (False, True)
    sizes = [sum(storage.list_files(str(place / name)).values()) for name in ("copy", "index")]
    assert sizes[0] - sizes[1] == pytest.approx(done["bytes"], abs=1000), "the lease has another size"
    assert {number: answers(place, number) for number in kept} == before

    update(place, add=7, method="memit")
    after = answers(place, None)
    shutil.rmtree(place / "index")
    (place / "copy").rename(place / "index")
    update(place, add=7, method="memit")
    assert answers(place, None) == after


def test_a_lexical_index_can_be_updated_after_cleaning(
    hybrid_index: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The terms of its documents are working files of a finished stage, and updates read them."""
    shutil.rmtree(place / "index")
    shutil.copytree(hybrid_index, place / "index")
    update(place, add=0, method="none")
    cleaned(place, "--keep-versions", "1", capsys=capsys)
    update(place, add=1, method="none")
    retriever = Retriever.load(str(place / "index"), device="cpu")
    assert {"new-0", "new-1", "chess-0"} <= retriever.doc_ids() and retriever.num_documents == len(tiny.documents()) + 2


def test_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(place / "index")
    left = f"corpus/.part-000000.parquet.{'0' * 32}"
    (place / "index" / left).write_bytes(b"x" * 12_345)
    shutil.rmtree(place / "index" / "work" / "docids")
    for option, said in (["--dry-run"], "would delete"), ([], "deleted"):
        assert main(["clean", uri, *option]) == 0
        first, row, last = capsys.readouterr().out.splitlines()
        assert first == uri
        assert row == f"  temporary file  {left}        1 files           12,345 bytes"
        assert last == f"{said} 1 files, 12,345 bytes"
    assert not (place / "index" / left).exists()
    assert main(["clean", uri]) == 0
    assert capsys.readouterr().out.splitlines() == [uri, "there is nothing to delete"]


def test_where_there_is_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(tmp_path / "nowhere")]) == 2
    assert f"there is no index at '{tmp_path}/nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
