"""Where the queries that a retriever learns from come from: an index's pseudo-queries, and judged queries."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from zerogr.corpus.collection import Collection
from zerogr.index.index import Index
from zerogr.store import storage


class Example(NamedTuple):
    """A query and the documents that are relevant to it."""

    instruction: str
    query: str
    relevant: tuple[tuple[int, float], ...]
    """(row_id, grade) of each, grades above 0."""
    weight: float
    """What a document of grade 1 weighs in the loss; of another grade, in proportion."""


def pseudo_examples(index: Index, shard: int, rows: Container[int]) -> Iterator[Example]:
    """Yields the pseudo-queries and spans of a shard, for the documents whose row_id is in `rows`."""
    for row in storage.read_parquet(index.shard("queries", shard)).to_pylist():
        if row["row_id"] in rows:
            for query in (*row["queries"], *row["spans"]):
                yield Example(row["instruction"], query, ((row["row_id"], 1.0),), 1.0)


def judged_examples(
    collection: Collection, row_of: Mapping[str, int], *, instruction: str, weight: float
) -> Iterator[Example]:
    """Yields the judged queries that have a relevant document in the index.

    Args:
        collection: Queries and judgements.
        row_of: {doc_id: row_id} of the documents in the index, or of those that matter here.
        instruction: Where a query has none of its own.
        weight: What a document of grade 1 weighs in the loss.
    """
    for query_id, grades in collection.qrels.items():
        known = tuple((row_of[doc_id], float(grade)) for doc_id, grade in grades.items() if doc_id in row_of)
        if relevant := tuple((row, grade) for row, grade in known if grade > 0):
            query = collection.queries[query_id]
            yield Example(query.instruction or instruction, query.text, relevant, weight)
