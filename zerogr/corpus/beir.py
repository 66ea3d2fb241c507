"""Judged queries in BEIR's layout.

`queries.jsonl` holds {"_id", "text", "metadata"?} per line, `qrels/<split>.tsv` query-id, corpus-id and grade after a header
line. An `instruction` may stand in a query's row or in its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import fsspec

from zerogr.corpus.judged import Qrels, Query, add_grade, add_query, query_rows
from zerogr.corpus.streams import lines
from zerogr.errors import UserError
from zerogr.store import storage

_ASKED_FOR = "give a BEIR folder, which holds queries.jsonl and qrels/, or a MAIR one, with queries.jsonl alone"


def read_judged(uri: str, split: str) -> tuple[dict[str, Query], Qrels]:
    """Returns the queries that one split judges, and its judgements.

    Raises:
        UserError: The folder, `queries.jsonl` or the split is missing; a line is malformed; nothing is judged; a judged query
            is not in `queries.jsonl`.
    """
    filesystem, root = storage.filesystem(uri)
    if not filesystem.isdir(root):
        raise UserError(f"there is no folder '{uri}'; {_ASKED_FOR}")
    if not filesystem.isfile(f"{root}/queries.jsonl"):
        parts = ", ".join(_names(filesystem, f"{root}/*_queries.jsonl*"))
        raise UserError(
            f"'{uri}' holds no queries.jsonl; {_ASKED_FOR}{f', or one of its files, {parts}' if parts else ''}"
        )
    if not filesystem.isfile(f"{root}/qrels/{split}.tsv"):
        splits = [name.removesuffix(".tsv") for name in _names(filesystem, f"{root}/qrels/*.tsv")]
        raise UserError(f"'{uri}' holds no split '{split}'; the splits that exist: {', '.join(splits) or 'none'}")

    qrels = _read_qrels(uri, split)
    if not qrels:
        raise UserError(f"qrels/{split}.tsv of '{uri}' holds no judgement; give a split with at least one")
    queries = _read_queries(uri, qrels.keys())
    missing = [query_id for query_id in qrels if query_id not in queries]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(qrels)} judged queries of split '{split}' are not in queries.jsonl "
            f"of '{uri}', the first is {missing[0]!r}; add them or drop their judgements"
        )
    return queries, qrels


def _names(filesystem: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in filesystem.glob(pattern))


def _read_qrels(uri: str, split: str) -> Qrels:
    qrels: Qrels = {}
    for index, (location, raw) in enumerate(lines(storage.join(uri, "qrels", f"{split}.tsv"))):
        location = f"qrels/{location}"
        try:
            line = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{location} is not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
        columns = line.split("\t")
        if index == 0:
            if re.fullmatch(r"-?\d+", columns[-1]):
                raise UserError(
                    f"{location} must be the header, tab-separated: query-id, corpus-id, score; not {line!r}"
                )
            continue
        if len(columns) != 3 or not columns[0] or not columns[1]:
            raise UserError(
                f"{location} must hold three tab-separated columns, query-id, corpus-id, score; not {line!r}"
            )
        query_id, doc_id, text = columns
        try:
            grade = int(text)
        except ValueError:
            raise UserError(f"{location}: the score must be a whole number, not {text!r}") from None
        add_grade(qrels, location, query_id, doc_id, grade)
    return qrels


def _read_queries(uri: str, judged: Container[str]) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for location, row in query_rows(storage.join(uri, "queries.jsonl")):
        if not isinstance(row.get("_id"), str) or not isinstance(row.get("text"), str):
            raise UserError(f'{location} must be an object with the strings "_id" and "text"')
        if row["_id"] in judged:
            add_query(queries, location, row["_id"], row["text"], _instruction(row))
    return queries


def _instruction(row: dict[str, Any]) -> Any:
    metadata = row.get("metadata")
    if row.get("instruction") is None and isinstance(metadata, dict):
        return metadata.get("instruction")
    return row.get("instruction")
