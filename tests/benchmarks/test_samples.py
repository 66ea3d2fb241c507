"""Small parts of collections, and the configurations that are run on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ranking import STUDIES, configurations
from benchmarks.sample import drawn, shares, write
from tests import tiny
from zerogr.config.file import validate_config
from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.evaluation.ablation import variants


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    """Twenty documents; each of eight queries judges three of the first twelve."""
    folder = tiny.write_collection(tmp_path / "graded", tiny.documents()[:20])
    ids = [json.loads(line)["_id"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    lines = [f"q{i}\t{ids[(i + step) % 12]}\t{step}\n" for i in range(8) for step in (1, 2, 3)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.mark.parametrize("num_documents", [8, 15, 50])
def test_no_query_asks_for_what_is_not_there(graded: Path, tmp_path: Path, num_documents: int) -> None:
    both = shares(graded, ["test"], seed=0)
    chosen = drawn(*both, num_documents)
    counts = write(graded, tmp_path / "out", chosen, both, num_documents, seed=0)
    kept = {json.loads(line)["_id"] for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()}
    found = [Collection.load(str(tmp_path / "out"), split).qrels for split in ("train", "test")]
    assert len(kept) == min(num_documents, 20) == counts["documents"]
    assert not found[0].keys() & found[1].keys()
    whole = Collection.load(str(graded)).qrels
    for split in found:
        for query, documents in split.items():
            assert documents == whole[query]
            assert documents.keys() <= kept
    if num_documents >= 12:
        assert (len(found[0]), len(found[1])) == (4, 4)


def test_room_for_nothing(graded: Path, tmp_path: Path) -> None:
    both = shares(graded, ["test"], seed=0)
    with pytest.raises(UserError, match="2 documents have room for 0 training and 0 test queries"):
        write(graded, tmp_path / "out", drawn(*both, 2), both, 2, seed=0)
    assert not (tmp_path / "out").exists()


def test_two_splits_stay_what_they_are(graded: Path, tmp_path: Path) -> None:
    lines = (graded / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
    (graded / "qrels" / "train.tsv").write_text("".join(lines[:13]))
    (graded / "qrels" / "test.tsv").write_text("".join([lines[0], *lines[13:]]))
    train, test = shares(graded, ["train", "test"], seed=0)
    assert (set(train), set(test)) == ({"q0", "q1", "q2", "q3"}, {"q4", "q5", "q6", "q7"})


def test_the_configurations_are_valid(tmp_path: Path) -> None:
    start, onward = configurations(tmp_path / "small", tmp_path / "out", "Find it.", "tfidf")
    validate_config(start)
    names = {}
    for study, grids in STUDIES.items():
        config = validate_config(onward | {"ablation": {"grids": grids}})
        names[study] = [variant.name for variant in variants(config)]
    losses = ("margin", "prefix_margin", "ranknet", "graded")
    assert names["losses"] == ["base", *(f"training.loss.name={each}" for each in losses)]
    assert {study: len(found) for study, found in names.items()} == {
        "losses": 5, "ranknet": 2, "graded": 5, "low-resource": 10,
    }  # fmt: skip
