"""Judged test collections: queries and relevance judgements (qrels) read from a BEIR folder.

A BEIR folder holds `queries.jsonl` ({"_id", "text", "metadata"?} per line) and `qrels/<split>.tsv` (query-id,
corpus-id, grade, after a header line). Folders are local or in object storage (fsspec). The documents are not read
here: they are in the index. Cost: one pass over both files; the judged queries and their judgements stay in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from zerogr import storage
from zerogr.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a collection."""

    query_id: str
    """Unique in the collection."""
    text: str
    """Never empty."""
    instruction: str | None = None
    """What counts as relevant for this query, where the collection says so; it then replaces the run's instruction."""


@dataclass(frozen=True, slots=True)
class Collection:
    """The judged queries of one split. Queries without judgements in that split are left out."""

    queries: dict[str, Query]
    """Query id -> query, in the order of `queries.jsonl`; exactly the queries of `qrels`."""
    qrels: dict[str, dict[str, int]]
    """Query id -> doc_id -> grade. Relevant means grade > 0."""
    num_dropped_queries: int = 0
    """How many queries `restricted_to` left out, because none of their relevant documents is in the index."""

    @classmethod
    def load(cls, uri: str, split: str = "test") -> Collection:
        """Returns the judged queries of one split of a BEIR folder.

        Args:
            uri: The folder: a path or any URL fsspec knows, such as `s3://bucket/collection`.
            split: The name of a file in `qrels/`, without `.tsv`.

        Raises:
            UserError: The folder, `queries.jsonl` or the split is missing; a line is malformed (its file and line are
                named); the split holds no judgement; a judged query is not in `queries.jsonl`.
        """
        uri = uri.rstrip("/")
        filesystem, root = storage.filesystem(uri)
        if not filesystem.isdir(root):
            raise UserError(f"there is no folder '{uri}'; give the BEIR folder that holds queries.jsonl and qrels/")
        if not filesystem.isfile(f"{root}/queries.jsonl"):
            raise UserError(f"'{uri}' holds no queries.jsonl; give the BEIR folder that holds queries.jsonl and qrels/")
        if not filesystem.isfile(f"{root}/qrels/{split}.tsv"):
            raise UserError(f"'{uri}' holds no split '{split}'; the splits that exist: {_splits(filesystem, root)}")

        qrels = _read_qrels(filesystem, root, split)
        if not qrels:
            raise UserError(f"qrels/{split}.tsv of '{uri}' holds no judgement; give a split with at least one")
        queries = _read_queries(filesystem, root, qrels.keys())
        missing = [query_id for query_id in qrels if query_id not in queries]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(qrels)} judged queries of split '{split}' are not in queries.jsonl "
                f"of '{uri}', the first is {missing[0]!r}; add them or drop their judgements"
            )
        return cls(queries=queries, qrels=qrels)

    def hash(self) -> str:
        """Returns a hash of queries, instructions and judgements."""
        content = [(query.query_id, query.text, query.instruction) for query in self.queries.values()]
        return hashlib.sha256(json.dumps([content, self.qrels]).encode()).hexdigest()[:16]

    def by_document(self, instruction: str) -> dict[str, list[tuple[str, str, int]]]:
        """Returns {doc_id: (instruction, query, grade) of every query it is relevant for}.

        `instruction` stands where a query has none of its own.
        """
        found: dict[str, list[tuple[str, str, int]]] = {}
        for query_id, grades in self.qrels.items():
            query = self.queries[query_id]
            for doc_id, grade in grades.items():
                if grade > 0:
                    found.setdefault(doc_id, []).append((query.instruction or instruction, query.text, grade))
        return found

    def restricted_to(self, doc_ids: set[str]) -> Collection:
        """Returns the part of the collection that an index of these documents can be judged on.

        Judgements of other documents are dropped, and so are the queries left without a relevant document: no system
        could answer them. The number of dropped queries is logged and kept in `num_dropped_queries`.

        Raises:
            UserError: No query is left.
        """
        qrels = {}
        for query_id, grades in self.qrels.items():
            known = {doc_id: grade for doc_id, grade in grades.items() if doc_id in doc_ids}
            if any(grade > 0 for grade in known.values()):
                qrels[query_id] = known
        num_dropped = len(self.qrels) - len(qrels)
        if not qrels:
            raise UserError(
                f"none of the {len(self.qrels)} judged queries has a relevant document among the {len(doc_ids)} "
                "documents of this index; evaluate it with the collection that it was built from"
            )
        if num_dropped:
            logger.warning(
                "%d of %d queries are left out: none of their relevant documents is in the index",
                num_dropped,
                len(self.qrels),
            )
        queries = {query_id: query for query_id, query in self.queries.items() if query_id in qrels}
        return Collection(queries, qrels, self.num_dropped_queries + num_dropped)


def _splits(filesystem: fsspec.AbstractFileSystem, root: str) -> str:
    names = [path.rsplit("/", 1)[-1] for path in filesystem.glob(f"{root}/qrels/*.tsv")]
    return ", ".join(sorted(name.removesuffix(".tsv") for name in names)) or "none"


def _lines(filesystem: fsspec.AbstractFileSystem, root: str, name: str) -> Iterator[tuple[str, str]]:
    """Yields (place, line) of every line that is not blank; place is `file:line`, for error messages."""
    with filesystem.open(f"{root}/{name}", "rb") as file:
        for number, raw in enumerate(file, start=1):
            place = f"{name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
            if line.strip():
                yield place, line


def _read_qrels(filesystem: fsspec.AbstractFileSystem, root: str, split: str) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for index, (place, line) in enumerate(_lines(filesystem, root, f"qrels/{split}.tsv")):
        columns = line.split("\t")
        if index == 0:
            if re.fullmatch(r"-?\d+", columns[-1]):
                raise UserError(f"{place} must be the header, tab-separated: query-id, corpus-id, score; not {line!r}")
            continue
        if len(columns) != 3 or not columns[0] or not columns[1]:
            raise UserError(f"{place} must hold three tab-separated columns, query-id, corpus-id, score; not {line!r}")
        query_id, doc_id, text = columns
        try:
            grade = int(text)
        except ValueError:
            raise UserError(f"{place}: the score must be a whole number, not {text!r}") from None
        if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise UserError(f"{place} judges document {doc_id!r} for query {query_id!r} again, with another score")
    return qrels


def _read_queries(filesystem: fsspec.AbstractFileSystem, root: str, judged: Container[str]) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for place, line in _lines(filesystem, root, "queries.jsonl"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place} is not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict) or not isinstance(row.get("_id"), str) or not isinstance(row.get("text"), str):
            raise UserError(f'{place} must be an object with the strings "_id" and "text"')
        query_id = row["_id"]
        if query_id not in judged:
            continue
        if not row["text"].strip():
            raise UserError(f"{place}: the text of the judged query {query_id!r} is empty")
        if query_id in queries:
            raise UserError(f"{place} repeats the query id {query_id!r}; every query needs its own")
        queries[query_id] = Query(query_id, row["text"], _instruction(row, place))
    return queries


def _instruction(row: dict[str, Any], place: str) -> str | None:
    metadata = row.get("metadata")
    instruction = row.get("instruction")
    if instruction is None and isinstance(metadata, dict):
        instruction = metadata.get("instruction")
    if instruction is not None and not isinstance(instruction, str):
        raise UserError(f"{place}: the instruction must be a string, not {instruction!r}")
    return instruction or None
