"""Likelihood: a document's score is the log-probability of its docid, as in ZeroGR."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field

from zerogr.config.base import RankerSettings
from zerogr.ranking.ranker import Data, Filter, Leaves, Part, Ranking


class LikelihoodSettings(RankerSettings):
    """Of the ranker likelihood."""

    takes = frozenset({"docids"})

    name: str = Field("likelihood", description="By the log-probability of the docid, in the order of the strategy.")


class Likelihood:
    """Row i of the trie is document i, and the strategy's order is the ranking."""

    Settings = LikelihoodSettings
    name = "likelihood"
    has_log_probs = True
    num_traced = 0

    def __init__(self, settings: LikelihoodSettings, data: Data) -> None:
        """Needs nothing."""

    def num_leaves(self, k: int) -> int:
        """Returns k: one leaf is one document."""
        return k

    def rank(self, query: str, leaves: Leaves, k: int) -> Ranking:
        """Returns the documents as they were decoded."""
        return Ranking(leaves.identifiers[:k], leaves.log_probs[:k])

    def parts(self, query: str, leaves: Leaves, row: int) -> list[Part]:
        """Returns the docid."""
        return [
            Part("likelihood", leaves.text_of(int(i)), float(np.exp(leaves.log_probs[i])), float(leaves.log_probs[i]))
            for i in np.flatnonzero(leaves.identifiers == row)
        ]

    def restrict(self, rows: Filter) -> tuple[Self, Filter]:
        """Returns itself: the trie does it."""
        return self, rows
