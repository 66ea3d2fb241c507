"""Terms: a document's score is the sum over the generated identifiers that it shares with others.

    sum of log(1 + p / 0.003) x weight

over its identifiers that were generated, with their probabilities p and what they weigh for the document. Identifiers that
count as one, such as words of one stem, are one, with the sum of their probabilities. The logarithm keeps one identifier from
deciding alone (as in SPLADE, Formal et al. 2021); the sum over what was generated is from Bevilacqua et al. 2022,
"Autoregressive Search Engines".
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from pydantic import Field

from zerogr.config.base import RankerSettings
from zerogr.ranking.ranker import AdditiveRanker, Data, Filter, Leaves, Part, summed

SMALL_PROBABILITY = 3e-3
"""Below it a score is in proportion to the probability, above it to its logarithm."""
NUM_TRACED = 512
"""The rest is too unlikely to matter."""


class TermsSettings(RankerSettings):
    """Of the ranker terms."""

    takes = frozenset({"shared"})

    name: str = Field("terms", description="By the sum over the generated terms that the document has.")
    num_leaves: int = Field(64, ge=1, le=10_000, description="Terms that a search generates.")


class Terms(AdditiveRanker):
    """See the module."""

    Settings = TermsSettings
    num_traced = NUM_TRACED

    def __init__(self, settings: TermsSettings, data: Data) -> None:
        self._owners, self._num_leaves = data.owners, settings.num_leaves

    def num_leaves(self, k: int) -> int:
        """Returns the setting."""
        return self._num_leaves

    def score_all(self, query: str, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """Returns every document that has any of the terms, and its score."""
        groups, masses = self._masses(leaves)
        postings, number = self._owners.postings_of(groups)
        scores = _score(masses[number]) * self._owners.weights_of(postings)
        rows = self._owners.rows[postings]
        if self._owners.allowed is not None:
            is_allowed = self._owners.allowed[rows]
            rows, scores = rows[is_allowed], scores[is_allowed]
        return summed(rows, scores)

    def parts(self, query: str, leaves: Leaves, row: int) -> list[Part]:
        """Returns the terms of the document that were generated, each in its likeliest form."""
        groups, masses = self._masses(leaves)
        found = []
        for group, mass in zip(groups.tolist(), masses.tolist(), strict=True):
            if (posting := self._owners.posting_of(group, row)) is not None:
                score = float(_score(mass) * self._owners.weights_of(posting))
                found.append((group, mass, score))
        of_leaf = self._owners.group_of_identifier[leaves.identifiers]
        likeliest = {int(of_leaf[i]): int(i) for i in np.argsort(leaves.log_probs, kind="stable")}
        parts = [Part("terms", leaves.text_of(likeliest[group]), mass, score) for group, mass, score in found]
        return sorted(parts, key=lambda part: -part.score)

    def restrict(self, rows: Filter) -> tuple[Self, Filter]:
        """Returns a ranker of the documents left, and the terms that they have."""
        restricted = copy.copy(self)
        restricted._owners, identifiers = self._owners.restricted(
            rows.mask(self._owners.num_rows, self._owners.allowed)
        )
        return restricted, Filter(allow=identifiers)

    def _masses(self, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """Returns the groups (int [g], ascending) of what was generated, and the probability of each."""
        of_leaf = self._owners.group_of_identifier[leaves.identifiers]
        groups, number = np.unique(of_leaf, return_inverse=True)
        return groups, np.bincount(number, np.exp(leaves.log_probs), minlength=len(groups))


def _score(mass: np.ndarray | float) -> np.ndarray:
    return np.log1p(np.asarray(mass) / SMALL_PROBABILITY)
