"""The corpus stage: the source becomes numbered Parquet shards, and the corpus' document frequencies are counted.

One stream on one core: rows are read, checked, numbered and written, nothing but one shard and eight bytes per document is
held in memory. A row is known by the 64-bit hash of its `doc_id`; two different ids among ten million share one with a
chance of three in a million, and the second would be rejected, with its id, as a duplicate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import detect_format, read_corpus, source_hash
from zerogr.corpus.sampling import judged_doc_ids, sample
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.index.versions import Version, is_update, root_of
from zerogr.progress import Progress
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import key_of, words

VERSION = 3
_AT_ONCE = 4096
FREQUENCY = "work/document_frequency.bin"
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


def corpus_inputs(config: Config) -> dict[str, Any]:
    """Returns what the corpus stage is made from."""
    corpus = config.corpus.model_dump(exclude={"source", "keep_judged", "keep_judged_split", "format"})
    return {
        **{f"corpus.{key}": value for key, value in corpus.items()},
        "corpus.format": detect_format(config.corpus),
        "corpus.source": source_hash(config.corpus),
        "corpus.keep_judged": hashlib.sha256("\n".join(sorted(_judged(config))).encode()).hexdigest()[:16],
        "seed": config.seed if config.corpus.max_documents else None,
        "version": VERSION,
    }


def _judged(config: Config) -> set[str]:
    corpus = config.corpus
    return judged_doc_ids(corpus.keep_judged, corpus.keep_judged_split) if corpus.keep_judged else set()


def build_corpus(
    config: Config, index: Index, *, held: Callable[[Sequence[str]], set[str]] | None = None
) -> dict[str, Any]:
    """Writes the corpus shards and the document frequencies; returns the stage's counts.

    In the folder of an update, documents are numbered and counted on from those that the index has.

    Args:
        config: Of the run.
        index: Where it goes.
        held: For an update: returns which of some doc_ids the index already has; those rows are rejected.

    Raises:
        UserError: The source is unusable, has no document, or too many of its rows are rejected.
    """
    num_rejected = 0
    rows = _without(checked_documents(config), held) if held else checked_documents(config)
    frequency = _frequency_before(index)
    first_row = frequency.num_documents
    done = set(shards_in(index.path("corpus")))
    shard = 0
    pending: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    progress = Progress("corpus", unit="documents")

    def publish() -> None:
        nonlocal shard
        if shard not in done:
            table = pa.Table.from_pylist(pending, schema=SCHEMA)
            index.publish_shard(
                "corpus", "corpus", shard, table, [(row.doc_id, row.reason, row.detail) for row in rejected]
            )
        progress.advance(len(pending))
        pending.clear()
        rejected.clear()
        shard += 1

    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
            num_rejected += 1
            continue
        frequency.add(words(f"{row.title}\n{row.text}"))
        pending.append(_row(row, frequency.num_documents - 1))
        if len(pending) == config.corpus.shard_size:
            publish()
    if frequency.num_documents == first_row:
        first = f" (the first: {rejected[0].reason}, {rejected[0].detail})" if rejected else ""
        raise UserError(
            f"corpus.source '{config.corpus.source}' has no usable document; {num_rejected} rows were rejected{first}"
        )
    if pending or rejected:
        publish()
    storage.write_bytes(index.path(FREQUENCY), frequency.to_bytes())
    progress.close()
    return {
        "rows": frequency.num_documents - first_row,
        "rejected": num_rejected,
        "rejected_reasons": index.num_rejected("corpus"),
    }


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


def _frequency_before(index: Index) -> DocumentFrequency:
    """Returns the frequencies of the documents that an update adds to; none where an index begins."""
    if not is_update(index):
        return DocumentFrequency()
    root = root_of(index)
    last = Version.of(root.manifest()).layers[-1]
    return load_frequency(Index(root.path(last.folder)))


def _without(
    rows: Iterator[Document | Rejected], held: Callable[[Sequence[str]], set[str]]
) -> Iterator[Document | Rejected]:
    """Yields the rows, with those rejected that the index has; asked for many at a time."""
    while part := list(islice(rows, _AT_ONCE)):
        known = held([row.doc_id for row in part if isinstance(row, Document)])
        for row in part:
            if isinstance(row, Document) and row.doc_id in known:
                yield Rejected(row.doc_id, "duplicate_doc_id", "the index has this document; remove it to replace it")
            else:
                yield row


def load_frequency(index: Index) -> DocumentFrequency:
    """Returns the corpus' document frequencies."""
    return DocumentFrequency.from_bytes(storage.read_bytes(index.path(FREQUENCY)))


def checked_documents(config: Config) -> Iterator[Document | Rejected]:
    """Yields the (sampled) source with every `doc_id` at most once."""

    def read() -> Iterator[Document | Rejected]:
        return read_corpus(config.corpus)

    rows = read()
    if config.corpus.max_documents:
        judged = (
            judged_doc_ids(config.corpus.keep_judged, config.corpus.keep_judged_split)
            if config.corpus.keep_judged
            else set()
        )
        rows = sample(read, config.corpus.max_documents, judged=judged, seed=config.seed)
    seen = _SeenIds()
    for row in rows:
        if isinstance(row, Document) and not seen.add(row.doc_id):
            yield Rejected(row.doc_id, "duplicate_doc_id", "an earlier row has the same doc_id")
        else:
            yield row


class _SeenIds:
    """A set of 64-bit hashes: a small Python set in front of one sorted array. 8 bytes per id."""

    LIMIT = 2**18

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.zeros(0, dtype=np.uint64)

    def add(self, doc_id: str) -> bool:
        """Returns whether the id is new, and remembers it."""
        key = key_of(doc_id)
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        if key in self._recent or (place < len(self._sorted) and int(self._sorted[place]) == key):
            return False
        self._recent.add(key)
        if len(self._recent) == self.LIMIT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=self.LIMIT)
            recent.sort()
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
            self._recent.clear()
        return True
