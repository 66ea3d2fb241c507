"""A recorded search: what is shown of it is what the search saw, and what is not shown is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zerogr.test_decoding import (
    EOS,
    Docid,
    TableModel,
    allowed_tokens,
    docids_strategy,
    path_log_probs,
    some_docids,
)
from zerogr.decoding import STRATEGIES, DecodedList
from zerogr.decoding.decoder import Underway, policy
from zerogr.decoding.scoring import CallableScorer
from zerogr.decoding.tree import ScoredTree
from zerogr.search.record import Branch, Record, Texts, record
from zerogr.trie import DocidTrie

EVERYTHING = {"most_children": 100, "most_branches": 10_000}


def text(tokens: Any) -> str:
    return " ".join(str(token) for token in tokens if token != EOS)


TEXTS = Texts(lambda token: "<end>" if token == EOS else str(token), text, text)


def searched(
    docids: list[Docid], k: int, strategy: str, seed: int, normalise: str, rows: Any = None
) -> tuple[ScoredTree, DecodedList]:
    """Returns the tree of a search, and what was found; of some rows only, where they are given."""
    trie = DocidTrie.build(docids)
    tree = ScoredTree(trie if rows is None else trie.filter(allow=rows), EOS, normalise)
    scorer = CallableScorer(TableModel(seed))
    underway = Underway(tree, policy(strategy)(tree, k, seed))
    while underway.requests:
        underway.resume(scorer.log_probs(underway.requests, normalise))
    return tree, underway.documents(k, strategy)


def recorded(tree: ScoredTree, found: DecodedList, **limits: int) -> Record:
    return record(tree, found, [each.row for each in found], TEXTS, strategy="any", **limits)


def walk(branch: Branch, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Branch]]:
    """Yields every branch with the tokens that lead to it."""
    yield path, branch
    for child in branch.children:
        yield from walk(child, (*path, child.token))


def written(path: tuple[str, ...], leaf: Branch) -> str:
    """Returns the docid that a path and the rest of its leaf make."""
    return " ".join([*(token for token in path if token != "<end>"), *([leaf.rest] if leaf.rest else [])])


@pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEveryStrategy:
    """Figures that are not the search's own would explain another search."""

    @settings(deadline=None, max_examples=25)
    @given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 50))
    def test_probabilities_are_the_models(self, strategy, normalise, docids, k, seed) -> None:
        tree, found = searched(docids, k, strategy, seed, normalise)
        kept = recorded(tree, found, **EVERYTHING)
        for path, branch in walk(kept.root):
            tokens = tuple(EOS if token == "<end>" else int(token) for token in path)
            docid = next(docid for docid in docids if (*docid, EOS)[: len(tokens)] == tokens)
            steps = path_log_probs(TableModel(seed), docids, docid, normalise)[: len(tokens)]
            assert branch.path_log_prob == pytest.approx(sum(steps), abs=1e-9)
            assert branch.log_prob == pytest.approx(steps[-1] if steps else 0.0, abs=1e-9)
            for child in branch.children:
                assert child.path_log_prob == pytest.approx(branch.path_log_prob + child.log_prob, abs=1e-9)
            below = {docid for docid in docids if (*docid, EOS)[: len(tokens)] == tokens}
            assert branch.num_docids == len(below)
            assert (branch.docid is not None) == (branch.rest is not None) == (len(below) == 1)
            if branch.docid is not None:
                assert branch.docid == written(path, branch) == text(below.pop())

    @settings(deadline=None, max_examples=25)
    @given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 50))
    def test_all_that_was_considered_is_there(self, strategy, normalise, docids, k, seed) -> None:
        tree, found = searched(docids, k, strategy, seed, normalise)
        kept = recorded(tree, found, **EVERYTHING)
        every = dict(walk(kept.root))
        assert kept.num_shown == kept.num_considered == len(every) - 1
        for path, branch in every.items():
            assert branch.num_left_out == 0 and branch.left_out_probability == 0
            if branch.children:
                tokens = tuple(map(int, path))
                assert len(branch.children) == len(allowed_tokens(docids, tokens))
                assert sum(child.num_docids for child in branch.children) == branch.num_docids
                assert branch.is_followed
            assert [child.log_prob for child in branch.children] == sorted(
                (child.log_prob for child in branch.children), reverse=True
            )

    @settings(deadline=None, max_examples=25)
    @given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 50))
    def test_hits_are_marked_along_their_paths(self, strategy, normalise, docids, k, seed) -> None:
        tree, found = searched(docids, k, strategy, seed, normalise)
        every = dict(walk(recorded(tree, found, **EVERYTHING).root))
        for path, branch in every.items():
            tokens = tuple(EOS if token == "<end>" else int(token) for token in path)
            ranks = [n for n, hit in enumerate(found, 1) if (*hit.tokens, EOS)[: len(tokens)] == tokens]
            assert (branch.best_rank, branch.num_hits) == (min(ranks, default=None), len(ranks))
            if branch.best_rank == 1 and branch.docid is not None:
                assert branch.docid == text(found[0].tokens)
        assert sum(branch.best_rank == 1 and branch.docid is not None for branch in every.values()) == 1

    @settings(deadline=None, max_examples=25)
    @given(
        docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 50), children=st.integers(1, 4),
        branches=st.integers(1, 20),
    )  # fmt: skip
    def test_it_is_bounded_and_says_so(self, strategy, normalise, docids, k, seed, children, branches) -> None:
        tree, found = searched(docids, k, strategy, seed, normalise)
        kept = recorded(tree, found, most_children=children, most_branches=branches)
        every = dict(walk(kept.root))
        whole = dict(walk(recorded(tree, found, **EVERYTHING).root))
        longest = max(len(path) for path in whole)
        assert kept.num_shown == len(every) - 1 <= max(branches, longest)
        assert any(branch.best_rank == 1 and branch.docid is not None for branch in every.values()), "the first hit"
        for path, branch in every.items():
            assert sum(child.best_rank is None for child in branch.children) <= children
            assert branch.num_left_out == len(whole[path].children) - len(branch.children)
            shown = {child.token for child in branch.children}
            rest = [2.718281828459045**each.log_prob for each in whole[path].children if each.token not in shown]
            assert branch.left_out_probability == pytest.approx(sum(rest), abs=1e-9)

    @settings(deadline=None, max_examples=10)
    @given(docids=some_docids, k=st.integers(1, 25), data=st.data())
    def test_documents_that_may_not_be_found_are_not_shown(self, strategy, normalise, docids, k, data) -> None:
        rows = sorted(data.draw(st.sets(st.integers(0, len(docids) - 1), min_size=1)))
        some = recorded(*searched(docids, k, strategy, 0, "allowed", rows), **EVERYTHING)
        alone = recorded(*searched([docids[row] for row in rows], k, strategy, 0, "allowed"), **EVERYTHING)
        assert some == alone

    @settings(deadline=None, max_examples=10)
    @given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 50))
    def test_it_survives_json(self, strategy, normalise, docids, k, seed) -> None:
        kept = recorded(*searched(docids, k, strategy, seed, normalise))
        value = json.loads(json.dumps(asdict(kept)))
        assert Record.of(value) == kept
        assert Record.of({**value, "newer": 1, "root": {**value["root"], "newer": 1}}) == kept


@settings(deadline=None, max_examples=30)
@given(docids=docids_strategy.filter(lambda docids: len(set(docids)) > 3))
def test_recording_leaves_the_tree_as_it_was(docids: list[Docid]) -> None:
    """What was never reached is looked up for the record, and must not count as reached in the next."""
    tree, found = searched(docids, 2, "beam", 0, "allowed")
    assert recorded(tree, found, **EVERYTHING) == recorded(tree, found, **EVERYTHING)
