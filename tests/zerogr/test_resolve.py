"""Collision resolution over shards, against a slow reference that holds every text and knows no keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.docids import resolve as module
from zerogr.docids.resolve import Assignment, content_of, gather, key_of, pick, resolve_shards
from zerogr.docids.scheme import WordScheme
from zerogr.docids.schemes.tfidf import TfidfSettings
from zerogr.docids.stage import PROPOSAL_SCHEMA

Row = tuple[str, list[str], list[str]]
"""Content, candidates, terms."""
COLUMNS = ("content", "keys", "candidates", "own")
SCHEMA = pa.schema([PROPOSAL_SCHEMA.field(name) for name in COLUMNS])


def scheme_of(max_words: int) -> WordScheme:
    return WordScheme(TfidfSettings(max_words=max_words), None)


def reference(rows: list[Row], max_words: int) -> list[str]:
    """Returns the docid of every row: the rules of `resolve`, word for word, with sets of texts."""
    first_row: dict[str, int] = {}
    for row, (content, _, _) in enumerate(rows):
        first_row.setdefault(content, row)
    owner: dict[str, int] = {}
    docids: dict[int, str] = {}
    waiting = list(first_row.values())
    for number in range(max((len(candidates) for _, candidates, _ in rows), default=0)):
        taken = set(owner)
        for row in waiting:
            candidate = rows[row][1][number] if number < len(rows[row][1]) else None
            if candidate is not None and candidate not in taken and candidate not in owner:
                owner[candidate], docids[row] = row, candidate
        waiting = [row for row in waiting if row not in docids]
    given_out = set(docids.values())
    for row in waiting:
        _, candidates, own = rows[row]
        rival = rows[owner[candidates[0]]][2]
        docids[row] = next(
            text for text in _variants(candidates[0].split(" "), own, rival, max_words) if text not in given_out
        )
        given_out.add(docids[row])
    return [docids[first_row[content]] for content, _, _ in rows]


def _variants(docid: list[str], own: list[str], rival: list[str], max_words: int) -> Iterator[str]:
    spare = [term for term in own if term not in docid]
    for term in [term for term in spare if term not in rival] + [term for term in spare if term in rival]:
        yield " ".join([*docid[: max_words - 1], term])
    for number in range(2, 100_000):
        yield " ".join([*docid[: max_words - 1], str(number)])


def shards_of(rows: list[Row], cuts: list[int]) -> list[pa.Table]:
    """Returns the rows as proposals in shards that begin at `cuts`; equal cuts are shards without a row."""
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [
        pa.Table.from_pylist(
            [
                {
                    "content": content_of("", content),
                    "keys": [module.key_of(candidate) for candidate in candidates],
                    "candidates": candidates,
                    "own": terms,
                }
                for content, candidates, terms in rows[start:end]
            ],
            schema=SCHEMA,
        )
        for start, end in pairwise(bounds)
    ]


def reader(shards: list[pa.Table]) -> Callable[[int, list[str]], pa.Table]:
    return lambda place, columns: shards[place].select(columns)


def assigned(rows: list[Row], max_words: int = 8, *, cuts: list[int] | None = None, num_workers: int = 1) -> Assignment:
    shards = shards_of(rows, cuts or [])
    return resolve_shards(reader(shards), len(shards), scheme_of(max_words), num_workers=num_workers)


def docids_of(rows: list[Row], assignment: Assignment) -> list[str]:
    told_apart = dict(zip(assignment.told_apart.tolist(), assignment.texts.to_pylist(), strict=True))
    return [
        told_apart[group] if choice < 0 else rows[group][1][choice]
        for group, choice in zip(assignment.group.tolist(), assignment.choice.tolist(), strict=True)
    ]


words_of_a_docid = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
some_rows = st.lists(
    st.tuples(
        st.sampled_from("123456789"),
        st.lists(words_of_a_docid.map(" ".join), min_size=1, max_size=3),
        st.lists(st.sampled_from("abcde"), max_size=4, unique=True),
    ),
    max_size=14,
)
some_cuts = st.lists(st.integers(0, 14), max_size=4)


class TestAgainstTheReference:
    @given(rows=some_rows, max_words=st.integers(3, 4), cuts=some_cuts, num_workers=st.integers(1, 2))
    @settings(max_examples=150, deadline=None)
    def test_the_same_docids_for_any_shards_and_workers(
        self, rows: list[Row], max_words: int, cuts: list[int], num_workers: int
    ) -> None:
        with patch.object(module, "PART", 2):  # so that telling apart has several parts
            assignment = assigned(rows, max_words, cuts=cuts, num_workers=num_workers)
        docids = docids_of(rows, assignment)
        assert docids == reference(rows, max_words)
        contents = [content for content, _, _ in rows]
        assert len(set(docids)) == len(set(contents)) == len(set(zip(contents, docids, strict=True)))
        assert assignment.group.tolist() == [contents.index(content) for content in contents]

        whole = assigned(rows, max_words)
        assert (whole.counts, whole.collisions_per_round) == (assignment.counts, assignment.collisions_per_round)
        assert (
            sum(count for name, count in whole.counts.items() if name.startswith("resolved_by_"))
            == (whole.counts["collisions"])
        )

    @given(rows=some_rows, cuts=some_cuts, num_keys=st.integers(40, 60))
    @settings(max_examples=80, deadline=None)
    def test_texts_that_share_a_key_cost_a_docid_and_never_give_one_to_two(
        self, rows: list[Row], cuts: list[int], num_keys: int
    ) -> None:
        with patch.object(module, "key_of", lambda text: key_of(text) % num_keys):
            assignment = assigned(rows, 3, cuts=cuts)
        docids = docids_of(rows, assignment)
        contents = [content for content, _, _ in rows]
        assert len(set(docids)) == len(set(contents)) == len(set(zip(contents, docids, strict=True)))
        assert assignment.collisions_per_round[-1] == 0

    def test_thousands_of_rows(self) -> None:
        random = np.random.default_rng(0)

        def text(size: int) -> str:
            return " ".join(f"w{word}" for word in np.unique(random.zipf(1.5, size=size) % 40))

        rows = [(str(random.integers(4000)), [text(6), text(6)], text(12).split(" ")) for _ in range(3000)]
        assignment = assigned(rows, 6, cuts=[7, 1000, 2500], num_workers=2)
        assert docids_of(rows, assignment) == reference(rows, 6)
        assert all(number > 0 for number in assignment.counts.values())


class TestByHand:
    def test_collisions_per_round(self) -> None:
        rows: list[Row] = [
            ("1", ["a", "b"], []),
            ("2", ["a", "c"], []),  # its second candidate
            ("3", ["a", "c"], ["q"]),  # a term
            ("4", ["a", "c"], []),  # an ordinal
            ("1", ["d"], []),  # the first again
        ]
        assignment = assigned(rows)
        assert docids_of(rows, assignment) == ["a", "c", "a q", "a 2", "a"]
        # After the first candidates, the second ones, terms, ordinals.
        assert assignment.collisions_per_round == [3, 2, 1, 0]
        assert assignment.counts == {
            "duplicates": 1,
            "collisions": 3,
            "resolved_by_candidate": 1,
            "resolved_by_terms": 1,
            "resolved_by_ordinal": 1,
        }

    def test_thousands_of_documents_of_one_name(self) -> None:
        """Each looked for its ordinal from the start: ten thousand of them were fifty million texts."""
        rows: list[Row] = [(str(i), ["untitled"], ["untitled"]) for i in range(20_000)]
        docids = docids_of(rows, assigned(rows, cuts=[9_999]))
        assert docids == ["untitled", *(f"untitled {i}" for i in range(2, 20_001))]

    def test_a_duplicate_may_have_other_candidates(self) -> None:
        rows: list[Row] = [("1", ["a"], []), ("2", ["b"], []), ("1", ["b", "c"], [])]
        assignment = assigned(rows, cuts=[2])
        assert docids_of(rows, assignment) == ["a", "b", "a"]
        assert assignment.choice.tolist() == [0, 0, 0]

    def test_no_shards_and_no_rows(self) -> None:
        for assignment in (resolve_shards(reader([]), 0, scheme_of(8)), assigned([]), assigned([], cuts=[0, 0])):
            assert len(assignment.group) == len(assignment.texts) == 0
            assert set(assignment.counts.values()) == {0}

    def test_a_shard_that_cannot_be_read_stops_it(self) -> None:
        def read(place: int, columns: list[str]) -> pa.Table:
            if place == 1:
                raise OSError("the disk is gone")
            return SCHEMA.empty_table().select(columns)

        with pytest.raises(OSError, match="the disk is gone"):
            resolve_shards(read, 3, scheme_of(8), num_workers=2)


class TestReading:
    def test_only_what_is_needed_is_read(self) -> None:
        """Terms are most of the proposals' bytes; nearly all documents keep their first candidate."""
        rows: list[Row] = [("1", ["a"], ["p"]), ("2", ["b"], []), ("3", ["a"], ["q"]), ("4", ["c"], [])]
        shards = shards_of(rows, [1, 2, 3])
        asked: list[tuple[int, tuple[str, ...]]] = []

        def read(place: int, columns: list[str]) -> pa.Table:
            asked.append((place, tuple(columns)))
            return shards[place].select(columns)

        resolve_shards(read, 4, scheme_of(8))
        assert asked[:4] == [(place, ("content", "keys")) for place in range(4)]
        assert sorted(asked[4:]) == [(0, ("own",)), (2, ("candidates", "own"))]

    @given(wanted=st.lists(st.integers(0, 5), min_size=1), cuts=st.lists(st.integers(0, 6), max_size=3))
    @settings(max_examples=40, deadline=None)
    def test_gather_keeps_the_order_asked_for(self, wanted: list[int], cuts: list[int]) -> None:
        rows: list[Row] = [(str(i), [f"docid {i}"], [f"term{i}"] * i) for i in range(6)]
        shards = shards_of(rows, cuts)
        starts = np.cumsum([0, *(len(shard) for shard in shards)])
        table = gather(reader(shards), starts, np.array(wanted), ["own", "candidates"], num_workers=2)
        assert table.to_pylist() == [{"own": rows[row][2], "candidates": rows[row][1]} for row in wanted]

    def test_pick_of_a_slice(self) -> None:
        lists = pa.array([["a"], ["b", "c"], ["d", "e", "f"]]).slice(1)
        assert pick(lists, np.array([1, 2])).to_pylist() == ["c", "f"]


def test_keys_and_content_do_not_depend_on_the_process() -> None:
    """They are stored: another machine must find the same ones."""
    assert key_of("sourdough bread") == 17106709618580539105
    assert content_of("Title", "text").hex() == "7308047b5824444f657faecfb748d4af"
    assert content_of("a", "b") != content_of("ab", "")
