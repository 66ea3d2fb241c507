"""Filters and the contents of hits, on the command line and through the updates of an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import update as update_job
from jobs.cli import main
from jobs.parser import FIELD_NAMES
from tests import tiny
from tests.stages import build_index
from zerogr import Retriever
from zerogr.config.file import validate_config
from zerogr.editing.update import Request
from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.search.contents import FIELDS
from zerogr.trie.metadata import open_metadata
from zerogr.trie.opened import read_documents

SCHEMES = {"tfidf": {}, "terms": {"ranking__name": "mix"}}
HOSTILE = "\x1b]0;owned\x07 the \u202eelgoog\x9b31m"


def documents() -> list[dict[str, Any]]:
    """Returns documents whose numbers are numbers up to the 32nd, and text from there on."""
    rows = tiny.documents()
    for place, row in enumerate(rows):
        topic, number = row["_id"].split("-")
        row["metadata"] = {"topic": topic, "number": int(number) if place < 32 else number}
    rows[0] |= {"title": HOSTILE, "metadata": {"topic": HOSTILE}}
    return rows


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished index of the first 32 documents, and files of the others."""
    folder, rows = tmp_path_factory.mktemp("filters"), documents()
    collection = tiny.write_collection(folder / "collection", rows[:32])
    for name, some in (("first", rows[32:36]), ("second", rows[36:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    changes = {"docids__scheme": request.param, "serving__filter_keys": ["topic", "number"], **SCHEMES[request.param]}
    build_index(validate_config(tiny.settings(str(folder / "index"), collection, tiny_model, **changes)))
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def update(place: Path, *, add: str | None = None, remove: tuple[str, ...] = (), compact: bool = False) -> None:
    request = Request(source=None if add is None else str(place / add), remove=remove, compact=compact)
    update_job.run(str(place / "index"), request, ["update.max_forgetting=1"])


def find(place: Path, **wanted: Any) -> set[str]:
    """Returns the doc_ids that a filter leaves, and checks what their hits say."""
    retriever, rows = Retriever.load(str(place / "index"), device="cpu"), {row["_id"]: row for row in documents()}
    how = {"num_leaves": 500} if retriever.rankers else {}
    [hits] = retriever.search(["bicycles and chess"], k=100, filter=wanted, fields=FIELDS, **how)
    for hit in hits:
        assert (hit.title, hit.metadata) == (rows[hit.doc_id]["title"], rows[hit.doc_id]["metadata"])
    return {hit.doc_id for hit in hits}


@pytest.mark.parametrize("built", SCHEMES, indirect=True)
def test_updates_carry_what_documents_can_be_filtered_by(place: Path) -> None:
    index = Index(str(place / "index"))

    def check(gone: set[str], bicycles: range) -> None:
        assert find(place, topic="chess") == {f"chess-{i}" for i in range(8)} - gone
        assert find(place, topic="bicycles") == {f"bicycles-{i}" for i in bicycles} - gone
        assert find(place, number={"gte": 6}) == {f"{t}-{i}" for t in list(tiny.TOPICS)[:4] for i in (6, 7)} - gone
        manifest = index.manifest()
        version = Version.of(manifest)
        rows = open_metadata(index, manifest, version).table.column("row_id")
        assert rows.to_pylist() == read_documents(index, version).column("row_id").to_pylist()

    check(set(), range(0))
    update(place, remove=("chess-0",))
    check({"chess-0"}, range(0))
    update(place, add="first.jsonl", remove=("chess-6",))
    check({"chess-0", "chess-6"}, range(4))
    update(place, add="second.jsonl", remove=("bicycles-1",))
    check({"chess-0", "chess-6", "bicycles-1"}, range(8))
    assert find(place, number="3", topic=["bicycles", "bread"]) == {"bicycles-3"}
    update(place, compact=True)
    check({"chess-0", "chess-6", "bicycles-1"}, range(8))
    manifest = index.manifest()
    table = open_metadata(index, manifest, Version.of(manifest)).table
    assert len(table) == 37 and "1" not in table.column("string:number").chunk(0).dictionary.to_pylist()
    update(place, add="first.jsonl", remove=tuple(f"bicycles-{i}" for i in (0, 2, 3)))
    assert find(place, number=["0", "1"]) == {"bicycles-0", "bicycles-1"}


@pytest.mark.parametrize("built", ["tfidf"], indirect=True)
class TestCommandLine:
    def run(self, built: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert main(["search", str(built / "index"), "the roast beans of coffee", *arguments]) == 0
        return capsys.readouterr().out

    def test_people_see_title_and_snippet(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = self.run(built, capsys, "--filter", "topic=coffee", "--filter", "number<=1", "-k", "9").splitlines()
        assert lines[1:] == [
            "     coffee repair",
            "     About the repair of coffee: the beans and the grind and the water and the espresso and the crema and the "
            "bitter, with 3.1 examples.",
        ]
        lines = self.run(built, capsys, "-k", "2", "--snippet-characters", "20").splitlines()
        assert max(len(line) for line in lines if line.startswith("     ")) <= 27
        lines = self.run(built, capsys, "-k", "2", "--fields", "none").splitlines()
        assert [line[:3] for line in lines] == ["  1", "  2"]

    def test_programs_get_what_they_ask_for(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        [hit] = json.loads(self.run(built, capsys, "-k", "1", "--json"))["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score"}
        [hit] = json.loads(self.run(built, capsys, "-k", "1", "--json", "--fields", "kind,metadata"))["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score", "kind", "metadata"}

    def test_a_terminal_obeys_nothing_of_the_corpus(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = self.run(built, capsys, "-k", "32", "--fields", "title,metadata")
        assert "owned" in told and not set(told) & set("\x1b\x07\x9b\u202e")
        [hit] = [
            hit
            for hit in json.loads(self.run(built, capsys, "-k", "32", "--json", "--fields", "title"))["hits"]
            if hit["doc_id"] == "coffee-0"
        ]
        assert hit["title"] == HOSTILE

    def test_what_matches_nothing_is_no_mistake(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert json.loads(self.run(built, capsys, "--filter", "topic=tea", "--json"))["hits"] == []

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--filter", "author=x"], "filter has the key 'author'; the index can be filtered by topic, number"),
            (["--filter", "number=x"], "filter.number cannot be compared with 'x': the documents' values are numbers"),
            (["--filter", "number"], "the filter 'number' is none of key=value, key=a,b, key>=x and key<=x"),
            (["--snippet-characters", "-1"], "snippet_characters is -1; it must be 0 or more"),
        ],
    )
    def test_mistakes_get_one_sentence(
        self, built: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
    ) -> None:
        assert main(["search", str(built / "index"), "coffee", *arguments]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"zerogr: {reason}")


def test_fields_are_known_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert FIELD_NAMES == FIELDS
    with pytest.raises(SystemExit):
        main(["search", "nowhere", "coffee", "--fields", "title,author"])
    assert "'author' is none of title, text, kind, metadata; give some of them, or none" in capsys.readouterr().err
