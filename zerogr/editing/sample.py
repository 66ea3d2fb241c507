"""Pseudo-queries of an index that are remembered, as columns: most of them are only counted, compared or handed on.

An update of one document hands on thousands of queries and looks at few, so a query becomes an object when it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.training.examples import Relevant, TextExample

_ANSWER = pa.struct([("text", pa.string()), ("weight", pa.float64())])
_SCHEMA = pa.schema(
    [
        ("layer", pa.int32()),
        ("number", pa.int32()),
        ("hash", pa.int64()),
        ("key", pa.int64()),
        ("doc_id", pa.string()),
        ("docid", pa.string()),
        ("instruction", pa.string()),
        ("query", pa.string()),
        ("documents", pa.list_(pa.struct([("grade", pa.float64()), ("answers", pa.list_(_ANSWER))]))),
    ]
)


class Known(NamedTuple):
    """A query of a document, and what it teaches."""

    doc_id: str
    docid: str
    example: TextExample

    @property
    def key(self) -> int:
        """What a model makes of two queries of the same key is the same: a hash of instruction and query, 63 bits."""
        return seed_of(0, "state", self.example.instruction, self.example.query)


class Ranked(NamedTuple):
    """A query in the order in which queries are kept."""

    number: int
    """Among those of its document."""
    hash: int
    layer: int
    """Of the index, that its document came with."""
    known: Known


class Sample(Sequence[Known]):
    """Queries in the order in which they are kept: the first of each document before a second of any, then by hash."""

    def __init__(self, table: pa.Table) -> None:
        """Takes over columns that `write` wrote or `of` made."""
        self._table = table.combine_chunks()

    @classmethod
    def of(cls, ranked: Iterable[Ranked]) -> Self:
        """Returns queries as columns."""
        return cls(pa.Table.from_pylist([_row(each) for each in ranked], _SCHEMA).sort_by(_ORDER))

    @classmethod
    def read(cls, uri: str) -> Self:
        """Reads what `write` wrote."""
        return cls(storage.read_parquet(uri))

    def write(self, uri: str) -> None:
        """Publishes them."""
        storage.write_parquet(uri, self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Known]:
        return map(_known, self._table.to_pylist())

    @overload
    def __getitem__(self, place: int) -> Known: ...
    @overload
    def __getitem__(self, place: slice) -> list[Known]: ...
    def __getitem__(self, place: int | slice) -> Known | list[Known]:
        if isinstance(place, slice):
            return self.taken(np.arange(len(self))[place])
        return self.taken([range(len(self))[place]])[0]

    def taken(self, places: Sequence[int] | np.ndarray) -> list[Known]:
        """Returns some of them, int [n] in their order."""
        return [_known(row) for row in self._table.take(pa.array(places, pa.int64())).to_pylist()]

    @property
    def keys(self) -> np.ndarray:
        """The key of each, int64 [n]."""
        return np.asarray(self._table.column("key"))

    def docids(self) -> tuple[list[str], np.ndarray]:
        """Returns the docids that they are to find, each once, and which of these each query is to find, int32 [n]."""
        encoded = self._table.column("docid").combine_chunks().dictionary_encode()
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices)

    def without(self, doc_ids: Collection[str]) -> Self:
        """Returns those of other documents."""
        gone = pc.is_in(self._table.column("doc_id"), value_set=pa.array(list(doc_ids), pa.string()))
        return type(self)(self._table.filter(pc.invert(gone)))

    def left_by(self, removed: pa.Table) -> Self:
        """Returns those whose document was not removed by a later update than it came with; `removed` as in an index."""
        last = removed.group_by("doc_id").aggregate([("update", "max")])
        at = pc.index_in(self._table.column("doc_id"), value_set=last.column("doc_id").combine_chunks())
        removed_by = pc.fill_null(last.column("update_max").take(at), -1)
        return type(self)(self._table.filter(pc.less_equal(removed_by, self._table.column("layer"))))

    def with_more(self, others: Self, most: int) -> Self:
        """Returns the first `most` of these and others together."""
        return type(self)(pa.concat_tables([self._table, others._table]).sort_by(_ORDER).slice(0, most))


_ORDER = [("number", "ascending"), ("hash", "ascending")]


def _row(ranked: Ranked) -> dict[str, Any]:
    known = ranked.known
    return {
        "layer": ranked.layer,
        "number": ranked.number,
        "hash": ranked.hash,
        "key": known.key,
        "doc_id": known.doc_id,
        "docid": known.docid,
        "instruction": known.example.instruction,
        "query": known.example.query,
        "documents": [
            {"grade": grade, "answers": [{"text": text, "weight": weight} for text, weight in answers]}
            for grade, answers, _ in known.example.documents
        ],
    }


def _known(row: dict[str, Any]) -> Known:
    documents = [
        Relevant(document["grade"], [(answer["text"], answer["weight"]) for answer in document["answers"]])
        for document in row["documents"]
    ]
    return Known(row["doc_id"], row["docid"], TextExample(row["instruction"], row["query"], documents))
