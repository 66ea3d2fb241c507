"""What judged queries are made of, in whatever layout they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zerogr.corpus.document import Rejected
from zerogr.corpus.streams import json_rows
from zerogr.errors import UserError

Qrels = dict[str, dict[str, int]]
"""Query id -> doc_id -> grade. Relevant means grade > 0."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a collection."""

    query_id: str
    """Unique in the collection."""
    text: str
    """Never empty."""
    instruction: str | None = None
    """What counts as relevant for this query, where the collection says so; it then replaces the run's instruction."""


def query_rows(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location, object) of every line that is not blank.

    Raises:
        UserError: A line is no JSON object.
    """
    for location, row in json_rows(uri):
        if isinstance(row, Rejected):
            raise UserError(f"{location} cannot be read: {row.detail}; mend that line")
        yield location, row


def add_query(queries: dict[str, Query], location: str, query_id: str, text: str, instruction: Any) -> None:
    """Adds a judged query.

    Raises:
        UserError: Its text is empty, its id is there already, or its instruction is no string.
    """
    if not text.strip():
        raise UserError(f"{location}: the text of the judged query {query_id!r} is empty")
    if query_id in queries:
        raise UserError(f"{location} repeats the query id {query_id!r}; every query needs its own")
    if not isinstance(instruction, str | None):
        raise UserError(f"{location}: the instruction must be a string, not {instruction!r}")
    queries[query_id] = Query(query_id, text, instruction or None)


def add_grade(qrels: Qrels, location: str, query_id: str, doc_id: str, grade: int) -> None:
    """Adds a judgement.

    Raises:
        UserError: There is another one of the same document for the same query.
    """
    if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
        raise UserError(f"{location} judges document {doc_id!r} for query {query_id!r} again, with another score")
