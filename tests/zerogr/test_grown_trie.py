"""A trie that has grown answers as one that was built from all its documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.decoding import STRATEGIES, decode
from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.grown import GrownTrie, same_docids

END = 4
docids = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=14)


def grown(base: list[list[int]], addition: list[list[int]]) -> GrownTrie:
    """Returns both as one."""
    first, second = DocidTrie.build(base), DocidTrie.build(addition)
    return GrownTrie(first, second, same_docids(first, second))


@st.composite
def a_case(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int] | None, list[int] | None]:
    """Documents of a base and of an addition, which may share docids, an allow and a deny set."""
    base, addition = draw(docids), draw(docids)
    number = len(base) + len(addition)
    rows = st.lists(st.integers(0, number - 1), max_size=20) if number else st.just([])
    return base, addition, draw(st.none() | rows), draw(st.none() | rows)


def scores(prefixes: list[tuple[int, ...]]) -> np.ndarray:
    """A table of probabilities: any prefix has its own, and some are equal."""
    return np.stack([
        np.round(np.random.default_rng([1 + t for t in prefix]).normal(size=END + 1), 1) for prefix in prefixes
    ])  # fmt: skip


class TestAgainstATrieBuiltFromScratch:
    """A wrong merge would lose documents, or find removed ones."""

    @settings(deadline=None, max_examples=300)
    @given(a_case())
    def test_every_prefix(self, case) -> None:
        base, addition, allow, deny = case
        whole = grown(base, addition)
        expected: DocidTrie | FilteredTrie = DocidTrie.build(base + addition)
        if allow is not None or deny is not None:
            whole, expected = whole.filter(allow=allow, deny=deny), expected.filter(allow=allow, deny=deny)
        assert whole.num_docids == expected.num_docids
        waiting = [(whole.root, expected.root)]
        while waiting:
            node, twin = waiting.pop()
            docid, num_docids = whole.docids_below(node)
            assert num_docids == expected.docids_below(twin)[1]
            assert whole.ends(node).tolist() == expected.ends(twin).tolist()
            if len(whole.ends(node)):
                assert whole.docid_documents(docid).tolist() == expected.ends(twin).tolist()
            if num_docids == 1:
                assert whole.tail(node).tolist() == expected.tail(twin).tolist()
                assert (
                    whole.docid_documents(docid).tolist()
                    == expected.docid_documents(expected.docids_below(twin)[0]).tolist()
                )
            tokens, nodes = whole.children(node)
            twin_tokens, twins = expected.children(twin)
            assert tokens.tolist() == twin_tokens.tolist()
            assert (tokens.dtype, nodes.dtype) == (np.int32, np.int64)
            waiting += zip(nodes.tolist(), twins.tolist(), strict=True)

    @settings(deadline=None, max_examples=60)
    @given(a_case(), st.integers(1, 6), st.sampled_from(sorted(STRATEGIES)), st.sampled_from(["allowed", "vocabulary"]))
    def test_every_strategy(self, case, k: int, strategy: str, normalise: str) -> None:
        base, addition, allow, deny = case
        found, expected = (
            list(
                decode(
                    scores,
                    trie.filter(allow=allow, deny=deny),
                    k,
                    eos_token_id=END,
                    strategy=strategy,
                    normalise=normalise,
                )
            )
            for trie in (grown(base, addition), DocidTrie.build(base + addition))
        )
        assert found == expected

    @settings(deadline=None, max_examples=100)
    @given(a_case(), st.data())
    def test_a_filter_of_a_filter_and_the_merged_trie(self, case, data: st.DataObject) -> None:
        base, addition, allow, deny = case
        number = len(base) + len(addition)
        more = data.draw(st.lists(st.integers(0, number - 1), max_size=20) if number else st.just([]))
        twice = grown(base, addition).filter(allow=allow, deny=deny).filter(deny=more)
        left = set(range(number) if allow is None else allow) - set(deny or ()) - set(more)
        assert sorted(set(range(number)) - left) == twice.denied.tolist()
        merged = twice.merged()
        assert merged.num_docids == twice.num_docids
        answers = [
            list(decode(scores, trie, 30, eos_token_id=END, strategy="beam", beam_width=30)) for trie in (twice, merged)
        ]
        assert answers[0] == answers[1]
        assert {each.row for each in answers[0]} == left


def test_a_docid_is_found_by_its_tokens() -> None:
    sequences = [[1, 2, 3], [1, 2], [5], [1, 2, 3], [7, 7, 7, 7]]
    trie = DocidTrie.build(sequences)
    for row, sequence in enumerate(sequences):
        assert row in trie.docid_documents(trie.find(sequence)).tolist()
    for absent in ([], [1], [5, 5], [7, 7, 7], [7, 7, 7, 7, 7], [9]):
        assert trie.find(absent) == -1
    assert DocidTrie.build([]).find([1]) == -1
    assert DocidTrie.build([[]]).find([]) == 0


@pytest.mark.parametrize("rows", [[1.5], [2], [-1]])
def test_rows_that_do_not_exist(rows: list[float]) -> None:
    with pytest.raises(ValueError, match=r"row"):
        grown([[1]], [[2]]).filter(deny=rows)
