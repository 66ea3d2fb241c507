from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.errors import UserError
from zerogr.trie import DocidTrie
from zerogr.trie.build import as_ragged
from zerogr.trie.nodes import ARRAYS

sequences_strategy = st.lists(st.lists(st.integers(0, 4), max_size=7), max_size=20)


def nodes_by_prefix(trie: DocidTrie) -> dict[tuple[int, ...], int]:
    """Every prefix that can be reached through `children`."""
    found = {(): trie.root}
    waiting = [()]
    while waiting:
        prefix = waiting.pop()
        tokens, nodes = trie.children(found[prefix])
        for token, node in zip(tokens.tolist(), nodes.tolist(), strict=True):
            found[*prefix, token] = node
            waiting.append((*prefix, token))
    return found


class TestAgainstBruteForce:
    """A wrong range or offset would silently hide documents, or offer docids that do not exist."""

    @settings(deadline=None, max_examples=200)
    @given(sequences_strategy)
    def test_every_prefix(self, sequences: list[list[int]]) -> None:
        trie = DocidTrie.build(sequences)
        prefixes = {tuple(s[:length]) for s in sequences for length in range(len(s) + 1)} | {()}
        nodes = nodes_by_prefix(trie)
        assert set(nodes) == prefixes
        assert len(set(nodes.values())) == len(nodes)
        for prefix, node in nodes.items():
            below = [row for row, s in enumerate(sequences) if tuple(s[: len(prefix)]) == prefix]
            assert trie.rows(node).tolist() == sorted(below, key=lambda row: (sequences[row], row))
            assert trie.ends(node).tolist() == [row for row, s in enumerate(sequences) if tuple(s) == prefix]
            tokens = trie.children(node)[0].tolist()
            assert tokens == sorted({sequences[row][len(prefix)] for row in below if len(sequences[row]) > len(prefix)})

        distinct = sorted({tuple(s) for s in sequences})
        expected = [
            sum(sum(d[:i] == docid[:i] for d in distinct) > 1 for i in range(len(docid) + 1)) for docid in distinct
        ]
        assert trie.num_free(*as_ragged(distinct)).tolist() == expected
        for prefix in {*prefixes - set(distinct), *((*docid, 1) for docid in distinct), (10**6,)} - set(distinct):
            with pytest.raises(ValueError, match=re.escape(f"the trie holds no docid with the tokens {list(prefix)}")):
                trie.num_free(*as_ragged([*distinct, prefix]))
        assert (trie.num_docids, trie.num_rows) == (len(distinct), len(sequences))
        for prefix, node in nodes.items():
            first, last = trie.docid_range(node)
            if distinct:
                assert distinct[first:last] == [d for d in distinct if d[: len(prefix)] == prefix]
            assert trie.docids_below(node) == (first, len([d for d in distinct if d[: len(prefix)] == prefix]))
            if last - first == 1 and distinct:
                assert (*prefix, *trie.tail(node).tolist()) == distinct[first]

    @settings(deadline=None)
    @given(sequences_strategy, st.randoms())
    def test_batch_of_children(self, sequences, random) -> None:
        trie = DocidTrie.build(sequences)
        nodes = list(nodes_by_prefix(trie).values())
        random.shuffle(nodes)
        tokens, children, offsets = trie.children_batch(nodes)
        for place, node in enumerate(nodes):
            one_by_one = trie.children(node)
            assert tokens[offsets[place] : offsets[place + 1]].tolist() == one_by_one[0].tolist()
            assert children[offsets[place] : offsets[place + 1]].tolist() == one_by_one[1].tolist()
        assert (tokens.dtype, children.dtype, offsets.dtype) == (np.int32, np.int64, np.int64)

    @settings(deadline=None)
    @given(sequences_strategy, st.data())
    def test_docids_of_rows(self, sequences: list[list[int]], data: st.DataObject) -> None:
        trie = DocidTrie.build(sequences)
        distinct = sorted({tuple(s) for s in sequences})
        rows = data.draw(st.lists(st.integers(0, len(sequences) - 1)) if sequences else st.just([]))
        docids = trie.docids_of_rows(rows)
        assert docids.dtype == np.int64
        assert [distinct[docid] for docid in docids] == [tuple(sequences[row]) for row in rows]

    @settings(deadline=None, max_examples=50)
    @given(sequences_strategy, st.integers(1, 5))
    def test_working_in_parts(self, sequences: list[list[int]], part: int) -> None:
        """Real tries are longer than one part, test tries are not."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("zerogr.trie.build.PART", part)
            in_parts = DocidTrie.build(sequences)
            docids = in_parts.docids_of_rows(range(len(sequences)))
        whole = DocidTrie.build(sequences)
        for name in ARRAYS:
            assert np.array_equal(getattr(in_parts, name), getattr(whole, name))
        assert docids.tolist() == whole.docids_of_rows(range(len(sequences))).tolist()

    def test_more_tokens_than_fit_in_two_bytes(self) -> None:
        tokens = np.random.default_rng(0).permutation(200_000)[:140_000].astype(np.int32)
        trie = DocidTrie.build((tokens, np.arange(0, 140_001, 2)))
        assert len(trie.vocabulary) == 140_000
        assert trie.children(trie.root)[0].tolist() == sorted(tokens[::2].tolist())
        assert trie.rows(trie.root).tolist() == np.argsort(tokens[::2]).tolist()

    def test_long_docids_next_to_short_ones(self) -> None:
        long = [7] * 1000
        trie = DocidTrie.build([long + [1], [7], long, [8]])
        assert trie.rows(trie.root).tolist() == [1, 2, 0, 3]


def test_docids_without_branches_are_not_stored_as_nodes() -> None:
    trie = DocidTrie.build([[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]])
    assert trie.num_nodes == 4  # the root, [1], [1, 2], [1, 6]
    assert trie.tail_tokens.size == 6


def test_ragged_arrays_build_the_same_trie_as_lists() -> None:
    sequences = [[5, 300, 2], [], [5], [5, 300]]
    tokens = np.array([5, 300, 2, 5, 5, 300], dtype=np.int32)
    trie = DocidTrie.build((tokens, np.array([0, 3, 3, 4, 6])))
    for name in ARRAYS:
        assert np.array_equal(getattr(trie, name), getattr(DocidTrie.build(sequences), name))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[1, -1]], "token ids must be in"),
        ([[2**31]], "token ids must be in"),
        ((np.array([1, 2]), np.array([0, 1])), "offsets must rise from 0 to the number of tokens, 2"),
        ((np.array([1, 2]), np.array([0, 2, 1, 2])), "offsets must rise"),
    ],
)
def test_wrong_input_is_refused(sequences, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocidTrie.build(sequences)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 2], "row 2 does not exist: the trie has 2 documents"),
        (np.array([-1, 5]), "row -1 does not exist: the trie has 2 documents"),
        ([0.0], "rows must be integers, got float64"),
    ],
)
def test_rows_that_do_not_exist_are_refused(rows, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocidTrie.build([[1], [2]]).docids_of_rows(rows)


class TestSaved:
    """A truncated copy that loads would send queries to the wrong documents."""

    @settings(deadline=None, max_examples=20)
    @given(sequences_strategy)
    def test_round_trip(self, tmp_path_factory, sequences: list[list[int]]) -> None:
        folder = tmp_path_factory.mktemp("trie")
        trie = DocidTrie.build(sequences)
        trie.save(folder, extra={"tokenizer": "abc"})
        loaded = DocidTrie.load(folder, verify=True)
        assert loaded.extra == {"tokenizer": "abc"}
        assert nodes_by_prefix(loaded) == nodes_by_prefix(trie)
        for name in ARRAYS:
            assert np.array_equal(getattr(loaded, name), getattr(trie, name))
            assert getattr(loaded, name).dtype == getattr(trie, name).dtype

    def test_the_bytes_depend_on_the_docids_alone(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            DocidTrie.build([[3, 1], [2]]).save(tmp_path / name)
        files = sorted(file.name for file in (tmp_path / "a").iterdir())
        assert files == sorted([*(f"{name}.bin" for name in ARRAYS), "meta.json"])
        assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)

    def test_a_loaded_trie_can_be_saved_over_itself(self, tmp_path: Path) -> None:
        DocidTrie.build([[3, 1], [2]]).save(tmp_path)
        loaded = DocidTrie.load(tmp_path)
        loaded.save(tmp_path)  # it is memory-mapped: overwriting its files in place would crash
        assert loaded.rows(loaded.root).tolist() == [1, 0]
        assert DocidTrie.load(tmp_path, verify=True).num_docids == 2

    def test_a_file_of_the_wrong_size_is_named(self, tmp_path: Path) -> None:
        DocidTrie.build([[3, 1], [2]]).save(tmp_path)
        (tmp_path / "row_order.bin").write_bytes(b"123")
        with pytest.raises(UserError, match=r"row_order\.bin has 3 bytes where meta\.json says 8"):
            DocidTrie.load(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        DocidTrie.build([[3, 1], [2]]).save(tmp_path)
        (tmp_path / "tail_tokens.bin").unlink()
        with pytest.raises(UserError, match=r"tail_tokens\.bin is missing"):
            DocidTrie.load(tmp_path)

    def test_changed_content_is_found_when_asked(self, tmp_path: Path) -> None:
        DocidTrie.build([[3, 1], [2]]).save(tmp_path)
        file = tmp_path / "edge_token.bin"
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        DocidTrie.load(tmp_path)
        with pytest.raises(UserError, match=r"edge_token\.bin does not match its checksum"):
            DocidTrie.load(tmp_path, verify=True)

    def test_an_unreadable_meta_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"meta\.json is missing"):
            DocidTrie.load(tmp_path)
        (tmp_path / "meta.json").write_text("{")
        with pytest.raises(UserError, match="is not JSON"):
            DocidTrie.load(tmp_path)
        (tmp_path / "meta.json").write_text(json.dumps({"format_version": 99}))
        with pytest.raises(UserError, match="format version 99 where this program reads 1"):
            DocidTrie.load(tmp_path)
        (tmp_path / "meta.json").write_text(json.dumps({"format_version": 1, "arrays": {}}))
        with pytest.raises(UserError, match="does not describe a trie"):
            DocidTrie.load(tmp_path)
