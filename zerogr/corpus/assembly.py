"""The second pass over a cut source: every split's shards are written by whoever reads that split, and the counts are added.

A shard belongs to the split that it begins in. Whoever writes a split's last shard reads on into the next splits until it is
full, and the next one's writer passes over those rows. So a split is read once by its own writer and at most once more from
its beginning by the one before it, and no row is written twice. What is parallel are the splits that shards begin in: a sample
of a few shards is written by as many.

    work/reading/counted-000012.parquet   the document frequencies of a split's shards, and which shards those are; written last

A split whose counts are there, and whose shards are, is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.numbering import Numbering, read_members, read_numbering
from zerogr.corpus.publishing import FOLDER as CORPUS
from zerogr.corpus.publishing import ShardWriter
from zerogr.corpus.splits import Piece, Splits
from zerogr.corpus.stage import FREQUENCY, counts_of, repeated
from zerogr.corpus.streams import Place
from zerogr.corpus.survey import FOLDER, place_of, read_splits
from zerogr.index.index import Index, shards_in
from zerogr.llm.generation import ShardReport
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency

COUNTED_SCHEMA = pa.schema([("slot", pa.uint32()), ("documents", pa.uint32())])
_COUNTS_KEY = b"zerogr"


def pending_surveys(index: Index, splits: Splits) -> list[int]:
    """Returns the splits that are not surveyed yet."""
    files = _files(index)
    return [split for split in range(len(splits.pieces)) if f"survey-{split:06d}.json" not in files]


def pending_splits(config: Config, index: Index, numbering: Numbering) -> dict[int, int]:
    """Returns {split: the kept documents in it} of the splits whose shards are not all there, or not counted."""
    done, files = set(shards_in(index.path(CORPUS))), _files(index)
    with_shards = splits_with_shards(config, numbering)
    counted = [split for split in with_shards if f"counted-{split:06d}.parquet" in files]
    finished = {
        split
        for split, (_, shards, _) in zip(counted, _counted(index, counted, columns=[]), strict=True)
        if done.issuperset(shards)
    }
    return {split: numbering.kept[split + 1] - numbering.kept[split] for split in with_shards if split not in finished}


def splits_with_shards(config: Config, numbering: Numbering) -> list[int]:
    """Returns the splits that a shard begins in."""
    num_splits = len(numbering.kept) - 1
    return [split for split in range(num_splits) if numbering.shards_of(split, config.corpus.shard_size)]


def finish_corpus(config: Config, index: Index, numbering: Numbering) -> dict[str, Any]:
    """Publishes the document frequencies of the whole corpus; returns the stage's counts."""
    frequency = DocumentFrequency()
    for table, _, num_documents in _counted(index, splits_with_shards(config, numbering)):
        frequency.add_counts(table["slot"].to_numpy(), table["documents"].to_numpy(), num_documents)
    storage.write_bytes(index.path(FREQUENCY), frequency.to_bytes())
    return counts_of(index, frequency.num_documents)


def _files(index: Index) -> set[str]:
    return set(storage.list_files(index.path(FOLDER)))


def _counted(
    index: Index, splits: list[int], columns: list[str] | None = None
) -> Iterator[tuple[pa.Table, list[int], int]]:
    """Yields (slots and counts, shards, documents) of what was counted of splits."""
    uris = [place_of(index, "counted", split, "parquet") for split in splits]
    for table in storage.for_each(lambda uri: storage.read_parquet(uri, columns), uris):
        counts = json.loads(table.schema.metadata[_COUNTS_KEY])
        yield table, counts["shards"], counts["documents"]


class SplitWriter:
    """Writes the shards that begin in a split, one split at a time."""

    def __init__(self, config: Config, index: Index) -> None:
        self._config, self._index = config, index
        self._splits = read_splits(index)
        self._numbering, self._kept = read_numbering(index)
        self._members = read_members(index) if config.corpus.max_documents else None
        self._last: Piece | None = None
        """That was begun last."""

    def __call__(self, split: int) -> ShardReport:
        """Publishes the shards, those that are there excepted, and what was counted.

        Raises:
            UserError: The source cannot be read, or has changed.
        """
        shards = self._numbering.shards_of(split, self._config.corpus.shard_size)
        writer = ShardWriter(self._config, self._index, shard=shards.start)
        for row in self._rows_from(split, shards.start * self._config.corpus.shard_size):
            if writer.add(row) and writer.shards[-1] == shards[-1]:
                break
        writer.close()
        if self._last:  # what is left unread of a file, is not checked by its reader
            self._splits.check(self._last)
        slots, documents = writer.frequency.counts()
        num_documents = writer.frequency.num_documents
        counts = {"shards": writer.shards, "documents": num_documents}
        table = pa.table([slots, documents], schema=COUNTED_SCHEMA.with_metadata({_COUNTS_KEY: json.dumps(counts)}))
        storage.write_parquet(place_of(self._index, "counted", split, "parquet"), table)
        return ShardReport(split, num_documents, writer.num_rejected)

    def _rows_from(self, split: int, num_before: int) -> Iterator[Document | Rejected]:
        """Yields the rows behind the document that so many kept ones end with, which is in the split; to the source's end."""
        num_kept = self._numbering.kept[split]
        for each in range(split, len(self._splits.pieces)):
            for row, is_kept in self._judged_rows(each):
                if num_kept >= num_before:
                    yield row
                num_kept += is_kept

    def _judged_rows(self, split: int) -> Iterator[tuple[Document | Rejected, bool]]:
        """Yields the rows of a split, and whether they are documents that are kept."""
        begin, end = self._numbering.documents[split : split + 2]
        bits = np.unpackbits(self._kept[begin // 8 : -(-end // 8)])[begin % 8 :]
        number = 0
        lines = self._numbering.lines[split]
        for piece, num_lines in zip(self._splits.pieces[split], lines, strict=True):
            self._last = piece
            place = Place(self._splits.name(piece), num_lines)
            for row in self._splits.read(piece, self._config.corpus, place):
                if isinstance(row, Rejected):
                    yield row, False
                    continue
                is_kept = bool(bits[number])
                number += 1
                if is_kept:
                    yield row, True
                elif self._members is None or row.doc_id in self._members:
                    yield repeated(row), False
