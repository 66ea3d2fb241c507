"""What a comparison of systems came to: tables, differences, a line per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zerogr.config.evaluation import DEFAULT_METRICS
from zerogr.corpus.collection import Collection
from zerogr.evaluation.metrics import METRICS, mean_of
from zerogr.evaluation.significance import compare
from zerogr.evaluation.systems import Answers

TOP = 10
"""Documents per query and system in queries.jsonl."""
FIRST = 3
"""Hits per system whose documents are shown of a missed query."""


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
    tested: Sequence[str] = DEFAULT_METRICS
    """The metrics whose differences are tested."""

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
            for metric in self.tested
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


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
