"""Publishing a corpus: documents and rejected rows, in the source's order, become numbered Parquet shards.

A shard holds `corpus.shard_size` documents; the rows that were rejected behind the last document of a shard go with the next.
Cost: one shard in memory, and 16 MiB of document frequencies.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.document import Document, Rejected
from zerogr.index.index import Index, shards_in
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words

FOLDER = "corpus"
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("metadata", pa.string()),
    ]
)


class ShardWriter:
    """Takes the rows that follow the end of a shard, and publishes the next shards. Published ones are left alone."""

    def __init__(self, config: Config, index: Index, *, shard: int = 0, first_row: int = 0) -> None:
        """`shard` is the number of the first one, `first_row` the row_id of the whole corpus' first document."""
        self.frequency = DocumentFrequency()
        """Of the documents so far."""
        self.num_rejected = 0
        self.shards: list[int] = []
        """Those that are full, and at the end what was left."""
        self._index, self._size = index, config.corpus.shard_size
        self._next = shard
        self._row_id = first_row + shard * self._size
        self._done = set(shards_in(index.path(FOLDER)))
        self._documents: list[dict[str, Any]] = []
        self._rejected: list[Rejected] = []

    def add(self, row: Document | Rejected) -> bool:
        """Takes the next row; returns whether it has filled a shard."""
        if isinstance(row, Rejected):
            self._rejected.append(row)
            self.num_rejected += 1
            return False
        self.frequency.add(words(f"{row.title}\n{row.text}"))
        self._documents.append(_row(row, self._row_id))
        self._row_id += 1
        if len(self._documents) < self._size:
            return False
        self._publish()
        return True

    def close(self) -> None:
        """Publishes what is left."""
        if self._documents or self._rejected:
            self._publish()

    def _publish(self) -> None:
        if self._next not in self._done:
            table = pa.Table.from_pylist(self._documents, schema=SCHEMA)
            rejected = [(row.doc_id, row.reason, row.detail) for row in self._rejected]
            self._index.publish_shard("corpus", FOLDER, self._next, table, rejected)
        self.shards.append(self._next)
        self._documents.clear()
        self._rejected.clear()
        self._next += 1


def _row(document: Document, row_id: int) -> dict[str, Any]:
    """Returns a document as corpus/ has it."""
    return {
        "row_id": row_id,
        "doc_id": document.doc_id,
        "title": document.title,
        "text": document.text,
        "kind": document.kind,
        "metadata": json.dumps(document.metadata, ensure_ascii=False),
    }
