from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie

Docid = tuple[int, ...]

sequences_strategy = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=20)


@st.composite
def sequences_and_rows(draw: st.DrawFn) -> tuple[list[list[int]], list[int] | None, list[int] | None]:
    """Docids with an allow set and a deny set, either of which may be missing, unsorted or repeat rows."""
    sequences = draw(sequences_strategy)
    rows = st.lists(st.integers(0, len(sequences) - 1), max_size=30) if sequences else st.just([])
    return sequences, draw(st.none() | rows), draw(st.none() | rows)


def allowed_rows(num_rows: int, allow: Sequence[int] | None, deny: Sequence[int] | None) -> list[int]:
    return sorted(set(range(num_rows) if allow is None else allow) - set(deny or ()))


def assert_like_a_trie_of(view: FilteredTrie, sequences: list[list[int]], allowed: list[int]) -> None:
    """Walks the view beside a trie built of the allowed documents alone."""
    rebuilt = DocidTrie.build([sequences[row] for row in allowed])
    places = {docid: place for place, docid in enumerate(sorted({tuple(s) for s in sequences}))}
    assert view.num_docids == rebuilt.num_docids
    waiting: list[tuple[Docid, int, int]] = [((), view.root, rebuilt.root)]
    while waiting:
        prefix, node, twin = waiting.pop()
        below = sorted({tuple(sequences[row]) for row in allowed if tuple(sequences[row][: len(prefix)]) == prefix})
        first, num_docids = view.docids_below(node)
        assert num_docids == rebuilt.docids_below(twin)[1] == len(below)
        assert view.ends(node).tolist() == [allowed[row] for row in rebuilt.ends(twin)]
        if below:
            assert first == places[below[0]]
            assert view.docid_documents(first).tolist() == [row for row in allowed if tuple(sequences[row]) == below[0]]
        if num_docids == 1:
            assert view.tail(node).tolist() == rebuilt.tail(twin).tolist() == list(below[0][len(prefix) :])
            assert view.tail(node).dtype == np.int32
        tokens, nodes = view.children(node)
        tokens_of_twin, nodes_of_twin = rebuilt.children(twin)
        assert tokens.tolist() == tokens_of_twin.tolist()
        assert (tokens.dtype, nodes.dtype) == (np.int32, np.int64)
        steps = zip(tokens.tolist(), nodes.tolist(), nodes_of_twin.tolist(), strict=True)
        waiting += [((*prefix, token), child, twin_child) for token, child, twin_child in steps]


class TestAgainstATrieOfTheAllowedDocuments:
    """A wrong count would show one tenant's documents to another, or hide a tenant's own."""

    @settings(deadline=None, max_examples=300)
    @given(sequences_and_rows())
    def test_every_prefix(self, case) -> None:
        sequences, allow, deny = case
        view = DocidTrie.build(sequences).filter(allow=allow, deny=deny)
        assert_like_a_trie_of(view, sequences, allowed_rows(len(sequences), allow, deny))

    @settings(deadline=None, max_examples=200)
    @given(sequences_and_rows(), st.data())
    def test_a_filter_of_a_filter(self, case, data: st.DataObject) -> None:
        sequences, allow, deny = case
        rows = st.lists(st.integers(0, len(sequences) - 1), max_size=30) if sequences else st.just([])
        also_allow, also_deny = data.draw(st.none() | rows), data.draw(st.none() | rows)
        view = DocidTrie.build(sequences).filter(allow=allow, deny=deny).filter(allow=also_allow, deny=also_deny)
        both = set(allowed_rows(len(sequences), allow, deny)) & set(allowed_rows(len(sequences), also_allow, also_deny))
        assert_like_a_trie_of(view, sequences, sorted(both))

    @pytest.mark.parametrize("as_type", [list, tuple, np.array, lambda rows: np.array(rows, dtype=np.uint32)])
    def test_rows_of_any_integer_type(self, as_type) -> None:
        sequences = [[1, 2], [1], [3], [1, 2]]
        view = DocidTrie.build(sequences).filter(allow=as_type([3, 1, 1]), deny=as_type([1]))
        assert_like_a_trie_of(view, sequences, [3])

    def test_more_tokens_than_fit_in_two_bytes(self) -> None:
        sequences = np.random.default_rng(0).permutation(140_000).reshape(-1, 2).tolist()
        view = DocidTrie.build(sequences).filter(allow=[5, 60_000])
        assert_like_a_trie_of(view, sequences, [5, 60_000])

    def test_a_saved_trie(self, tmp_path) -> None:
        sequences = [[1, 2, 3], [1, 2, 4], [1], [5], [5]]
        DocidTrie.build(sequences).save(tmp_path)
        assert_like_a_trie_of(DocidTrie.load(tmp_path).filter(deny=[0, 3]), sequences, [1, 2, 4])


