"""Reciprocal-rank fusion: several rankings become one, without looking at scores that mean different things.

Source: Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
"""

from __future__ import annotations

from collections.abc import Sequence

from zerogr.evaluation.metrics import Run

RANK_CONSTANT = 60
"""Of the paper: how much a first place counts more than a tenth."""


def fuse(runs: Sequence[Run], k: int) -> Run:
    """Returns the k documents of every query with the largest sums of 1 / (60 + rank); of equals the one seen first."""
    fused: Run = {}
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        sums: dict[str, float] = {}
        for run in runs:
            for rank, doc_id in enumerate(run.get(query_id, []), start=1):
                sums[doc_id] = sums.get(doc_id, 0.0) + 1 / (RANK_CONSTANT + rank)
        fused[query_id] = sorted(sums, key=lambda doc_id: -sums[doc_id])[:k]
    return fused
