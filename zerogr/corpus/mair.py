"""MAIR's layout: a folder per task, in one data set for the documents and in another for the queries.

    MAIR-Docs/<task>/docs.jsonl         {"id", "doc"} per line
    MAIR-Queries/<task>/queries.jsonl   {"qid", "instruction", "query", "labels": [{"id", "score"}, ...]} per line

Every query has its own instruction; there are no splits. A task with several corpora has files <part>_docs.jsonl and
<part>_queries.jsonl, each pair a collection of its own, and is read by naming one file.

Source: arXiv 2410.10127, https://github.com/sunnweiwei/MAIR.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from zerogr.corpus.judged import Qrels, Query, add_grade, add_query, query_rows
from zerogr.corpus.streams import json_rows
from zerogr.errors import UserError
from zerogr.store import storage

DOC_ID, TEXT = "id", "doc"
"""The columns of its documents."""
SPLIT = "test"
"""What its only split is called here."""
_QUERY = {"qid", "query", "labels"}


def has_documents(columns: Collection[str]) -> bool:
    """Whether rows with these columns are documents of MAIR."""
    return DOC_ID in columns and TEXT in columns


def is_corpus(file: str) -> bool:
    """Whether the first line of a JSON Lines file is a document of MAIR."""
    return has_documents(_first_row(file))


def corpora(names: Iterable[str]) -> list[str]:
    """Returns those of a folder's files that MAIR would call a corpus."""
    return [name for name in names if re.search(r"(^|[/_])docs\.jsonl(\.gz)?$", name)]


def queries_file(uri: str) -> str | None:
    """Returns the file with the judged queries of a MAIR folder, or `uri` if it names such a file; None if it is neither."""
    if uri.endswith((".jsonl", ".jsonl.gz")):
        return uri
    filesystem, root = storage.filesystem(uri)
    if filesystem.isdir(f"{root}/qrels"):
        return None
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        if filesystem.isfile(f"{root}/{name}") and _first_row(storage.join(uri, name)).keys() >= _QUERY:
            return storage.join(uri, name)
    return None


def read_judged(file: str, split: str) -> tuple[dict[str, Query], Qrels]:
    """Returns the queries of a file that have labels, and the labels.

    Raises:
        UserError: The file is missing, a line is malformed, nothing is judged, or a split is asked for.
    """
    if split != SPLIT:
        raise UserError(
            f"'{file}' is of MAIR, which has no splits: '{split}' is none; leave the split at '{SPLIT}', or give a BEIR folder"
        )
    if not storage.exists(file):
        raise UserError(f"there is no file '{file}'; give a folder with judged queries, or a file of MAIR's")
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    for location, row in query_rows(file):
        query_id, text, labels = _text_of(row.get("qid")), row.get("query"), row.get("labels")
        if query_id is None or not isinstance(text, str) or not isinstance(labels, list):
            raise UserError(f'{location} must be an object with "qid", the string "query" and the list "labels"')
        if labels:
            add_query(queries, location, query_id, text, row.get("instruction"))
        for label in labels:
            doc_id = _text_of(label.get("id")) if isinstance(label, dict) else None
            if doc_id is None:
                raise UserError(f'{location}: a label must be an object with "id" and "score", not {label!r}')
            add_grade(qrels, location, query_id, doc_id, _grade(label.get("score"), doc_id, location))
    if not qrels:
        raise UserError(f"'{file}' holds no judgement; give a file with at least one label")
    return queries, qrels


def _first_row(file: str) -> dict[str, Any]:
    _, row = next(json_rows(file), ("", None))
    return row if isinstance(row, dict) else {}


def _text_of(key: Any) -> str | None:
    """Returns an id as the corpus writes it."""
    if isinstance(key, bool) or not isinstance(key, str | int):
        return None
    return str(key).strip() or None


def _grade(score: Any, doc_id: str, location: str) -> int:
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score // 1:
        raise UserError(f"{location}: the score of document {doc_id!r} must be a whole number, not {score!r}")
    return int(score)
