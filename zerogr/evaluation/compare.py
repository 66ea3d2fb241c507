"""Comparison: the strategies of one loaded retriever, and the baselines over the same documents, in one table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

from zerogr import storage
from zerogr.corpus.collection import Collection
from zerogr.evaluation.metrics import Run, evaluate_run
from zerogr.evaluation.runs import format_run, run_file_name
from zerogr.index import Index, shards_in
from zerogr.progress import Progress

BATCH_SIZE = 16


class Searcher(Protocol):
    """What is evaluated: a loaded retriever."""

    def search(self, queries: Sequence[str], **options: Any) -> list[list[Any]]:
        """Returns hits with a `doc_id` for every query."""


def run_strategy(
    retriever: Searcher, collection: Collection, *, k: int, strategy: str, seed: int = 0, **options: Any
) -> tuple[Run, float]:
    """Returns (the run, milliseconds per query) of one decoding strategy; queries are decoded `BATCH_SIZE` at a time."""
    run: Run = {}
    progress = Progress(f"evaluating {strategy}", total=len(collection.queries), unit="queries")
    start = time.monotonic()
    queries = iter(collection.queries.items())
    while batch := list(islice(queries, BATCH_SIZE)):
        answers = retriever.search(
            [query.text for _, query in batch],
            instruction=[query.instruction for _, query in batch],
            k=k,
            strategy=strategy,
            seed=seed,
            batch_size=BATCH_SIZE,
            **options,
        )
        for (query_id, _), hits in zip(batch, answers, strict=True):
            run[query_id] = [hit.doc_id for hit in hits]
        progress.advance(len(batch))
    progress.close()
    return run, 1000 * (time.monotonic() - start) / max(len(run), 1)


def run_bm25(index: Index, doc_ids: set[str], collection: Collection, *, k: int) -> tuple[Run, float]:
    """Returns (the run, milliseconds per query) of BM25 over the same documents."""
    from zerogr.evaluation.bm25 import BM25, document_text

    keys, texts = [], []
    for shard in shards_in(index.path("corpus")):
        for row in storage.read_parquet(index.shard("corpus", shard), ["doc_id", "title", "text"]).to_pylist():
            if row["doc_id"] in doc_ids:
                keys.append(row["doc_id"])
                texts.append(document_text(row["title"], row["text"]))
    bm25 = BM25.build(keys, texts)
    start = time.monotonic()
    found = bm25.search([query.text for query in collection.queries.values()], k)
    return dict(zip(collection.queries, found, strict=True)), 1000 * (time.monotonic() - start) / len(
        collection.queries
    )


def table_row(
    system: str, strategy: str | None, collection: Collection, run: Run, ms_per_query: float
) -> dict[str, Any]:
    """Returns one row of the comparison, the form `zerogr evaluate --json` prints."""
    metrics = evaluate_run(collection.qrels, run)
    return {
        "system": system,
        "strategy": strategy,
        "num_queries": int(metrics["num_queries"]),
        "acc@1": round(metrics["acc@1"], 4),
        "ndcg@10": round(metrics["ndcg@10"], 4),
        "recall@100": round(metrics["recall@100"], 4),
        "ms_per_query": round(ms_per_query, 1),
    }


def publish_results(uri: str, rows: list[dict[str, Any]], runs: dict[str, Run]) -> None:
    """Writes metrics.json and one TREC run file per system below `uri`."""
    for system, run in runs.items():
        storage.write_bytes(storage.join(uri, run_file_name(system)), format_run(run, system).encode())
    storage.write_bytes(storage.join(uri, "metrics.json"), (json.dumps({"rows": rows}, indent=2) + "\n").encode())
