"""The corpus stage: the source becomes numbered Parquet shards, and the corpus' document frequencies are counted.

Here it is one stream on one core: rows are read, checked, numbered and written, nothing but one shard and eight bytes per
document is held in memory. A large source is cut and read by many (`splits`, `survey`, `numbering`, `assembly`); the shards are
the same. A row is known by the 64-bit hash of its `doc_id`; two different ids among ten million share one with a
chance of three in a million, and the second would be rejected, with its id, as a duplicate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from zerogr.config.tree import Config
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.publishing import ShardWriter
from zerogr.corpus.readers import detect_format, read_corpus, source_hash
from zerogr.corpus.sampling import judged_doc_ids, sample
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Version, is_update, root_of
from zerogr.progress import Progress
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import key_of

VERSION = 3
_AT_ONCE = 4096
FREQUENCY = "work/document_frequency.bin"


def corpus_inputs(config: Config) -> dict[str, Any]:
    """Returns what the corpus stage is made from."""
    corpus = config.corpus.model_dump(exclude={"source", "keep_judged", "keep_judged_split", "format"})
    return {
        **{f"corpus.{key}": value for key, value in corpus.items()},
        "corpus.format": detect_format(config.corpus),
        "corpus.source": source_hash(config.corpus),
        "corpus.keep_judged": hashlib.sha256("\n".join(sorted(judged_of(config))).encode()).hexdigest()[:16],
        "seed": config.seed if config.corpus.max_documents else None,
        "version": VERSION,
    }


def judged_of(config: Config) -> set[str]:
    """Returns the documents that a sample keeps first."""
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
    rows = _without(checked_documents(config), held) if held else checked_documents(config)
    frequency = _frequency_before(index)
    writer = ShardWriter(config, index, first_row=frequency.num_documents)
    progress = Progress("corpus", unit="documents")
    first_rejected: Rejected | None = None
    for row in rows:
        if first_rejected is None and isinstance(row, Rejected):
            first_rejected = row
        if writer.add(row):
            progress.advance(config.corpus.shard_size)
    if not writer.frequency.num_documents:
        raise no_document(config, writer.num_rejected, first_rejected)
    writer.close()
    frequency.add_counts(*writer.frequency.counts(), writer.frequency.num_documents)
    storage.write_bytes(index.path(FREQUENCY), frequency.to_bytes())
    progress.close()
    return counts_of(index, writer.frequency.num_documents)


def no_document(config: Config, num_rejected: int, first: Rejected | None) -> UserError:
    """Returns what is said of a source without any usable document; `first` is its first rejected row."""
    why = f" (the first: {first.reason}, {first.detail})" if first else ""
    return UserError(
        f"corpus.source '{config.corpus.source}' has no usable document; {num_rejected} rows were rejected{why}"
    )


def counts_of(index: Index, num_documents: int) -> dict[str, Any]:
    """Returns the counts of a stage that has published everything."""
    reasons = index.num_rejected("corpus")
    return {"rows": num_documents, "rejected": sum(reasons.values()), "rejected_reasons": reasons}


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
        rows = sample(read, config.corpus.max_documents, judged=judged_of(config), seed=config.seed)
    seen = _SeenIds()
    for row in rows:
        if isinstance(row, Document) and not seen.add(row.doc_id):
            yield repeated(row)
        else:
            yield row


def repeated(row: Document) -> Rejected:
    """Returns what becomes of a document whose doc_id an earlier one has."""
    return Rejected(row.doc_id, "duplicate_doc_id", "an earlier row has the same doc_id")


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
