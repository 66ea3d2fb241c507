from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.docids.resolve import Resolution, resolve
from zerogr.docids.rules import Limits, Terms, repair, validate
from zerogr.docids.scheme import WordScheme
from zerogr.docids.schemes.keywords import judge_keywords
from zerogr.docids.schemes.random import Random
from zerogr.docids.schemes.tfidf import Tfidf
from zerogr.docids.schemes.title import Title
from zerogr.llm.generation import Rejection
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words

BREAD = "Sourdough bread needs flour, water and salt; the starter ferments the dough and the oven bakes the crust."
CORPUS = [BREAD, "A knight moves in the shape of an L on the board.", "To be or not to be", "Naïve café 東京 c++ 3.11"]


def frequency_of(texts: list[str]) -> DocumentFrequency:
    frequency = DocumentFrequency()
    for text in texts:
        frequency.add(words(text))
    return frequency


@pytest.fixture(scope="module")
def frequency() -> DocumentFrequency:
    return frequency_of(CORPUS)


def broken(docid: str, text: str, frequency: DocumentFrequency, **limits: int) -> list[str]:
    return validate(docid.split(), Terms.of("", text, frequency), Limits(**limits), frequency)


class TestValidate:
    @pytest.mark.parametrize(
        ("docid", "limits", "rules"),
        [
            ("sourdough bread flour starter dough oven", {}, []),
            ("sourdough bread flour", {}, ["too_few_words"]),
            (
                "sourdough bread flour water salt starter ferments dough oven bakes crust",
                {},
                ["too_many_words"],
            ),
            ("sourdough bread flour starter dough dough", {}, ["repeated_word"]),
            ("sourdough bread and flour starter dough", {}, ["function_word"]),
            ("knight board shape moves bread flour", {"max_foreign_words": 4}, ["too_few_core_terms"]),
            ("sourdough bread flour starter dough knight", {}, ["too_many_foreign_words"]),
            ("sourdough bread flour starter dough knight", {"max_foreign_words": 1}, []),
            (
                "sourdough bread flour starter dough baguette",
                {"max_foreign_words": 1},
                ["unknown_word"],
            ),
            ("", {}, ["too_few_words", "too_few_core_terms"]),
        ],
    )
    def test_names_the_rules_that_are_broken(
        self, frequency: DocumentFrequency, docid: str, limits: dict[str, int], rules: list[str]
    ) -> None:
        assert broken(docid, BREAD, frequency, **limits) == rules

    def test_a_short_document_is_held_to_what_it_has(self, frequency: DocumentFrequency) -> None:
        assert broken("naïve café", "Naïve café", frequency) == []
        assert broken("café", "Naïve café", frequency) == ["too_few_words", "too_few_core_terms"]

    def test_a_document_of_function_words_is_named_by_them(self, frequency: DocumentFrequency) -> None:
        terms = Terms.of("", "To be or not to be", frequency)
        assert terms.ranked == ["to", "be", "or", "not"]
        assert broken("to be or not", "To be or not to be", frequency) == []
        assert repair([], terms, Limits(), frequency) == ["to", "be", "or", "not"]


class TestRepair:
    def test_keeps_what_is_good_in_its_order_and_fills_with_the_heaviest_terms(
        self, frequency: DocumentFrequency
    ) -> None:
        terms = Terms.of("", BREAD, frequency)
        fixed = repair("oven the knight oven flour unheard".split(), terms, Limits(), frequency)
        assert fixed[:2] == ["oven", "flour"]
        assert fixed[2:] == [term for term in terms.ranked if term not in ("oven", "flour")][:4]

    def test_fills_with_bare_numbers_last(self) -> None:
        text = "1931 1932 1933 results of the northern ploughing contest, python3 won"
        frequency = frequency_of([text, "results of the contest", "northern python3 results won"])
        docid = repair(["ploughing"], Terms.of("", text, frequency), Limits(min_words=5), frequency)
        assert sorted(docid) == ["contest", "northern", "ploughing", "python3", "won"]
        docid = repair(["1932", "ploughing"], Terms.of("", text, frequency), Limits(min_words=8), frequency)
        assert docid[:2] == ["1932", "ploughing"] and docid[-1] in ("1931", "1933")  # what was proposed stays

    def test_cuts_the_end(self, frequency: DocumentFrequency) -> None:
        candidate = words(BREAD.replace("and", "").replace("the", ""))
        fixed = repair(candidate, Terms.of("", BREAD, frequency), Limits(), frequency)
        assert fixed == [word for word in candidate if word != "needs"][:8]

    @given(
        texts=st.lists(
            st.lists(st.sampled_from("to be or not the a bread oven c++ 東京 3.11 x y1".split())), min_size=2
        ),
        own=st.integers(0, 1),
        candidate=st.lists(st.sampled_from("to the bread oven c++ 東京 3.11 x y1 unheard".split()), max_size=12),
        limits=st.builds(
            lambda low, more, core, foreign: Limits(
                min_words=low, max_words=low + more, min_core_terms=min(core, low + more), max_foreign_words=foreign
            ),
            st.integers(1, 5),
            st.integers(0, 3),
            st.integers(0, 8),
            st.integers(0, 6),
        ),
    )
    @settings(max_examples=200, deadline=None)
    def test_result_always_validates(
        self, texts: list[list[str]], own: int, candidate: list[str], limits: Limits
    ) -> None:
        joined = [" ".join(text) for text in texts]
        frequency = _Counted(joined)
        terms = Terms.of("", joined[own], frequency)
        fixed = repair(candidate, terms, limits, frequency)
        assert validate(fixed, terms, limits, frequency) == []
        if not validate(candidate, terms, limits, frequency):
            assert fixed == candidate  # what obeys the rules is not touched


