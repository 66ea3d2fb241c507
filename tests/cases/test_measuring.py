"""Judgements and runs that gave a wrong figure, or none, without a word."""

from __future__ import annotations

import logging

import pytest

from zerogr.corpus.collection import Collection
from zerogr.corpus.judged import Query
from zerogr.errors import UserError
from zerogr.evaluation.runs import check_runs, parse_run
from zerogr.evaluation.systems import Answers


def test_a_query_that_is_a_document_does_not_find_itself() -> None:
    """ArguAna and Quora: BEIR drops the identical id."""
    answers = Answers("x", {"a": ["a", "b", "c"], "q": ["a", "b", "c"]}, scores={"a": [3, 2, 1], "q": [3, 2, 1]}, k=3)
    kept = answers.without_the_query(2)
    assert kept.run == {"a": ["b", "c"], "q": ["a", "b"]} and kept.scores == {"a": [2, 1], "q": [3, 2]} and kept.k == 2


def test_judgements_of_documents_that_the_corpus_lacks_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    collection = Collection({"q": Query("q", "x")}, {"q": {"a": 1, "gone": 1, "lost": 0}})
    with caplog.at_level(logging.WARNING):
        assert collection.restricted_to({"a"}).qrels == {"q": {"a": 1}}
    assert "2 of 3 judgements are of documents that the index lacks" in caplog.text


def test_equal_scores_of_a_run_are_ordered_by_their_ranks() -> None:
    assert parse_run("q Q0 b 2 1.5 x\nq Q0 c 1 1.5 x\nq Q0 a 3 9 x\n") == {"q": ["a", "c", "b"]}


class TestRunsAboutSomethingElse:
    RUN = Answers("theirs", {"q1": ["a"], "q2": ["b"]})

    def test_no_query_is_shared(self) -> None:
        with pytest.raises(UserError, match="'theirs' answers none of the 1 judged queries; its ids are like 'q1'"):
            check_runs([self.RUN], {"1"}, {"a"})

    def test_no_document_is_shared(self) -> None:
        with pytest.raises(UserError, match="'theirs' finds none of the 1 documents of this index"):
            check_runs([self.RUN], {"q1"}, {"docs/a"})

    def test_queries_that_are_lacking_are_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            check_runs([self.RUN], {"q1": 0, "q3": 0}, {"a"})
        assert "lacks 1 of 2 judged queries; they count as 0" in caplog.text
