"""Comparison: strategies of one loaded retriever, baselines over the same documents and foreign runs, query by query.

Every system answers all judged queries; the table holds the means, `differences` says which of them are more than luck,
`by_kind` has the means for the queries whose relevant documents are text, tables or code, and `queries.jsonl` each query's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zerogr import storage
from zerogr.corpus.collection import Collection
from zerogr.evaluation.baselines import Documents, run_baseline
from zerogr.evaluation.explain import count_errors
from zerogr.evaluation.metrics import METRICS, evaluate_queries, mean_of
from zerogr.evaluation.missed import FIRST
from zerogr.evaluation.report import evaluation_report
from zerogr.evaluation.runs import format_run, run_file_name
from zerogr.evaluation.significance import compare
from zerogr.evaluation.systems import Answers, StrategySpec
from zerogr.index import Index, shards_in
from zerogr.progress import Progress
from zerogr.retriever import Retriever

BATCH_SIZE = 16
COMPARED = ("acc@1", "ndcg@10", "recall@100")
"""The metrics whose differences are tested."""
TOP = 10
"""Documents per query and system in queries.jsonl."""
OPENING = 160
"""Characters of a document in the report."""


@dataclass(slots=True)
class Comparison:
    """What came out: `answers[i]` has the means `rows[i]`."""

    collection: Collection
    answers: list[Answers]
    per_query: dict[str, dict[str, dict[str, float]]]
    """System -> query id -> metric -> value."""
    kinds: dict[str, str]
    """Query id -> kind of its relevant documents, `mixed` if they are of several."""
    errors: dict[str, Any]
    """Why the first strategy's first hits were wrong, see `zerogr.evaluation.explain.count_errors`."""
    openings: dict[str, str] = field(default_factory=dict)
    """doc_id -> how the document begins, of the relevant ones and of every system's first hits."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table, as `zerogr evaluate --json` prints it."""
        return self.rows_of(list(self.collection.qrels))

    @property
    def by_kind(self) -> dict[str, list[dict[str, Any]]]:
        """The table for the queries about each kind of document; empty where there is but one kind."""
        queries: dict[str, list[str]] = {}
        for query_id, kind in self.kinds.items():
            queries.setdefault(kind, []).append(query_id)
        return {kind: self.rows_of(ids) for kind, ids in sorted(queries.items())} if len(queries) > 1 else {}

    def rows_of(self, query_ids: list[str]) -> list[dict[str, Any]]:
        """Returns the table for some of the queries."""
        return [self._row(answers, query_ids) for answers in self.answers]

    def _row(self, answers: Answers, query_ids: list[str]) -> dict[str, Any]:
        per_query = self.per_query[answers.system]
        means = mean_of({query_id: per_query[query_id] for query_id in query_ids})
        return {
            "system": answers.system,
            "strategy": answers.strategy,
            "num_queries": int(means["num_queries"]),
            **{metric: round(means[metric], 4) for metric in METRICS},
            "ms_per_query": None if answers.ms_per_query is None else round(answers.ms_per_query, 1),
            "seconds_to_index": None if answers.seconds_to_index is None else round(answers.seconds_to_index, 1),
        }

    @property
    def differences(self) -> list[dict[str, Any]]:
        """The first system against every other one, metric by metric."""
        return [
            {"system": self.answers[0].system, "against": other.system, "metric": metric}
            | _rounded(asdict(compare(*self._values(metric, self.answers[0], other))))
            for other in self.answers[1:]
            for metric in COMPARED
        ]

    def _values(self, metric: str, *compared: Answers) -> list[list[float]]:
        return [[values[metric] for values in self.per_query[answers.system].values()] for answers in compared]

    @property
    def queries(self) -> list[dict[str, Any]]:
        """Each query with every system's values, its first documents and the rank of the first relevant one."""
        return [
            {
                "query_id": query_id,
                "query": query.text,
                "kind": self.kinds[query_id],
                "relevant": {d: grade for d, grade in self.collection.qrels[query_id].items() if grade > 0},
                "error": self.errors["queries"].get(query_id),
                "systems": {answers.system: self._of_query(answers, query_id) for answers in self.answers},
            }
            for query_id, query in self.collection.queries.items()
        ]

    def _of_query(self, answers: Answers, query_id: str) -> dict[str, Any]:
        found, grades = answers.run.get(query_id, []), self.collection.qrels[query_id]
        rank = next((rank for rank, doc_id in enumerate(found, start=1) if grades.get(doc_id, 0) > 0), None)
        values = self.per_query[answers.system][query_id]
        scores = {"scores": [round(score, 4) for score in answers.scores[query_id][:TOP]]} if answers.scores else {}
        return {**_rounded(values), "first_relevant_rank": rank, "top": found[:TOP], **scores}

    @property
    def tables(self) -> dict[str, Any]:
        """All tables, as metrics.json has them."""
        return {
            "rows": self.rows,
            "by_kind": self.by_kind,
            "differences": self.differences,
            "errors": {name: count for name, count in self.errors.items() if name != "queries"},
        }

    def publish(self, uri: str, *, title: str = "Evaluation", provenance: Mapping[str, Any] | None = None) -> None:
        """Writes metrics.json, queries.jsonl, the report and one TREC run file per system below `uri`.

        Args:
            uri: The folder.
            title: Of the report.
            provenance: What was evaluated and how, for the report (`zerogr.evaluation.report.provenance_of`).
        """
        for answers in self.answers:
            run_file = storage.join(uri, run_file_name(answers.system))
            storage.write_bytes(run_file, format_run(answers.run, answers.system).encode())
        lines = "".join(json.dumps(query, ensure_ascii=False) + "\n" for query in self.queries)
        storage.write_bytes(storage.join(uri, "queries.jsonl"), lines.encode())
        tables = self.tables
        storage.write_bytes(storage.join(uri, "metrics.json"), (json.dumps(tables, indent=2) + "\n").encode())
        html, markdown = evaluation_report(self, tables, title=title, provenance=provenance or {})
        storage.write_bytes(storage.join(uri, "report.html"), html.encode())
        storage.write_bytes(storage.join(uri, "report.md"), markdown.encode())


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
) -> Comparison:
    """Returns how the systems answer the judged queries.

    Args:
        index: Where the documents and their pseudo-queries are.
        retriever: The index, loaded.
        collection: The judged queries, restricted to the documents of the index.
        doc_ids: Of the index.
        strategies: Of the retriever, compared in one pass over the loaded model.
        baselines: Of `zerogr.config_evaluation.BASELINES`.
        foreign: Runs of other systems; their results count as they stand.
        k: Documents per query, where a strategy does not say otherwise.
        seed: Of sampling strategies.

    Raises:
        UserError: A baseline lacks what it needs.
    """
    documents = Documents.read(index, doc_ids) if baselines else Documents([], [], [])
    if "doc2query" in baselines:
        documents.expanded()  # before anything is decoded
    seconds = sum(stage["seconds"] for name, stage in index.manifest()["stages"].items() if name != "evaluation")
    answers = []
    for spec in strategies:
        answers.append(run_strategy(retriever, collection, spec, k=k, seed=seed, seconds_to_index=seconds))
    query_share = answers[0].options.get("query_share")
    errors = count_errors(retriever, index, collection, answers[0].run, query_share=query_share)
    for name in baselines:
        answers.append(run_baseline(name, documents, collection, k, answers))
    answers += foreign
    per_query = {each.system: evaluate_queries(collection.qrels, each.run) for each in answers}
    kinds, openings = _looked_at(index, collection, answers)
    return Comparison(collection, answers, per_query, kinds, errors, openings)


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
        retriever.unit == "docid",
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
    for shard in shards_in(index.path("corpus")):
        table = storage.read_parquet(index.shard("corpus", shard), ["doc_id", "kind", "title", "text"])
        for row in table.filter(pc.is_in(table.column("doc_id"), value_set=wanted_ids)).to_pylist():
            kind_of[row["doc_id"]] = row["kind"]
            opening = " ".join(f"{row['title']} {row['text'][: 4 * OPENING]}".split())
            openings[row["doc_id"]] = opening if len(opening) <= OPENING else f"{opening[:OPENING]}…"
    found = {}
    for query_id, grades in collection.qrels.items():
        kinds = {kind_of[doc_id] for doc_id, grade in grades.items() if grade > 0 and doc_id in kind_of}
        found[query_id] = kinds.pop() if len(kinds) == 1 else "mixed"
    return found, openings


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