class _Counted(DocumentFrequency):
    """Exact and small: 16 MiB of counters for each of two hundred examples would take longer than the test."""

    NUM_COUNTERS = 1

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.num_documents = len(texts)
        self._sets = [set(words(text)) for text in texts]

    def of(self, term: str) -> int:
        return sum(term in terms for terms in self._sets)


class TestCoverage:
    def test_by_hand(self) -> None:
        terms = Terms.of("Pear", "pear apple apple fig", _Counted([]))  # no corpus: every word is equally rare
        one, two, four = (1 + math.log(count) for count in (1, 2, 4))
        assert terms.coverage(["pear", "apple"]) == pytest.approx((four + two) / (four + two + one))
        assert terms.coverage(["pear", "pear", "unheard"]) == pytest.approx(four / (four + two + one))
        assert terms.coverage(["fig", "apple", "pear"]) == pytest.approx(1)
        assert terms.coverage([]) == 0

    def test_of_documents_without_a_topic_or_a_word(self) -> None:
        assert Terms.of("", "to be or not to be", _Counted([])).coverage(["to", "be"]) == pytest.approx(2 / 4)
        assert Terms.of("", "…", _Counted([])).coverage(["to"]) == 0


@dataclass
class _Context:
    """Of a corpus in memory."""

    frequency: DocumentFrequency
    seed: int = 0


def identified(
    scheme: Any, title: str, text: str, *, context: _Context, doc_id: str = "a", **settings: int
) -> str | None:
    made = scheme(scheme.Settings(**settings), context)
    [found] = made.identify([{"doc_id": doc_id, "title": title, "text": text}])
    return None if isinstance(found, Rejection) else found.candidates[0]


class TestSchemes:
    def test_keywords_are_valid_at_first_try_or_repaired(self, frequency: DocumentFrequency) -> None:
        terms = Terms.of("", BREAD, frequency)
        texts = [
            " Sourdough, bread, flour; starter - dough\n* Oven",
            "the bread",
            "SOURDOUGH bread flour starter dough oven",
        ]
        chosen, violations = judge_keywords(texts, terms, Limits(), frequency)
        (first, second) = chosen
        assert first == "sourdough bread flour starter dough oven" and second.startswith("bread ")
        assert list(chosen.values()) == ["lm", "repaired"] and violations == []
        _, violations = judge_keywords(texts[1:], terms, Limits(), frequency)
        assert set(violations) == {"too_few_words", "function_word", "too_few_core_terms"}

    def test_title(self, frequency: DocumentFrequency) -> None:
        context = _Context(frequency)
        assert identified(Title, "The Art of War, again", "x", context=context, max_words=3) == "the art of"
        assert identified(Title, "", "Some text that is long", context=context, max_words=3) == "some text that"
        assert identified(Title, "?!", "…", context=context) is None

    def test_tfidf_takes_the_heaviest(self, frequency: DocumentFrequency) -> None:
        context, terms = _Context(frequency), Terms.of("Bread", BREAD, frequency)
        docid = identified(Tfidf, "Bread", BREAD, context=context)
        assert docid is not None and docid.split() == terms.ranked[:8] and terms.ranked[0] == "bread"
        assert identified(Tfidf, "", "…", context=context) is None

    def test_random_depends_on_seed_and_document_alone(self, frequency: DocumentFrequency) -> None:
        def docid(seed: int, doc_id: str) -> str:
            return identified(Random, "", "x", context=_Context(frequency, seed), doc_id=doc_id) or ""

        assert docid(0, "a") == docid(0, "a")
        assert len({docid(0, "a"), docid(1, "a"), docid(0, "b")}) == 3
        assert len(docid(0, "a").split()) == 6
        assert words(docid(0, "a")) == docid(0, "a").split()


def words_of_at_most(max_words: int) -> WordScheme:
    return WordScheme(Tfidf.Settings(max_words=max_words), None)


