"""Lexical: a document's score is that of BM25 over its heaviest terms; no language model is asked.

    covered x sum of occurrences in the query x idf x count / (count + norm) / (1 + position / 64)

over the terms of the query that the document has, with norm = 0.9 x (0.6 + 0.4 x length / average length). `covered` is the
share of the query, by occurrences and idf, in terms that any document has: where a query speaks in other words than the
documents, the words that they share by chance say little. BM25 is from Robertson and Zaragoza 2009; a term that the document
is less about stands later, and counts less.
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from pydantic import Field

from zerogr.config.base import RankerSettings
from zerogr.ranking.lexical_index import LexicalIndex, QueryTerms
from zerogr.ranking.ranker import AdditiveRanker, Data, Filter, Leaves, Part, summed

HALF_POSITION = 64
"""The position, from 0, at which a term counts half as much as at the first."""


class LexicalSettings(RankerSettings):
    """Of the ranker lexical."""

    name: str = Field("lexical", description="By BM25 over each document's heaviest terms; nothing is generated.")

    @property
    def needs_lexical(self) -> bool:
        """It does."""
        return True


class Lexical(AdditiveRanker):
    """See the module."""

    Settings = LexicalSettings
    num_traced = 1

    def __init__(self, settings: LexicalSettings, data: Data) -> None:
        self._index = data.lexical

    def num_leaves(self, k: int) -> int:
        """Returns 0: nothing is decoded."""
        return 0

    def score_all(self, query: str, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """Returns every document that has any term of the query, and its score."""
        terms = self._index.query_terms(query)
        postings, number = self._index.postings_of(terms.groups)
        rows, scores = self._index.rows[postings], _scores(self._index, terms.weights[number], postings)
        if self._index.allowed is not None:
            is_allowed = self._index.allowed[rows]
            rows, scores = rows[is_allowed], scores[is_allowed]
        return summed(rows, scores)

    def parts(self, query: str, leaves: Leaves, row: int) -> list[Part]:
        """Returns the terms of the query that the document has."""
        terms: QueryTerms = self._index.query_terms(query)
        found = []
        for group, weight, text in zip(terms.groups.tolist(), terms.weights.tolist(), terms.texts, strict=True):
            if (posting := self._index.posting_of(group, row)) is not None:
                score = float(_scores(self._index, np.array([weight]), np.array([posting]))[0])
                found.append(Part("lexical", text, None, score))
        return sorted(found, key=lambda part: -part.score)

    def restrict(self, rows: Filter) -> tuple[Self, Filter]:
        """Returns a ranker of the documents left."""
        restricted = copy.copy(self)
        restricted._index = self._index.restricted(rows.mask(self._index.num_rows, self._index.allowed))
        return restricted, Filter()


def _scores(index: LexicalIndex, weights: np.ndarray, postings: np.ndarray) -> np.ndarray:
    """Returns what terms of some weight (float [p]) add at postings (int [p])."""
    count = index.counts[postings].astype(np.float64)
    saturated = count / (count + index.norms[index.rows[postings]])
    return weights * saturated / (1.0 + index.positions[postings] / HALF_POSITION)
