"""Acc@1, nDCG@10 and Recall@100 of a run, with the semantics of trec_eval.

The measures are computed by ir-measures (pytrec_eval): Acc@1 is Success@1 with any grade > 0, nDCG@10 uses the grades
as linear gains, Recall@100 divides by all relevant documents of the query. Negative grades count as 0. Every judged
query counts, with 0 where the run holds nothing for it; queries without judgements are ignored.
"""

from __future__ import annotations

from statistics import fmean

Qrels = dict[str, dict[str, int]]
"""Query id -> doc_id -> grade."""
Run = dict[str, list[str]]
"""Query id -> doc_ids, best first, no document twice."""

METRICS = ("acc@1", "ndcg@10", "recall@100")


def evaluate_run(qrels: Qrels, run: Run) -> dict[str, float]:
    """Returns {"acc@1", "ndcg@10", "recall@100", "num_queries"}: the means over all judged queries.

    Raises:
        ValueError: `qrels` is empty, or the run names a document twice for one query.
    """
    per_query = evaluate_queries(qrels, run)
    means: dict[str, float] = {name: fmean(values[name] for values in per_query.values()) for name in METRICS}
    return {**means, "num_queries": len(per_query)}


def evaluate_queries(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Returns query id -> {"acc@1", "ndcg@10", "recall@100"} for every judged query, in the order of `qrels`.

    Raises:
        ValueError: `qrels` is empty, or the run names a document twice for one query.
    """
    import ir_measures

    if not qrels:
        raise ValueError("there are no judgements to evaluate the run with")
    measures = dict(zip((ir_measures.Success @ 1, ir_measures.nDCG @ 10, ir_measures.R @ 100), METRICS, strict=True))
    gains = {query_id: {d: max(grade, 0) for d, grade in grades.items()} for query_id, grades in qrels.items()}
    scored = {query_id: scored_by_rank(doc_ids) for query_id, doc_ids in run.items() if query_id in qrels}
    per_query = {query_id: dict.fromkeys(METRICS, 0.0) for query_id in qrels}
    for metric in ir_measures.iter_calc(list(measures), gains, scored):
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
