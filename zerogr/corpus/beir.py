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
    queries_file = _first_of(filesystem, root, "queries.jsonl", "queries.jsonl.gz")
    if queries_file is None:
        parts = ", ".join(_names(filesystem, f"{root}/*_queries.jsonl*"))
        raise UserError(
            f"'{uri}' holds no queries.jsonl; {_ASKED_FOR}{f', or one of its files, {parts}' if parts else ''}"
        )
    qrels_file = _first_of(filesystem, root, f"qrels/{split}.tsv", f"qrels/{split}.tsv.gz")
    if qrels_file is None:
        splits = [re.sub(r"\.tsv(\.gz)?$", "", name) for name in _names(filesystem, f"{root}/qrels/*.tsv*")]
        raise UserError(f"'{uri}' holds no split '{split}'; the splits that exist: {', '.join(splits) or 'none'}")

    qrels = _read_qrels(storage.join(uri, qrels_file))
    if not qrels:
        raise UserError(f"{qrels_file} of '{uri}' holds no judgement; give a split with at least one")
    queries = _read_queries(storage.join(uri, queries_file), qrels.keys())
    missing = [query_id for query_id in qrels if query_id not in queries]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(qrels)} judged queries of split '{split}' are not in queries.jsonl "
            f"of '{uri}', the first is {missing[0]!r}; add them or drop their judgements"
        )
    return queries, qrels


def _names(filesystem: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in filesystem.glob(pattern))


def _first_of(filesystem: fsspec.AbstractFileSystem, root: str, *names: str) -> str | None:
    return next((name for name in names if filesystem.isfile(f"{root}/{name}")), None)


def _read_qrels(uri: str) -> Qrels:
    qrels: Qrels = {}
    for index, (location, raw) in enumerate(lines(uri)):
        location = f"qrels/{location}"
        try:
            line = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{location} is not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
        columns = line.split("\t")
        if index == 0:
            if re.fullmatch(r"-?\d+(\.0*)?", columns[-1]):
                raise UserError(
                    f"{location} must be the header, tab-separated: query-id, corpus-id, score; not {line!r}"
                )
            continue
        if len(columns) != 3 or not columns[0] or not columns[1]:
            raise UserError(
                f"{location} must hold three tab-separated columns, query-id, corpus-id, score; not {line!r}"
            )
        query_id, doc_id, text = columns
        if not re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", text):  # pandas writes whole numbers as 1.0
            raise UserError(f"{location}: the score must be a whole number, not {text!r}")
        add_grade(qrels, location, query_id, doc_id, int(text.partition(".")[0]))
    return qrels


def _read_queries(uri: str, judged: Container[str]) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for location, row in query_rows(uri):
        key, text = row.get("_id"), row.get("text")
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise UserError(f'{location}: "_id" must be a string or an integer, not {key!r}')
        if (query_id := str(key)) not in judged:
            continue
        if not isinstance(text, str):
            raise UserError(f'{location}: the "text" of the judged query {query_id!r} must be a string, not {text!r}')
        add_query(queries, location, query_id, text, _instruction(row))
    return queries


def _instruction(row: dict[str, Any]) -> Any:
    metadata = row.get("metadata")
    if row.get("instruction") is None and isinstance(metadata, dict):
        return metadata.get("instruction")
    return row.get("instruction")
