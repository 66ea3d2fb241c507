"""Queries that are remembered as columns: each is what it was, and their order and what is left out are what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from zerogr.editing.sample import Known, Ranked, Sample
from zerogr.editing.states import States
from zerogr.index.versions import REMOVED_SCHEMA
from zerogr.training.examples import Relevant, TextExample


def known(number: int, query: str) -> Known:
    relevant = Relevant(2.0, [(f"docid {number}", 1.0), ("term", 0.5)])
    return Known(f"doc-{number}", f"docid {number}", TextExample("Find it.", query, [relevant, Relevant(1.0, [])]))


def sample(places: Sequence[tuple[int, int, int]]) -> Sample:
    """Returns queries of (document, number among its own, layer); the hash falls with the document."""
    return Sample.of(
        Ranked(number=number, hash=100 - document, layer=layer, known=known(document, f"query {document} {number}"))
        for document, number, layer in places
    )


def queries(found: Sample) -> list[str]:
    return [each.example.query.removeprefix("query ") for each in found]


def removed(*rows: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([{"doc_id": doc_id, "update": update} for doc_id, update in rows], REMOVED_SCHEMA)


def test_first_queries_before_second_ones_then_by_hash(tmp_path: Path) -> None:
    found = sample([(1, 0, 0), (1, 1, 0), (2, 0, 0), (3, 1, 0)])
    assert queries(found) == ["2 0", "1 0", "3 1", "1 1"]
    found.write(str(tmp_path / "sample.parquet"))
    again = Sample.read(str(tmp_path / "sample.parquet"))
    assert list(again) == list(found) and again[0] == known(2, "query 2 0")
    assert again[1:3] == list(found)[1:3] and again[-1] == list(found)[-1]
    assert again.taken([3, 0]) == [again[3], again[0]]
    with pytest.raises(IndexError):
        again[4]


def test_more_come_in_and_the_last_go_out() -> None:
    found = sample([(1, 0, 0), (1, 1, 0)]).with_more(sample([(5, 0, 1), (5, 1, 1)]), 3)
    assert queries(found) == ["5 0", "1 0", "5 1"]
    assert list(sample([]).with_more(sample([]), 3)) == []


def test_what_was_removed_is_left_out_but_not_what_came_again() -> None:
    found = sample([(1, 0, 0), (2, 0, 0), (3, 0, 2), (4, 0, 1)])
    gone = removed(("doc-1", 1), ("doc-3", 1), ("doc-4", 1), ("doc-4", 3), ("doc-9", 1))
    assert sorted(queries(found.left_by(gone))) == ["2 0", "3 0"]
    assert len(found.left_by(removed())) == 4
    assert sorted(queries(found.without({"doc-1", "doc-4"}))) == ["2 0", "3 0"]
    assert len(found.without(())) == 4


def test_docids_each_once() -> None:
    found = sample([(1, 0, 0), (1, 1, 0), (2, 0, 0)])
    docids, which = found.docids()
    assert len(docids) == 2
    assert [docids[i] for i in which] == [each.docid for each in found]
    assert sample([]).docids()[0] == []


def test_states_are_kept_by_query(tmp_path: Path) -> None:
    found = sample([(1, 0, 0), (1, 1, 0), (2, 0, 0)])
    assert found.keys.tolist() == [each.key for each in found]
    twice = np.concatenate([found.keys, found.keys])
    states = States()
    assert states.missing(twice).tolist() == [0, 1, 2]
    rows = torch.arange(6.0).reshape(3, 2)
    states.put(found.keys[[2, 0]], rows[[2, 0]])
    assert states.missing(twice).tolist() == [1]
    states.put(found.keys[[1]], rows[[1]])
    states.save(tmp_path)
    again = States.load(tmp_path)
    assert torch.equal(again.of(twice), torch.cat([rows, rows]))
    assert torch.equal(again.only(found.keys[[1, 1]]).of(found.keys[[1]]), rows[[1]])
    other = known(7, "another").key
    for unknown in (States(), again):
        with pytest.raises(KeyError):
            unknown.of(np.array([other]))
    assert len(States().only(found.keys[:0])) == 0
