"""A recorded search: what is shown of it is what the search saw, and what is not shown is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.stages import build_index
from tests.zerogr.test_decoding import (
    EOS,
    Docid,
    TableModel,
    allowed_tokens,
    docids_strategy,
    path_log_probs,
    some_docids,
)
from zerogr import Retriever
from zerogr.config.file import validate_config
from zerogr.decoding import STRATEGIES, DecodedList
from zerogr.decoding.decoder import Underway, policy
from zerogr.decoding.scoring import CallableScorer
from zerogr.decoding.tree import ScoredTree
from zerogr.search.record import MOST_PARTS, Branch, Explained, Record, Texts, record
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


QUERIES = ["what about the history of coffee", "the price of sailing"]
WAIT_S = 300


def explained(retriever: Retriever, **how: Any) -> list[Explained]:
    answering = retriever.answering()
    request = answering.ask(QUERIES, is_recorded=True, **how)
    request.found.result(WAIT_S)
    answering.close()
    return answering.explained(request)


def leaves(branch: Branch, path: tuple[Branch, ...] = ()) -> dict[str, tuple[Branch, ...]]:
    """Returns docid -> the branches that lead to it, for every leaf that is kept."""
    found = {branch.docid: path} if branch.docid is not None else {}
    for child in branch.children:
        found |= leaves(child, (*path, child))
    return found


@pytest.mark.usefixtures("one_thread")
class TestAnIndex:
    """What is explained is the search that anybody gets."""

    @pytest.fixture(scope="class")
    def uri(self, tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path) -> str:
        uri = str(tmp_path_factory.mktemp("recorded") / "index")
        build_index(validate_config(tiny.settings(uri, collection, tiny_model)))
        return uri

    @pytest.mark.parametrize("decoder", ["reference", "device"])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_tree_has_what_a_trace_has(self, uri: str, strategy: str, decoder: str) -> None:
        retriever = Retriever.load(uri, device="cpu", decoder=decoder).restricted(deny=["bread-1"])
        every = explained(retriever, k=5, strategy=strategy, fields=["title"])
        searched = retriever.search(QUERIES, k=5, strategy=strategy, fields=["title"])
        traced = retriever.trace(QUERIES, [[hit.doc_id for hit in each.hits] for each in every])
        for each, expected, traces in zip(every, searched, traced, strict=True):
            assert [(hit.doc_id, hit.title) for hit in each.hits] == [(hit.doc_id, hit.title) for hit in expected]
            assert each.tree is not None and each.parts is None and each.tree.strategy == strategy
            assert each.tree.num_docids == 39 and each.tree.root.num_hits == 5
            paths = leaves(each.tree.root)
            for rank, (hit, trace) in enumerate(zip(each.hits, traces, strict=True), 1):
                path = paths[hit.docid]
                steps = trace.steps[: len(path)]
                assert (path[-1].best_rank, path[-1].num_hits) == (rank, 1)
                assert [each.token for each in path] == [retriever.writer.token_text(step.token) for step in steps]
                assert [each.log_prob for each in path] == pytest.approx([step.log_prob for step in steps], abs=1e-4)
                assert path[-1].path_log_prob == pytest.approx(hit.score, abs=1e-4)
                assert hit.docid.endswith((path[-1].rest or "").strip())

    def test_documents_that_may_not_be_found(self, uri: str) -> None:
        nothing = explained(Retriever.load(uri, device="cpu"), allow=[])
        assert [each.as_json() for each in nothing] == [{"hits": [], "tree": None}] * 2

    def test_sums_have_their_parts(self, tmp_path: Path, collection: Path, tiny_model: Path) -> None:
        hybrid = {"docids__scheme": "terms", "ranking__name": "mix"}
        build_index(validate_config(tiny.settings(str(tmp_path), collection, tiny_model, **hybrid)))
        retriever = Retriever.load(str(tmp_path), device="cpu")
        for each, expected in zip(explained(retriever, k=4), retriever.search(QUERIES, k=4), strict=True):
            assert each.tree is None and each.parts is not None
            assert [hit.doc_id for hit in each.hits] == [hit.doc_id for hit in expected]
            for hit, parts, value in zip(each.hits, each.parts, each.as_json()["hits"], strict=True):
                assert len(parts) <= MOST_PARTS
                assert sum(part.score for part in parts) == pytest.approx(hit.score, rel=1e-3)
                assert value["parts"][0] == dict(ranker=parts[0].ranker, text=parts[0].text,
                    probability=parts[0].probability, score=parts[0].score)  # fmt: skip
