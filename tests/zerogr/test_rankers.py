"""A wrong posting is a document that a search never finds, or finds for terms that it has not."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.docids.schemes.terms import identifiers_of
from zerogr.docids.stage import IDENTIFIERS
from zerogr.errors import UserError
from zerogr.ranking.lexical import Lexical, LexicalSettings
from zerogr.ranking.lexical_index import LexicalIndex
from zerogr.ranking.mix import Mix, MixSettings
from zerogr.ranking.owners import Owners
from zerogr.ranking.ranker import Data, Filter, Leaves
from zerogr.ranking.terms import Terms, TermsSettings
from zerogr.text.words import key_of, stem

WORDS = "wing wings lift lifting drag heat flow slab slabs".split()
DOCUMENTS = st.lists(st.dictionaries(st.sampled_from(WORDS), st.integers(1, 255), max_size=5), min_size=1, max_size=9)
"""Terms with their counts, heaviest first."""
Document = dict[str, int]
NOTHING = Leaves(np.empty(0, np.int64), np.empty(0), str)


def by_stem(document: Document) -> dict[str, int]:
    found: dict[str, int] = {}
    for term, count in document.items():
        found.setdefault(stem(term), count)
    return found


def build(documents: list[Document], parts: int = 1) -> tuple[Data, list[str]]:
    bounds = np.linspace(0, len(documents), parts + 1).astype(int).tolist()
    pieces = [documents[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
    owners, identifiers = Owners.build(
        (
            pa.array(
                [[each._asdict() for each in identifiers_of(list(document), 99)] for document in piece], IDENTIFIERS
            )
            for piece in pieces
        ),
        stem,
    )
    lexical = LexicalIndex.build(
        (
            pa.array([[key_of(term) for term in by_stem(document)] for document in piece], pa.list_(pa.uint64())),
            pa.array([list(by_stem(document).values()) for document in piece], pa.list_(pa.uint8())),
            pa.array([length_of(document) for document in piece], pa.int32()),
        )
        for piece in pieces
    )
    data = Data(Path())
    data.owners, data.lexical = owners, lexical  # type: ignore[misc]
    return data, identifiers


def length_of(document: Document) -> int:
    return sum(by_stem(document).values()) or 1


def generated(weights: dict[int, float]) -> Leaves:
    scores = np.log(np.array(list(weights.values()), dtype=np.float64))
    texts = list(weights)
    return Leaves(np.array(texts, dtype=np.int64), scores, lambda i: str(texts[i]))


def mix(data: Data) -> Mix:
    return Mix(MixSettings(parts={"terms": 0.7, "lexical": 0.3}), data)


def scores_by_hand(documents: list[Document], generated: dict[str, float], query: list[str]) -> list[list[float]]:
    """The two formulas, term by term: [terms, lexical] of each document."""

    def idf_of(word: str) -> float:
        having = sum(stem(word) in by_stem(document) for document in documents)
        return math.log((len(documents) + 1) / (having + 0.5))

    everything = [(idf_of(word), any(stem(word) in by_stem(document) for document in documents)) for word in query]
    total = sum(idf for idf, _ in everything) or 1
    covered = sum(idf for idf, is_there in everything if is_there) / total
    average = statistics.mean(map(length_of, documents))
    scores = []
    for document in documents:
        by_terms = by_query = 0.0
        for position, (term, count) in enumerate(by_stem(document).items()):
            mass = sum(p for other, p in generated.items() if stem(other) == term)
            by_terms += math.log(1 + mass / 0.003) / (1 + position / 16)
            times = sum(stem(other) == term for other in query)
            norm = 0.9 * (0.6 + 0.4 * length_of(document) / average)
            by_query += covered * times * idf_of(term) * count / (count + norm) / (1 + position / 64)
        scores.append([by_terms, by_query])
    return scores


@settings(deadline=None)
@given(
    DOCUMENTS,
    st.lists(st.floats(0.0001, 1), min_size=9, max_size=9),
    st.lists(st.sampled_from([*WORDS, "unheard"]), max_size=4),
    st.integers(1, 12),
    st.integers(1, 2),
)
def test_against_the_formulas(
    documents: list[Document], probabilities: list[float], query: list[str], k: int, parts: int
) -> None:
    data, identifiers = build(documents, parts)
    firsts = {each.text for document in documents for each in identifiers_of(list(document), 99)}
    assert identifiers == sorted(firsts) and data.owners.num_rows == data.lexical.num_rows == len(documents)
    leaves = generated(dict(enumerate(probabilities[: len(identifiers)])))
    of_terms = dict(zip(identifiers, probabilities, strict=False))
    by_hand = scores_by_hand(documents, of_terms, query)
    for ranker, weights in (
        (Terms(TermsSettings(), data), (1.0, 0.0)),
        (Lexical(LexicalSettings(), data), (0.0, 1.0)),
        (mix(data), (0.7, 0.3)),
    ):
        expected = [sum(weight * score for weight, score in zip(weights, pair, strict=True)) for pair in by_hand]
        rows, scores = ranker.rank(" ".join(query), leaves, k)
        order = sorted(range(len(documents)), key=lambda row: (-round(expected[row], 9), row))
        order = [row for row in order if expected[row] > 0][:k]
        assert scores == pytest.approx([expected[row] for row in order])
        assert [round(expected[row], 9) for row in rows] == [round(expected[row], 9) for row in order]
        for row in range(len(documents)):
            found = ranker.parts(" ".join(query), leaves, row)
            assert sum(part.score for part in found) == pytest.approx(expected[row])
            assert [part.score for part in found] == sorted((part.score for part in found), reverse=True)


@settings(deadline=None)
@given(DOCUMENTS, st.lists(st.sampled_from(WORDS), max_size=4), st.data())
def test_restricted_as_if_the_others_were_not_there(
    documents: list[Document], query: list[str], data: st.DataObject
) -> None:
    rows = st.lists(st.integers(0, len(documents) - 1))
    allow, deny, later = data.draw(st.none() | rows), data.draw(st.none() | rows), data.draw(rows)
    built, identifiers = build(documents)
    leaves = generated(dict.fromkeys(range(len(identifiers)), 0.1))
    may = [
        r for r in range(len(documents)) if (allow is None or r in allow) and r not in (deny or []) and r not in later
    ]
    others, _ = build([documents[row] for row in may])
    ranker, left = Terms(TermsSettings(), built).restrict(Filter(allow, deny))
    ranker, left = ranker.restrict(Filter(deny=later))
    stems = {term for row in may for term in by_stem(documents[row])}
    assert left.allow is not None
    assert [identifiers[i] for i in left.allow] == [text for text in identifiers if stem(text) in stems]
    every, some = (each.rank("", leaves, 99) for each in (Terms(TermsSettings(), built), ranker))
    assert [(r, s) for r, s in zip(*every, strict=True) if r in may] == list(zip(*some, strict=True))
    lexical, left = Lexical(LexicalSettings(), built).restrict(Filter(allow, deny))
    lexical, left = lexical.restrict(Filter(deny=later))
    assert left.is_everything
    terms, expected = lexical._index.query_terms(" ".join(query)), others.lexical.query_terms(" ".join(query))
    assert terms.texts == expected.texts and terms.weights == pytest.approx(expected.weights)


class TestQueryTerms:
    def test_terms_that_no_document_has_take_from_the_others(self) -> None:
        data, _ = build([{"wing": 1}, {"heat": 1}])
        known = data.lexical.query_terms("the wings").weights
        assert known == pytest.approx([math.log(3 / 1.5)])
        for query in ("wings unheard", "unheard of wings"):
            weights = data.lexical.query_terms(query).weights
            assert weights == pytest.approx(known * known / (known + math.log(3 / 0.5)))

    def test_the_form_that_stands_first(self) -> None:
        assert build([{"wing": 1}, {"heat": 1}])[0].lexical.query_terms("Wings or wing?").texts == ["wings"]

    def test_function_words_count_where_there_are_no_others(self) -> None:
        data, _ = build([{"useful": 1, "wing": 1}, {"heat": 1}])
        assert data.lexical.query_terms("use the wing").texts == ["wing"]
        assert data.lexical.query_terms("use the").texts == ["use"]

    def test_of_no_documents_and_of_no_terms(self) -> None:
        for documents in ([{"wing": 1}], []):
            data, _ = build(documents)
            assert data.lexical.query_terms("lift").texts == []
            assert Lexical(LexicalSettings(), data).rank("lift", NOTHING, 9).rows.tolist() == []


class TestFiles:
    def test_come_back_as_they_were(self, tmp_path: Path) -> None:
        data, identifiers = build([{"lift": 1, "drag": 2}, {"heat": 1, "wings": 3}])
        data.owners.save(tmp_path / "owners")
        data.lexical.save(tmp_path / "lexical")
        again = Data(tmp_path, tmp_path / "lexical")
        assert again.has_owners and again.owners.num_rows == 2
        assert (again.owners.nbytes, again.lexical.nbytes) == (data.owners.nbytes, data.lexical.nbytes)
        leaves = generated(dict.fromkeys(range(len(identifiers)), 0.1))
        for one, other in zip(mix(data).rank("wings", leaves, 9), mix(again).rank("wings", leaves, 9), strict=True):
            assert np.array_equal(one, other)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        build([{"lift": 1}])[0].lexical.save(tmp_path)
        (tmp_path / "rows.bin").unlink()
        with pytest.raises(UserError, match="The lexical index file .*rows.bin is missing"):
            LexicalIndex.load(tmp_path)


def test_too_many_weights_are_named() -> None:
    documents = pa.array([[{"text": f"w{i}", "view": "", "weight": i / 7} for i in range(2**16 + 1)]], IDENTIFIERS)
    with pytest.raises(ValueError, match="more than 65536 different weights; the scheme must round them"):
        Owners.build([documents], str)
