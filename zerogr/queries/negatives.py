"""Documents that are not relevant to a query, as the negatives stage leaves them for training."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from zerogr.index.index import Index
from zerogr.store import storage

FOLDER, JUDGED = "negatives", "judged.parquet"
"""Its shards are those of the queries; judged queries have a file of their own."""
NOT_PSEUDO = -1
"""The row_id of judged queries."""
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),  # of the document whose pseudo-query it is
        ("query", pa.string()),
        ("relevant", pa.list_(pa.struct([("row_id", pa.int64()), ("teacher", pa.float32())]))),
        (
            "negatives",
            pa.list_(pa.struct([("row_id", pa.int64()), ("docid", pa.string()), ("teacher", pa.float32())])),
        ),
    ]
)


class Mined(NamedTuple):
    """What was found for one query."""

    teacher: dict[int, float]
    """What the teacher makes of its relevant documents, by row_id."""
    negatives: list[dict[str, Any]]
    """row_id, docid and teacher of documents that are not relevant."""


def read_negatives(uri: str) -> dict[tuple[int, str], Mined]:
    """Returns what was found for the queries of a file, by row_id and text."""
    return {
        (row["row_id"], row["query"]): Mined(
            {document["row_id"]: document["teacher"] for document in row["relevant"]}, row["negatives"]
        )
        for row in storage.read_parquet(uri).to_pylist()
    }


def judged_uri(index: Index) -> str:
    """Returns where those of the judged queries are."""
    return index.path(FOLDER, JUDGED)
