"""The lexical stage: the heaviest terms of every document, counted per shard in parallel; then one inverted file of them.

The documents of the index are those that have a docid, in the order of docids/: row i is the i-th of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zerogr.corpus.stage import load_frequency
from zerogr.docids.rules import Terms
from zerogr.index.index import Index, shards_in
from zerogr.llm.generation import ShardReport, publish_rows
from zerogr.progress import Progress
from zerogr.ranking.lexical_index import LexicalIndex
from zerogr.store import storage
from zerogr.text.words import key_of, stem

VERSION = 1
FOLDER = "work/lexical"
NUM_TERMS = 64
"""The heaviest terms of a document that can be found; what stands behind them says little of it."""
MOST_COUNTED = 255
"""Occurrences of a term in a document."""
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("stems", pa.list_(pa.uint64())),  # keys of its terms' stems, heaviest first, each once
        ("counts", pa.list_(pa.uint8())),
        ("length", pa.int32()),  # the sum of the counts of all its terms
    ]
)


def lexical_inputs(index: Index) -> dict[str, Any]:
    """Returns what the lexical index is made from."""
    return {
        "corpus": index.require("corpus").fingerprint,
        "docids": index.require("docids").fingerprint,
        "version": VERSION,
    }


class TermCounter:
    """Counts the terms of one shard at a time."""

    def __init__(self, index: Index) -> None:
        self._index, self._frequency = index, load_frequency(index)

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the terms of the shard's documents."""
        documents = storage.read_parquet(self._index.shard("corpus", shard)).to_pylist()
        rows = [(document["doc_id"], self._row(document)) for document in documents]
        return publish_rows(
            self._index, "lexical", FOLDER, shard, SCHEMA, rows, num_prompt_tokens=0, num_output_tokens=0
        )

    def _row(self, document: dict[str, Any]) -> dict[str, Any]:
        terms = Terms.of(document["title"], document["text"], self._frequency)
        counts: dict[int, int] = {}
        for term, count in zip(terms.ranked, terms.counts, strict=True):
            counts.setdefault(key_of(stem(term)), min(count, MOST_COUNTED))
        return {
            "row_id": document["row_id"],
            "stems": list(counts)[:NUM_TERMS],
            "counts": list(counts.values())[:NUM_TERMS],
            "length": sum(terms.counts),
        }


def build_lexical(index: Index) -> dict[str, Any]:
    """Builds and publishes the index; returns the stage's counts."""
    lexical = LexicalIndex.build(_documents(index))
    with storage.staging_folder(index.path("lexical")) as target:
        lexical.save(target)
    return {"rows": lexical.num_rows, "terms": len(lexical.stems), "bytes": lexical.nbytes}


def _documents(index: Index) -> Iterator[tuple[pa.Array, ...]]:
    """Yields stems, counts and lengths of the documents that have a docid."""
    shards = shards_in(index.path("docids"))
    progress = Progress("lexical", total=len(shards), unit="shards")
    for shard in shards:
        with_docid = storage.read_parquet(index.shard("docids", shard), ["row_id"]).column("row_id").combine_chunks()
        yield terms_of(index.shard(FOLDER, shard), with_docid)
        progress.advance(1)
    progress.close()


def terms_of(uri: str, row_ids: pa.Array) -> tuple[pa.Array, ...]:
    """Returns stems, counts and lengths of some documents of a shard of terms."""
    terms = storage.read_parquet(uri)
    terms = terms.filter(pc.is_in(terms.column("row_id"), value_set=row_ids))
    return tuple(terms.column(name).combine_chunks() for name in ("stems", "counts", "length"))