class TestByHand:
    def test_a_docid_stays_while_one_of_its_documents_does(self) -> None:
        trie = DocidTrie.build([[1, 2], [1, 2], [1, 3]])
        view = trie.filter(deny=[0])
        assert view.num_docids == 2
        assert view.docid_documents(0).tolist() == [1]
        assert trie.filter(deny=[1, 0, 1]).num_docids == 1

    def test_a_docid_that_begins_another(self) -> None:
        """Only its continuation is denied, then only itself."""
        trie = DocidTrie.build([[1], [1, 2], [3]])
        (one, _) = trie.children(trie.root)[1].tolist()
        shorter, longer = trie.filter(deny=[1]), trie.filter(deny=[0])
        assert (shorter.docids_below(one), shorter.ends(one).tolist()) == ((0, 1), [0])
        assert (shorter.tail(one).tolist(), shorter.children(one)[0].tolist()) == ([], [])
        assert (longer.docids_below(one), longer.ends(one).tolist()) == ((1, 1), [])
        assert (longer.tail(one).tolist(), longer.children(one)[0].tolist()) == ([2], [2])

    def test_the_tail_goes_on_where_the_trie_branches(self) -> None:
        trie = DocidTrie.build([[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7], [8]])
        view = trie.filter(deny=[1, 2, 3])
        assert view.docids_below(view.root) == (0, 1)
        assert view.tail(view.root).tolist() == [1, 2, 3, 4, 5]

    def test_nodes_inside_a_tail(self) -> None:
        trie = DocidTrie.build([[1, 2, 3, 4], [5]])
        view = trie.filter(allow=[0])
        tokens, nodes = [], [view.root]
        while len(nodes):
            node = nodes[0]
            assert view.docids_below(node) == (0, 1)
            assert tokens + view.tail(node).tolist() == [1, 2, 3, 4]
            more, nodes = view.children(node)
            tokens += more.tolist()
        assert (tokens, view.ends(node).tolist()) == ([1, 2, 3, 4], [0])

    @pytest.mark.parametrize("sequences", [[[1, 2], [1, 3], [], [4]], [[1, 2]], [[]], []])
    @pytest.mark.parametrize("side", ["allow nothing", "deny everything", "both"])
    def test_nothing_is_left(self, sequences: list[list[int]], side: str) -> None:
        rows = list(range(len(sequences)))
        sets = {
            "allow nothing": {"allow": []},
            "deny everything": {"deny": rows},
            "both": {"allow": rows, "deny": rows},
        }
        view = DocidTrie.build(sequences).filter(**sets[side])
        assert view.num_docids == 0
        assert view.docids_below(view.root)[1] == 0
        assert view.children(view.root)[0].tolist() == []
        assert view.ends(view.root).tolist() == []

    def test_deny_wins(self) -> None:
        view = DocidTrie.build([[1], [2], [3]]).filter(allow=[0, 1], deny=[1, 2])
        assert view.children(view.root)[0].tolist() == [1]

    def test_no_sets_leave_everything(self) -> None:
        sequences = [[1, 2], [1], [], [1, 2]]
        assert_like_a_trie_of(DocidTrie.build(sequences).filter(), sequences, [0, 1, 2, 3])

    def test_the_trie_stays_as_it_is(self) -> None:
        trie = DocidTrie.build([[1], [2]])
        trie.filter(deny=[0])
        assert trie.children(trie.root)[0].tolist() == [1, 2]
        assert trie.num_docids == 2


class TestWrongRows:
    """A mask of booleans, or row numbers of another index, would filter out the wrong documents in silence."""

    @pytest.mark.parametrize("side", ["allow", "deny"])
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([0, 3], "row 3 does not exist: the trie has 3 documents"),
            ([-1], "row -1 does not exist: the trie has 3 documents"),
            ([True, False, True], "rows must be integers, got bool"),
            (["a"], "rows must be integers, got <U1"),
        ],
    )
    def test_are_refused(self, side: str, rows, message: str) -> None:
        trie = DocidTrie.build([[1], [2], [3]])
        for start in (trie, trie.filter(allow=[0]), trie.filter(deny=[0])):
            with pytest.raises(ValueError, match=message):
                start.filter(**{side: rows})
