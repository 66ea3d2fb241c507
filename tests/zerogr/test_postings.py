"""A wrong posting is a document that a search never finds, or finds for words that it has not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.errors import UserError
from zerogr.postings import HALF_PLACE, Postings, words_of
from zerogr.words import stem

WORDS = "wing wings lift lifting drag heat flow slab slabs".split()
DOCUMENTS = st.lists(
    st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), st.lists(st.sampled_from(WORDS), max_size=5)),
    min_size=1,
    max_size=9,
)
"""Docids and terms."""
Documents = list[tuple[list[str], list[str]]]


def build(documents: Documents, num_terms: int = 99, parts: int = 1) -> tuple[Postings, list[str]]:
    bounds = np.linspace(0, len(documents), parts + 1).astype(int)
    return Postings.build(
        (
            (
                pa.array([" ".join(docid) for docid, _ in documents[first:last]], pa.string()),
                pa.array([terms for _, terms in documents[first:last]], pa.list_(pa.string())),
            )
            for first, last in zip(bounds, bounds[1:], strict=False)
        ),
        num_terms,
    )


def of_docids(*docids: str) -> tuple[Postings, list[str]]:
    return build([(docid.split(), []) for docid in docids])


def scores_by_hand(documents: Documents, num_terms: int, probabilities: dict[str, float]) -> list[float]:
    """The formula of the module, word by word."""
    scores = []
    for docid, terms in documents:
        score = 0.0
        for place, word in enumerate(words_of(" ".join(docid), terms, num_terms)):
            mass = sum(p for other, p in probabilities.items() if stem(other) == stem(word))
            score += math.log(1 + mass / 0.003) / (1 + place / HALF_PLACE)
        scores.append(score)
    return scores


def test_words_of_a_document() -> None:
    terms = ["lifting", "heat", "wings", "slab"]
    assert words_of("wing lift wing", terms, 99) == ["wing", "lift", "heat", "slab"]
    assert words_of("wing lift wing", terms, 3) == ["wing", "lift", "heat"]
    assert words_of("wing lift wing", terms, 0) == ["wing", "lift"]


class TestRank:
    @settings(deadline=None)
    @given(
        DOCUMENTS,
        st.integers(0, 7),
        st.lists(st.floats(0.0001, 1), min_size=9, max_size=9),
        st.integers(1, 12),
        st.integers(1, 2),
    )
    def test_against_the_formula(
        self, documents: Documents, num_terms: int, probabilities: list[float], k: int, parts: int
    ) -> None:
        postings, words = build(documents, num_terms, parts)
        each = [words_of(" ".join(docid), terms, num_terms) for docid, terms in documents]
        assert words == sorted({word for of_document in each for word in of_document})
        assert postings.num_rows == len(documents)
        found = dict(zip(words, probabilities, strict=False))
        masses = list(found.values())
        rows, scores = postings.rank(range(len(words)), masses, k)
        expected = scores_by_hand(documents, num_terms, found)
        order = sorted(range(len(documents)), key=lambda row: (-round(expected[row], 9), row))[:k]
        assert scores == pytest.approx([expected[row] for row in order])
        assert [round(expected[row], 9) for row in rows] == [round(expected[row], 9) for row in order]
        for row, of_document in enumerate(each):
            parts_of_score = postings.of_row(row, range(len(words)), masses)
            assert {stem(words[word]) for word, _, _ in parts_of_score} == set(map(stem, of_document))
            assert sum(score for _, _, score in parts_of_score) == pytest.approx(expected[row])

    def test_only_documents_with_a_word_that_was_found(self) -> None:
        postings, words = of_docids("lift drag", "heat", "wings heat")
        rows, _ = postings.rank([words.index("drag"), words.index("wings")], [0.2, 0.5], 10)
        assert rows.tolist() == [2, 0]

    def test_forms_of_a_word_are_one_word(self) -> None:
        postings, words = of_docids("wing drag", "wings heat")
        rows, scores = postings.rank([words.index("wing")], [0.3], 10)
        assert rows.tolist() == [0, 1] and scores[0] == scores[1]

    def test_equal_scores_in_row_order(self) -> None:
        postings, _ = of_docids(*["heat"] * 9)
        assert postings.rank([0], [0.4], 4)[0].tolist() == [0, 1, 2, 3]


class TestNamed:
    @settings(deadline=None)
    @given(DOCUMENTS, st.lists(st.sampled_from([*WORDS, "unheard", "the"]), max_size=5), st.data())
    def test_as_rare_as_they_are_among_the_documents_that_may_be_found(
        self, documents: Documents, query: list[str], data: st.DataObject
    ) -> None:
        postings, words = build(documents)
        allow = data.draw(st.none() | st.lists(st.integers(0, len(documents) - 1)))
        if allow is not None:
            postings, _ = postings.filter(allow=allow)
        may = [document for row, document in enumerate(documents) if allow is None or row in allow]
        stems = [{stem(word) for word in [*docid, *terms]} for docid, terms in may]
        counts = {one: sum(one in of_document for of_document in stems) for one in map(stem, query)}
        times = [stem(word) for word in query]
        rarity = {
            one: times.count(one) * math.log((len(may) + 1) / (count + 0.5)) for one, count in counts.items() if count
        }
        texts, rows, probabilities = postings.named(" and ".join(query))
        assert set(texts) <= set(query)
        assert [stem(text) for text in texts] == [stem(words[row]) for row in rows]
        expected = {one: each / sum(rarity.values()) for one, each in rarity.items()}
        assert dict(zip(map(stem, texts), probabilities, strict=True)) == pytest.approx(expected)

    def test_the_form_that_stands_first(self) -> None:
        assert of_docids("wing", "heat")[0].named("Wings or wing?")[0] == ["wings"]

    def test_nothing_is_named(self) -> None:
        for postings in (of_docids("wing")[0], build([])[0]):
            texts, rows, probabilities = postings.named("lift")
            assert (texts, rows.tolist(), probabilities.tolist()) == ([], [], [])


class TestFilter:
    @settings(deadline=None)
    @given(DOCUMENTS, st.data())
    def test_as_if_the_others_were_not_there(self, documents: Documents, data: st.DataObject) -> None:
        rows = st.lists(st.integers(0, len(documents) - 1))
        allow, deny, later = data.draw(st.none() | rows), data.draw(st.none() | rows), data.draw(rows)
        postings, words = build(documents)
        view, left = postings.filter(allow=allow, deny=deny)
        view, left = view.filter(deny=later)
        may = [
            row
            for row in range(len(documents))
            if (allow is None or row in allow) and row not in (deny or []) and row not in later
        ]
        stems = {stem(word) for row in may for word in sum(documents[row], [])}
        assert [words[i] for i in left] == [word for word in words if stem(word) in stems]
        every = postings.rank(range(len(words)), np.full(len(words), 0.1), 99)
        some = view.rank(range(len(words)), np.full(len(words), 0.1), 99)
        assert [(r, s) for r, s in zip(*every, strict=True) if r in may] == list(zip(*some, strict=True))


class TestFiles:
    def test_come_back_as_they_were(self, tmp_path: Path) -> None:
        postings, words = of_docids("lift drag", "heat wings")
        postings.save(tmp_path)
        again = Postings.load(tmp_path)
        assert again.num_rows == 2 and again.nbytes == postings.nbytes
        for one, other in zip(
            postings.rank(range(len(words)), np.ones(4), 9), again.rank(range(len(words)), np.ones(4), 9), strict=True
        ):
            assert np.array_equal(one, other)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        of_docids("lift")[0].save(tmp_path)
        (tmp_path / "rows.bin").unlink()
        with pytest.raises(UserError, match="The postings file .*rows.bin is missing; build the trie again"):
            Postings.load(tmp_path)

    def test_of_no_documents(self) -> None:
        postings, words = build([])
        assert (postings.num_rows, words) == (0, [])
