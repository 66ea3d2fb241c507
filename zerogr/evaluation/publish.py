"""The files of a comparison: metrics, a line per query, the report, TREC runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zerogr.evaluation.comparison import Comparison
from zerogr.evaluation.report.report import evaluation_report
from zerogr.evaluation.runs import format_run, run_file_name
from zerogr.store import storage


def publish(
    comparison: Comparison, uri: str, *, title: str = "Evaluation", provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes metrics.json, queries.jsonl, the report and one TREC run file per system below `uri`.

    Args:
        comparison: What came out.
        uri: The folder.
        title: Of the report.
        provenance: What was evaluated and how, for the report (`zerogr.evaluation.report.report.provenance_of`).
    """
    for answers in comparison.answers:
        run_file = storage.join(uri, run_file_name(answers.system))
        storage.write_bytes(run_file, format_run(answers.run, answers.system).encode())
    lines = "".join(json.dumps(query, ensure_ascii=False) + "\n" for query in comparison.queries)
    storage.write_bytes(storage.join(uri, "queries.jsonl"), lines.encode())
    tables = comparison.tables
    storage.write_bytes(storage.join(uri, "metrics.json"), (json.dumps(tables, indent=2) + "\n").encode())
    html, markdown = evaluation_report(comparison, tables, title=title, provenance=provenance or {})
    storage.write_bytes(storage.join(uri, "report.html"), html.encode())
    storage.write_bytes(storage.join(uri, "report.md"), markdown.encode())
