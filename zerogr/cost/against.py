"""A plan held against an index that was built: predicted and recorded seconds, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zerogr.cost.estimate import StageCost
from zerogr.errors import UserError
from zerogr.index.index import Index

WITHIN = 0.25
"""What a plan aims at."""


class Comparison(NamedTuple):
    """One stage. None = not known, or not recorded."""

    stage: str
    predicted_s: float | None
    recorded_s: float | None

    @property
    def error(self) -> float | None:
        """Predicted over recorded seconds, less 1."""
        if self.predicted_s is None or not self.recorded_s:
            return None
        return self.predicted_s / self.recorded_s - 1

    @property
    def is_within(self) -> bool | None:
        """Whether the prediction is within `WITHIN`; None where there is nothing to compare."""
        return None if self.error is None else abs(self.error) <= WITHIN


def recorded_documents(uri: str) -> int:
    """Returns the documents of a finished corpus.

    Raises:
        UserError: There is no index with one at the URI.
    """
    return int(Index(uri).require("corpus").counts["rows"])


def compare(costs: Sequence[StageCost], uri: str) -> list[Comparison]:
    """Returns the stages that both the plan and the index have, and their sum over those that can be compared.

    A stage that was interrupted counts all its runs, where they were recorded.

    Raises:
        UserError: None of the stages is finished.
    """
    index, found = Index(uri), []
    for cost in costs:
        record = index.record(cost.stage)
        if record:
            found.append(Comparison(cost.stage, cost.seconds, max(record.seconds, record.effort.get("seconds", 0.0))))
    if not found:
        raise UserError(f"'{uri}' has no finished stage to compare with; run `zerogr index CONFIG` first")
    both = [(one.predicted_s, one.recorded_s) for one in found if one.error is not None]
    predicted, recorded = (sum(filter(None, column)) for column in zip(*both, strict=True)) if both else (None, None)
    return [*found, Comparison("together", predicted, recorded)]
