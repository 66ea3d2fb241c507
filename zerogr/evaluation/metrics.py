"""Measures of a run, with the semantics of trec_eval.

All but one are computed by ir-measures (pytrec_eval): Hits@k is the share of queries with a relevant document (any grade > 0)
among the first k, and Hits@1 is called Acc@1; nDCG@k uses the grades as linear gains; Recall@100 and MAP divide by all relevant
documents of the query, P@20 by 20 however few results there are; MRR@k is 0 below rank k. Negative grades count as 0. Every
judged query counts, with 0 where the run holds nothing for it; queries without judgements are ignored, and so are documents
without a judgement, which count as not relevant.
"""

from __future__ import annotations

from statistics import fmean

Qrels = dict[str, dict[str, int]]
"""Query id -> doc_id -> grade."""
Run = dict[str, list[str]]
"""Query id -> doc_ids, best first, no document twice."""

METRICS = {
    "acc@1": "Acc@1", "ndcg@10": "nDCG@10", "recall@100": "Recall@100", "mrr@10": "MRR@10", "map": "MAP", "p@20": "P@20",
    "err@20": "ERR@20", "ndcg@5": "nDCG@5", "ndcg@20": "nDCG@20", "mrr@3": "MRR@3", "mrr@20": "MRR@20", "hits@10": "Hits@10",
}  # fmt: skip
"""Key -> the name that people read; the keys are those of `evaluation.metrics`."""
ERR_MOST_GRADE = 4
"""The grade that satisfies a reader with probability 15/16, as in TREC's web tracks, unless a collection has higher ones."""


def evaluate_run(qrels: Qrels, run: Run) -> dict[str, float]:
    """Returns the mean of each of `METRICS` over all judged queries, and their number as "num_queries".

    Raises:
        ValueError: `qrels` is empty, or the run names a document twice for one query.
    """
    return mean_of(evaluate_queries(qrels, run))


def mean_of(per_query: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns the means of what `evaluate_queries` returned, and "num_queries"."""
    means: dict[str, float] = {name: fmean(values[name] for values in per_query.values()) for name in METRICS}
    return {**means, "num_queries": len(per_query)}


def evaluate_queries(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Returns query id -> {metric: value} for every judged query, in the order of `qrels`.

    Raises:
        ValueError: `qrels` is empty, or the run names a document twice for one query.
    """
    import ir_measures as ir

    if not qrels:
        raise ValueError("there are no judgements to evaluate the run with")
    measures = {
        ir.Success @ 1: "acc@1",
        ir.Success @ 10: "hits@10",
        **{ir.nDCG @ k: f"ndcg@{k}" for k in (5, 10, 20)},
        **{ir.RR @ k: f"mrr@{k}" for k in (3, 10, 20)},
        ir.R @ 100: "recall@100",
        ir.AP: "map",
        ir.P @ 20: "p@20",
    }
    gains = {query_id: {d: max(grade, 0) for d, grade in grades.items()} for query_id, grades in qrels.items()}
    scored = {query_id: scored_by_rank(doc_ids) for query_id, doc_ids in run.items() if query_id in qrels}
    most_grade = max(ERR_MOST_GRADE, *(grade for grades in gains.values() for grade in grades.values()))
    per_query = {
        query_id: {**dict.fromkeys(METRICS, 0.0), "err@20": _err(gains[query_id], run.get(query_id, []), most_grade)}
        for query_id in qrels
    }
    for metric in ir.iter_calc(list(measures), gains, scored):
        per_query[metric.query_id][measures[metric.measure]] = float(metric.value)
    return per_query


def scored_by_rank(doc_ids: list[str]) -> dict[str, float]:
    """Returns doc_id -> 1/rank: strictly falling, so that every tool keeps our order whatever it does with ties.

    Raises:
        ValueError: A document is named twice.
    """
    scores = {doc_id: 1 / rank for rank, doc_id in enumerate(doc_ids, start=1)}
    if len(scores) != len(doc_ids):
        repeated = next(doc_id for doc_id in scores if doc_ids.count(doc_id) > 1)
        raise ValueError(f"the run names the document {repeated!r} more than once for one query")
    return scores


def _err(gains: dict[str, int], doc_ids: list[str], most_grade: int, depth: int = 20) -> float:
    """Expected reciprocal rank: of the rank at which a reader stops who is satisfied with probability (2^g - 1) / 2^g_max.

    Source: Chapelle et al. 2009, Algorithm 1. Own code, because ir-measures leaves it to a Perl script.
    """
    expected, still_reading = 0.0, 1.0
    for rank, doc_id in enumerate(doc_ids[:depth], start=1):
        satisfied = (2 ** gains.get(doc_id, 0) - 1) / 2**most_grade
        expected += still_reading * satisfied / rank
        still_reading *= 1 - satisfied
    return expected
