"""Comparison: strategies of one loaded retriever, baselines over the same documents and foreign runs, query by query.

Every system answers all judged queries; the table holds the means, `differences` says which of them are more than luck,
`by_kind` has the means for the queries whose relevant documents are text, tables or code, and `queries.jsonl` each query's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from zerogr.config.evaluation import DEFAULT_METRICS
from zerogr.corpus.collection import Collection
from zerogr.evaluation.baselines.systems import Documents, run_baseline
from zerogr.evaluation.comparison import FIRST, Comparison
from zerogr.evaluation.explain import count_errors
from zerogr.evaluation.metrics import evaluate_queries
from zerogr.evaluation.systems import Answers, StrategySpec
from zerogr.index.index import Index
from zerogr.index.versions import Live
from zerogr.progress import Progress
from zerogr.retriever import Retriever

BATCH_SIZE = 16
OPENING = 160
"""Characters of a document in the report."""


def compare_systems(
    index: Index,
    retriever: Retriever,
    collection: Collection,
    *,
    doc_ids: set[str],
    strategies: Sequence[StrategySpec],
    baselines: Sequence[str] = (),
    foreign: Sequence[Answers] = (),
    k: int = 100,
    seed: int = 0,
    exclude_query_id: bool = False,
    tested: Sequence[str] = DEFAULT_METRICS,
) -> Comparison:
    """Returns how the systems answer the judged queries.

    Args:
        index: Where the documents and their pseudo-queries are.
        retriever: The index, loaded.
        collection: The judged queries, restricted to the documents of the index.
        doc_ids: Of the index.
        strategies: Of the retriever, compared in one pass over the loaded model.
        baselines: Of `zerogr.config.evaluation.BASELINES`.
        foreign: Runs of other systems; their results count as they stand.
        k: Documents per query, where a strategy does not say otherwise.
        seed: Of sampling strategies.
        exclude_query_id: Whether the document that has the query's own id is left out of every answer: in ArguAna and Quora the
            queries are documents themselves.
        tested: Of `zerogr.evaluation.metrics.METRICS`, those that differences are tested by.

    Raises:
        UserError: A baseline lacks what it needs.
    """
    documents = Documents.read(index, doc_ids) if baselines else Documents([], [], [])
    if "doc2query" in baselines:
        documents.expanded()  # before anything is decoded
    seconds = sum(stage["seconds"] for name, stage in index.manifest()["stages"].items() if name != "evaluation")

    def judged(found: Answers, k: int | None) -> Answers:
        return found.without_the_query(k) if exclude_query_id else found

    spare = int(exclude_query_id)
    answers = []
    for spec in [*strategies, *_parts_of(strategies[0], retriever), *_reranked(strategies, retriever)]:
        own_k = spec.options.get("k", k)
        asked = StrategySpec(spec.strategy, {**spec.options, "k": own_k + spare}) if spare else spec
        found = run_strategy(retriever, collection, asked, k=k, seed=seed, seconds_to_index=seconds)
        answers.append(judged(replace(found, system=spec.system, options=spec.options), own_k))
    errors = count_errors(retriever, index, collection, answers[0].run, ranking=answers[0].options.get("ranking"))
    for name in baselines:
        answers.append(judged(run_baseline(name, documents, collection, k + spare, answers), k))
    answers += [judged(each, each.k) for each in foreign]
    per_query = {each.system: evaluate_queries(collection.qrels, each.run) for each in answers}
    kinds, openings = _looked_at(index, collection, answers)
    return Comparison(collection, answers, per_query, kinds, errors, openings, tested)


def _parts_of(spec: StrategySpec, retriever: Retriever) -> list[StrategySpec]:
    """Returns a strategy with each ranker of a mix by itself: its parts are rows beside it."""
    if "ranking" in spec.options:
        return []
    return [StrategySpec(spec.strategy, {**spec.options, "ranking": name}) for name in retriever.rankers]


def _reranked(strategies: Sequence[StrategySpec], retriever: Retriever) -> list[StrategySpec]:
    """Returns the strategies with re-ranking, where the retriever has learnt it: both orders are rows of the table."""
    if retriever.writer.scorer is None:
        return []
    return [
        StrategySpec(spec.strategy, {**spec.options, "rerank": True})
        for spec in strategies
        if "rerank" not in spec.options
    ]


def run_strategy(
    retriever: Retriever,
    collection: Collection,
    spec: StrategySpec,
    *,
    k: int = 100,
    seed: int = 0,
    seconds_to_index: float | None = None,
) -> Answers:
    """Returns what a decoding strategy finds; queries are decoded `BATCH_SIZE` at a time."""
    run: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    progress = Progress(f"evaluating {spec.system}", total=len(collection.queries), unit="queries")
    start = time.monotonic()
    queries = iter(collection.queries.items())
    while batch := list(islice(queries, BATCH_SIZE)):
        answers = retriever.search(
            [query.text for _, query in batch],
            instruction=[query.instruction for _, query in batch],
            strategy=spec.strategy,
            seed=seed,
            batch_size=BATCH_SIZE,
            **{"k": k, **spec.options},
        )
        for (query_id, _), hits in zip(batch, answers, strict=True):
            run[query_id] = [hit.doc_id for hit in hits]
            scores[query_id] = [hit.score for hit in hits]
        progress.advance(len(batch))
    progress.close()
    ms = 1000 * (time.monotonic() - start) / max(len(run), 1)
    return Answers(
        spec.system,
        run,
        spec.strategy,
        ms,
        seconds_to_index,
        scores,
        spec.options.get("k", k),
        spec.options,
        retriever.has_log_probs(spec.options.get("ranking")) and not spec.options.get("rerank"),
    )


def _looked_at(
    index: Index, collection: Collection, answers: Sequence[Answers]
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the kinds of the queries and the beginnings of documents, as `Comparison` has them."""
    wanted = {doc_id for grades in collection.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    wanted |= {doc_id for each in answers for found in each.run.values() for doc_id in found[:FIRST]}
    wanted_ids = pa.array(sorted(wanted))
    kind_of: dict[str, str] = {}
    openings: dict[str, str] = {}
    for table in Live(index).tables("corpus", ["doc_id", "kind", "title", "text"]):
        for row in table.filter(pc.is_in(table.column("doc_id"), value_set=wanted_ids)).to_pylist():
            kind_of[row["doc_id"]] = row["kind"]
            opening = " ".join(f"{row['title']} {row['text'][: 4 * OPENING]}".split())
            openings[row["doc_id"]] = opening if len(opening) <= OPENING else f"{opening[:OPENING]}…"
    found = {}
    for query_id, grades in collection.qrels.items():
        kinds = {kind_of[doc_id] for doc_id, grade in grades.items() if grade > 0 and doc_id in kind_of}
        found[query_id] = kinds.pop() if len(kinds) == 1 else "mixed"
    return found, openings
