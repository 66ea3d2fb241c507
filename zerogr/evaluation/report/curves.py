"""Figures for plots: quality at every k, and whether the probability of a first hit is the chance that it is relevant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import fmean

from zerogr.evaluation.metrics import Qrels, Run
from zerogr.evaluation.systems import Answers

MAX_K = 100
NUM_BINS = 10
MIN_PER_BIN = 15
"""First hits; fewer say nothing about a share. With fewer than this there is one bin."""
_Z = 1.96


def depth(answers: Answers) -> int:
    """Returns how far down its answers go, at most `MAX_K`: what it was asked for, of a run file the longest answer."""
    return min(MAX_K, answers.k or max((len(found) for found in answers.run.values()), default=0))


def recall_and_precision(qrels: Qrels, run: Run, num_ranks: int) -> tuple[list[float], list[float]]:
    """Returns the means over all judged queries at k = 1..num_ranks, with the semantics of `zerogr.evaluation.metrics`."""
    recall, precision = [0.0] * num_ranks, [0.0] * num_ranks
    for query_id, grades in qrels.items():
        num_relevant = sum(grade > 0 for grade in grades.values())
        found, num_found = run.get(query_id, []), 0
        for place in range(num_ranks):
            num_found += place < len(found) and grades.get(found[place], 0) > 0
            recall[place] += num_found / max(num_relevant, 1) / len(qrels)
            precision[place] += num_found / (place + 1) / len(qrels)
    return recall, precision


@dataclass(frozen=True, slots=True)
class Bin:
    """First hits of neighbouring probabilities."""

    lowest: float
    """Predicted probability, as the others."""
    highest: float
    mean: float
    count: int
    num_relevant: int

    @property
    def share(self) -> float:
        """Of the hits, that is relevant."""
        return self.num_relevant / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share. Source: Wilson 1927, "Probable inference, the law of succession"."""
        spread = _Z * sqrt(self.share * (1 - self.share) / self.count + (_Z / self.count) ** 2 / 4)
        low, high = (self.share + _Z**2 / self.count / 2 + sign * spread for sign in (-1, 1))
        return max(0.0, low / (1 + _Z**2 / self.count)), min(1.0, high / (1 + _Z**2 / self.count))


def calibration(qrels: Qrels, answers: Answers) -> list[Bin]:
    """Returns bins of equally many first hits, the least probable first; empty for a system without probabilities."""
    hits = sorted(
        (exp(answers.scores[query_id][0]), grades.get(answers.run[query_id][0], 0) > 0)
        for query_id, grades in qrels.items()
        if answers.has_log_probs and answers.scores.get(query_id)
    )
    num_bins = min(NUM_BINS, max(1, len(hits) // MIN_PER_BIN)) if hits else 0
    bounds = [round(len(hits) * number / num_bins) for number in range(num_bins + 1)] if hits else []
    return [_bin(hits[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]


def _bin(hits: Sequence[tuple[float, bool]]) -> Bin:
    predicted = [probability for probability, _ in hits]
    return Bin(predicted[0], predicted[-1], fmean(predicted), len(hits), sum(relevant for _, relevant in hits))


def calibration_error(bins: Sequence[Bin]) -> tuple[float, float]:
    """Returns (predicted minus actual share over all hits, mean distance of the two over the bins).

    Source: Guo et al. 2017, "On calibration of modern neural networks" (the second is their expected calibration error).
    """
    count = sum(each.count for each in bins)
    gaps = [(each.mean - each.share) * each.count / count for each in bins]
    return sum(gaps), sum(map(abs, gaps))