def resolved(rows: list[tuple[str, list[str], list[str]]], max_words: int = 8) -> Resolution:
    content, candidates, terms = ([row[i] for row in rows] for i in range(3))
    texts = pa.list_(pa.string())
    return resolve(
        pa.array(content, pa.string()), pa.array(candidates, texts), pa.array(terms, texts), words_of_at_most(max_words)
    )


class TestResolve:
    """Two documents under one docid could never be told apart by any query."""

    def test_without_collisions_the_first_candidate_stays(self) -> None:
        resolution = resolved([("1", ["a b", "x y"], []), ("2", ["c d"], [])])
        assert resolution.docids == ["a b", "c d"]
        assert set(resolution.counts.values()) == {0}

    def test_equal_content_shares_its_docid(self) -> None:
        resolution = resolved([("1", ["a b"], []), ("2", ["c"], []), ("1", ["other"], [])])
        assert resolution.docids == ["a b", "c", "a b"]
        assert resolution.counts["duplicates"] == 1
        assert resolution.counts["collisions"] == 0

    def test_the_next_candidate(self) -> None:
        resolution = resolved([("1", ["a b"], []), ("2", ["a b", "c d"], [])])
        assert resolution.docids == ["a b", "c d"]
        assert resolution.choice.tolist() == [0, 1]
        assert resolution.counts["resolved_by_candidate"] == 1

    def test_nobody_loses_a_first_candidate_to_a_second(self) -> None:
        resolution = resolved([("1", ["a"], []), ("2", ["a", "b", "c"], []), ("3", ["b"], [])])
        assert resolution.docids == ["a", "c", "b"]

    def test_terms_that_the_owner_lacks(self) -> None:
        resolution = resolved([("1", ["a b"], ["a", "b", "p"]), ("2", ["a b"], ["a", "p", "q", "b"])])
        assert resolution.docids == ["a b", "a b q"]
        assert resolution.choice.tolist() == [0, -1]
        assert resolution.counts["resolved_by_terms"] == 1

    def test_terms_replace_the_last_word_of_a_full_docid(self) -> None:
        resolution = resolved([("1", ["a b"], ["a", "b"]), ("2", ["a b"], ["a", "b", "q"])], max_words=2)
        assert resolution.docids == ["a b", "a q"]

    def test_an_ordinal_as_the_last_resort(self) -> None:
        rows = [(str(i), ["a b"], ["a", "b"]) for i in range(4)]
        resolution = resolved(rows)
        assert resolution.docids == ["a b", "a b 2", "a b 3", "a b 4"]
        assert resolution.counts["resolved_by_ordinal"] == 3
        assert resolved(rows, max_words=1).docids == ["a b", "2", "3", "4"]

    def test_an_ordinal_skips_a_docid_that_has_it(self) -> None:
        rows = [("1", ["a"], ["a"]), ("2", ["a 2"], ["a"]), ("3", ["a"], ["a"])]
        assert resolved(rows).docids == ["a", "a 2", "a 3"]

    def test_no_rows(self) -> None:
        assert resolved([]).docids == []

    @given(
        rows=st.lists(
            st.tuples(
                st.sampled_from("123456789"),
                st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True), min_size=1, max_size=3),
                st.lists(st.sampled_from("abcde"), max_size=4, unique=True),
            ),
            max_size=14,
        ),
        max_words=st.integers(3, 4),
        cut=st.integers(0, 14),
    )
    @settings(max_examples=300, deadline=None)
    def test_only_equal_content_shares_a_docid(
        self, rows: list[tuple[str, list[list[str]], list[str]]], max_words: int, cut: int
    ) -> None:
        # Equal content has equal words, so equal candidates and terms.
        first = {content: (candidates, terms) for content, candidates, terms in reversed(rows)}
        table = [
            (content, [" ".join(words) for words in first[content][0]], first[content][1]) for content, _, _ in rows
        ]
        resolution = resolved(table, max_words)
        assert len(resolution.docids) == len(table)
        pairs = {(row[0], docid) for row, docid in zip(table, resolution.docids, strict=True)}
        assert len(pairs) == len(first)  # equal content, equal docid
        assert len(set(resolution.docids)) == len(first)
        assert all(len(docid.split()) <= max_words for docid in resolution.docids)
        for (_, candidates, _), docid, choice in zip(table, resolution.docids, resolution.choice, strict=True):
            assert choice < 0 or docid == candidates[choice]

        # Arrow arrays in two pieces, as from two shards, are the same rows.
        texts = pa.list_(pa.string())
        columns = [
            pa.chunked_array([pa.array(part, kind) for part in (values[:cut], values[cut:])]).combine_chunks()
            for values, kind in (
                ([row[0] for row in table], pa.string()),
                ([row[1] for row in table], texts),
                ([row[2] for row in table], texts),
            )
        ]
        again = resolve(*columns, words_of_at_most(max_words))
        assert again.docids == resolution.docids
        assert again.counts == resolution.counts
