"""A rehearsal: two small indexes of one corpus, built by one configuration on one machine, and the plan that follows from them.

A stage takes a while to start, and then longer in proportion to the documents. Of two recorded runs the difference says how
much longer than planned a document takes, and what is left of the smaller one is the start. So whatever a plan does not
count on this machine (padding, ragged answers, processes that start) is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from zerogr.cost.estimate import StageCost

FEW, MOST_PER_ENGINE = 2, 25
"""Documents of the small index, and of the larger one per engine: fewer would not fill a batch, as a whole corpus does."""
LEAST_GROWTH_S = 3.0
"""A stage that grows by less says nothing but how it starts: another second would be hours of a million documents."""


class Line(NamedTuple):
    """What a stage took."""

    start_s: float
    per_document_s: float
    factor: float
    """Of what was planned, beyond the start."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the stages of two indexes took."""

    counts: tuple[int, int]
    """Their documents."""
    stages: dict[str, Line]

    def applied(self, costs: Sequence[StageCost], starts: Sequence[StageCost], num_documents: int) -> list[StageCost]:
        """Returns the costs of a plan as this machine would have them.

        Args:
            costs: As planned from rates.
            starts: The same for no documents.
            num_documents: Of the plan.
        """
        start_of = {cost.stage: cost.seconds or 0.0 for cost in starts}
        return [self._applied(cost, start_of.get(cost.stage, 0.0), num_documents) for cost in costs]

    def _applied(self, cost: StageCost, start_s: float, num_documents: int) -> StageCost:
        line = self.stages.get(cost.stage)
        if line is None:
            return cost
        how = f"rehearsed with {self.counts[0]} and {self.counts[1]} documents: a start of {line.start_s:.0f} s, then "
        if cost.seconds is None:
            seconds = line.start_s + line.per_document_s * num_documents
            return replace(cost, basis="measured", formula=how + "in proportion to the documents", seconds=seconds)
        return replace(
            cost,
            formula=f"{how}{line.factor:.2f} times the plan by rates; {cost.formula}",
            gpu_hours=None if cost.gpu_hours is None else cost.gpu_hours * line.factor,
            cpu_hours=None if cost.cpu_hours is None else cost.cpu_hours * line.factor,
            seconds=line.start_s + line.factor * (cost.seconds - start_s),
        )


def rehearsal_of(
    counts: tuple[int, int],
    recorded: tuple[Mapping[str, float], Mapping[str, float]],
    planned: tuple[Sequence[StageCost], Sequence[StageCost], Sequence[StageCost]],
) -> Rehearsal:
    """Returns what two indexes say of every stage that both have.

    Args:
        counts: Documents of the two, the smaller first.
        recorded: Stage -> seconds, of each.
        planned: For no documents, and for those of each, on the machine that they were built on.
    """
    at_0, at_few, at_many = ({cost.stage: cost.seconds for cost in costs} for costs in planned)
    lines = {}
    for stage, few_s in recorded[0].items():
        if stage not in recorded[1]:
            continue
        grown_s = recorded[1][stage] - few_s
        is_seen = grown_s >= LEAST_GROWTH_S
        start, few, many = at_0.get(stage), at_few.get(stage), at_many.get(stage)
        if start is None or few is None or many is None:
            per_document_s = grown_s / (counts[1] - counts[0]) if is_seen else 0.0
            lines[stage] = Line(max(few_s - per_document_s * counts[0], 0.0), per_document_s, 1.0)
            continue
        factor = grown_s / (many - few) if is_seen and many > few else 1.0
        per_document_s = factor * (many - few) / (counts[1] - counts[0])
        lines[stage] = Line(max(few_s - factor * (few - start), 0.0), per_document_s, factor)
    return Rehearsal(counts, lines)
