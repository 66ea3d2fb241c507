"""Mix: a document's score is the weighted sum of its scores by several rankers.

The convex combination of Bruch et al. 2023, "An Analysis of Fusion Functions for Hybrid Retrieval". Every part must be
additive: a document without a score there has 0.
"""

from __future__ import annotations

import copy
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from zerogr.config.base import RankerSettings
from zerogr.config.owned import RANKER, settings_of
from zerogr.plugins import load_class
from zerogr.ranking.ranker import AdditiveRanker, Data, Filter, Leaves, Part, Ranker, ranker_of, summed


class MixSettings(RankerSettings):
    """Of the ranker mix."""

    name: str = Field("mix", description="By the weighted sum of other rankers' scores.")
    parts: dict[str, float] = Field(
        default_factory=lambda: {"terms": 0.5, "lexical": 0.5}, description="The rankers, and what each weighs."
    )
    num_leaves: int = Field(64, ge=1, le=10_000, description="Identifiers that a search generates.")

    @model_validator(mode="after")
    def _additive(self) -> MixSettings:
        for name, weight in self.parts.items():
            if not issubclass(load_class(name, RANKER.package), AdditiveRanker) or name == self.name:
                raise ValueError(f"parts has '{name}', whose scores are no sums; terms and lexical can be mixed")
            if weight <= 0:
                raise ValueError(f"parts has {weight} for '{name}'; it must be above 0, or be left out")
        if not self.parts:
            raise ValueError("parts is empty; name at least one ranker")
        return self

    @property
    def needs_lexical(self) -> bool:
        """Whether a part does."""
        return any(settings_of(RANKER, name)(name=name).needs_lexical for name in self.parts)  # type: ignore[attr-defined, call-arg]

    @property
    def takes(self) -> frozenset[Literal["docids", "shared"]]:  # type: ignore[override]
        """What all parts take."""
        of_parts = [settings_of(RANKER, name)(name=name).takes for name in self.parts]  # type: ignore[attr-defined, call-arg]
        return frozenset.intersection(*of_parts)


class Mix(AdditiveRanker):
    """See the module."""

    Settings = MixSettings

    def __init__(self, settings: MixSettings, data: Data) -> None:
        self.rankers: dict[str, Ranker] = {name: ranker_of(name, data) for name in settings.parts}
        self._weights, self._num_leaves = settings.parts, settings.num_leaves
        self.num_traced = max(ranker.num_traced for ranker in self.rankers.values())

    def num_leaves(self, k: int) -> int:
        """Returns the setting, or 0 where no part needs any."""
        return self._num_leaves if any(ranker.num_leaves(k) for ranker in self.rankers.values()) else 0

    def score_all(self, query: str, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """Returns every document that has a score by any part."""
        rows, scores = [], []
        for name, ranker in self.rankers.items():
            assert isinstance(ranker, AdditiveRanker)
            found, of_part = ranker.score_all(query, leaves)
            rows.append(found)
            scores.append(self._weights[name] * of_part)
        return summed(np.concatenate(rows), np.concatenate(scores))

    def parts(self, query: str, leaves: Leaves, row: int) -> list[Part]:
        """Returns the parts of all rankers, weighted."""
        found = [
            part._replace(score=self._weights[name] * part.score)
            for name, ranker in self.rankers.items()
            for part in ranker.parts(query, leaves, row)
        ]
        return sorted(found, key=lambda part: -part.score)

    def restrict(self, rows: Filter) -> tuple[Self, Filter]:
        """Returns a mix of the restricted rankers, and the identifiers that they have left."""
        restricted, left = copy.copy(self), Filter()
        restricted.rankers = {}
        for name, ranker in self.rankers.items():
            restricted.rankers[name], identifiers = ranker.restrict(rows)
            left = left if identifiers.is_everything else identifiers
        return restricted, left
