"""A wrong posting is a document that a search never finds, or finds for words that it has not."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.errors import UserError
from zerogr.ranking.postings import Postings, Weighted, words_of
from zerogr.text.words import stem

WORDS = "wing wings lift lifting drag heat flow slab slabs".split()
DOCUMENTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
        st.dictionaries(st.sampled_from(WORDS), st.integers(1, 255), max_size=5),
    ),
    min_size=1,
    max_size=9,
)
"""Docids, and terms with their counts."""
Documents = list[tuple[list[str], dict[str, int]]]
UNNAMED = Weighted(np.empty(0, np.int64), np.empty(0))


def build(documents: Documents, num_terms: int = 99, parts: int = 1) -> tuple[Postings, list[str]]:
    bounds = np.linspace(0, len(documents), parts + 1).astype(int)
    return Postings.build(
        (
            (
                pa.array([" ".join(docid) for docid, _ in documents[first:last]], pa.string()),
                pa.array([list(terms) for _, terms in documents[first:last]], pa.list_(pa.string())),
                pa.array([list(terms.values()) for _, terms in documents[first:last]], pa.list_(pa.uint8())),
                pa.array([length_of(terms) for _, terms in documents[first:last]], pa.int32()),
            )
            for first, last in zip(bounds, bounds[1:], strict=False)
        ),
        num_terms,
    )


def length_of(terms: dict[str, int]) -> int:
    return sum(terms.values()) or 1


def of_docids(*docids: str) -> tuple[Postings, list[str]]:
    return build([(docid.split(), {}) for docid in docids])


def weighted(weights: dict[int, float]) -> Weighted:
    return Weighted(np.array(list(weights), dtype=np.int64), np.array(list(weights.values()), dtype=np.float64))


def scores_by_hand(
    documents: Documents, num_terms: int, written: dict[str, float], query: list[str], share: float
) -> list[float]:
    """The formula of the module, word by word."""
    documents_words = [words_of(" ".join(docid), list(terms), num_terms) for docid, terms in documents]

    def rarity_of(word: str) -> float:
        having = sum(stem(word) in map(stem, others) for others in documents_words)
        return math.log((len(documents) + 1) / (having + 0.5))

    everything = [
        (rarity_of(word), any(stem(word) in map(stem, others) for others in documents_words)) for word in query
    ]
    covered = sum(rarity for rarity, is_there in everything if is_there) / (
        sum(rarity for rarity, _ in everything) or 1
    )
    scores = []
    for (_, terms), of_document in zip(documents, documents_words, strict=True):
        score = 0.0
        for place, word in enumerate(of_document):
            mass = sum(p for other, p in written.items() if stem(other) == stem(word))
            score += (1 - share) * math.log(1 + mass / 0.003) / (1 + place / 16)
            times = sum(stem(other) == stem(word) for other in query)
            count = max((count for term, count in terms.items() if stem(term) == stem(word)), default=1)
            length = length_of(terms) / statistics.mean(length_of(others) for _, others in documents)
            score += (
                share
                * covered
                * times
                * rarity_of(word)
                * count
                / (count + 0.9 * (0.6 + 0.4 * length))
                / (1 + place / 64)
            )
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
        st.lists(st.sampled_from([*WORDS, "unheard"]), max_size=4),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.integers(1, 12),
        st.integers(1, 2),
    )
    def test_against_the_formula(
        self,
        documents: Documents,
        num_terms: int,
        probabilities: list[float],
        query: list[str],
        share: float,
        k: int,
        parts: int,
    ) -> None:
        postings, words = build(documents, num_terms, parts)
        each = [words_of(" ".join(docid), list(terms), num_terms) for docid, terms in documents]
        assert words == sorted({word for of_document in each for word in of_document})
        assert postings.num_rows == len(documents)
        written = weighted(dict(enumerate(probabilities[: len(words)])))
        named, _ = postings.named(" ".join(query))
        rows, scores = postings.rank(written, named, share, k)
        by_word = dict(zip(words, probabilities, strict=False))
        expected = scores_by_hand(documents, num_terms, by_word, query, share)
        order = sorted(range(len(documents)), key=lambda row: (-round(expected[row], 9), row))
        order = [row for row in order if expected[row] > 0][:k]
        assert scores == pytest.approx([expected[row] for row in order])
        assert [round(expected[row], 9) for row in rows] == [round(expected[row], 9) for row in order]
        for row, of_document in enumerate(each):
            parts_of_score = postings.of_row(row, written, named, share)
            assert {stem(words[part.word]) for part in parts_of_score} == set(map(stem, of_document))
            assert sum(part.score for part in parts_of_score) == pytest.approx(expected[row])
            for part in parts_of_score:
                mass = sum(p for word, p in by_word.items() if stem(word) == stem(words[part.word]))
                assert part.probability == pytest.approx(mass)

    def test_only_documents_with_a_word_that_was_found(self) -> None:
        postings, words = of_docids("lift drag", "heat", "wings heat")
        written = weighted({words.index("drag"): 0.2, words.index("wings"): 0.5})
        assert postings.rank(written, UNNAMED, 0, 10)[0].tolist() == [2, 0]
        assert postings.rank(written, UNNAMED, 0.5, 10)[0].tolist() == [2, 0]
        assert postings.rank(written, UNNAMED, 1, 10)[0].tolist() == []
        assert postings.rank(written, postings.named("lift")[0], 1, 10)[0].tolist() == [0]
        assert postings.rank(written, postings.named("heat")[0], 0.99, 10)[0].tolist() == [2, 1, 0]

    def test_forms_of_a_word_are_one_word(self) -> None:
        postings, words = of_docids("wing drag", "wings heat")
        rows, scores = postings.rank(weighted({words.index("wing"): 0.3}), postings.named("wing")[0], 0.5, 10)
        assert rows.tolist() == [0, 1] and scores[0] == scores[1]

    def test_a_word_of_the_docid_has_the_count_of_the_term(self) -> None:
        """Whichever form stands first; one that is no term is there once."""
        postings, _ = build([(["wings", "drag"], {"wing": 7}), (["wing", "drag"], {})])
        named, _ = postings.named("wings")
        long, short = 0.9 * (0.6 + 0.4 * 7 / 4), 0.9 * (0.6 + 0.4 * 1 / 4)
        scores = postings.rank(UNNAMED, named, 1, 10)[1] / named.weights
        assert scores == pytest.approx([7 / (7 + long), 1 / (1 + short)])

    def test_equal_scores_in_row_order(self) -> None:
        postings, _ = of_docids(*["heat"] * 9)
        assert postings.rank(weighted({0: 0.4}), UNNAMED, 0, 4)[0].tolist() == [0, 1, 2, 3]


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
        is_topical = any(word != "the" for word in query)
        (rows, weights), texts = postings.named(" and ".join(query))
        assert set(texts) <= set(query)
        assert [stem(text) for text in texts] == [stem(words[row]) for row in rows]
        unheard = sum((one != "the" or not is_topical) and not counts[one] for one in times) * math.log(
            (len(may) + 1) / 0.5
        )
        covered = sum(rarity.values()) / (sum(rarity.values()) + unheard) if rarity else 0
        expected = {one: covered * each for one, each in rarity.items()}
        assert dict(zip(map(stem, texts), weights, strict=True)) == pytest.approx(expected)

    def test_words_that_no_document_has_take_from_the_others(self) -> None:
        postings, _ = of_docids("wing", "heat")
        known = postings.named("the wings")[0].weights
        assert known == pytest.approx([math.log(3 / 1.5)])
        rare = math.log(3 / 0.5)
        for query in ("wings unheard", "unheard of wings"):
            assert postings.named(query)[0].weights == pytest.approx(known * known / (known + rare))

    def test_the_form_that_stands_first(self) -> None:
        assert of_docids("wing", "heat")[0].named("Wings or wing?")[1] == ["wings"]

    def test_function_words_count_where_there_are_no_others(self) -> None:
        postings, _ = of_docids("useful wing", "heat")
        assert postings.named("use the wing")[1] == ["wing"]
        assert postings.named("use the")[1] == ["use"]

    def test_nothing_is_named(self) -> None:
        for postings in (of_docids("wing")[0], build([])[0]):
            (rows, weights), texts = postings.named("lift")
            assert (rows.tolist(), weights.tolist(), texts) == ([], [], [])


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
        stems = {stem(word) for row in may for word in [*documents[row][0], *documents[row][1]]}
        assert [words[i] for i in left] == [word for word in words if stem(word) in stems]
        written = weighted(dict.fromkeys(range(len(words)), 0.1))
        every, some = (each.rank(written, UNNAMED, 0, 99) for each in (postings, view))
        assert [(r, s) for r, s in zip(*every, strict=True) if r in may] == list(zip(*some, strict=True))


class TestFiles:
    def test_come_back_as_they_were(self, tmp_path: Path) -> None:
        postings, words = of_docids("lift drag", "heat wings")
        postings.save(tmp_path)
        again = Postings.load(tmp_path)
        assert again.num_rows == 2 and again.nbytes == postings.nbytes
        written, named = weighted(dict.fromkeys(range(len(words)), 0.1)), postings.named("wings")[0]
        for one, other in zip(*(each.rank(written, named, 0.5, 9) for each in (postings, again)), strict=True):
            assert np.array_equal(one, other)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        of_docids("lift")[0].save(tmp_path)
        (tmp_path / "rows.bin").unlink()
        with pytest.raises(UserError, match="The postings file .*rows.bin is missing; build the trie again"):
            Postings.load(tmp_path)

    def test_of_no_documents(self) -> None:
        postings, words = build([])
        assert (postings.num_rows, words) == (0, [])
