"""Between the two passes: which documents of a cut source are kept, and how many come before every split.

A document is kept if no earlier one has the hash of its doc_id. The sorted hashes of all splits are merged bucket by bucket, so
many at a time that about `AT_ONCE` are in memory. Of a sample, the best of every split's best are kept. Cost: one byte per
document here, one bit in what is written; ten million hashes take seconds.

    work/reading/kept.bin           a bit per document of the source, in its order: whether it is kept
    work/reading/numbering.json     documents and kept documents before every split, lines before every piece
    work/reading/members.parquet    the doc_ids of a sample
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.document import Rejected
from zerogr.corpus.sampling import Chosen
from zerogr.corpus.splits import Splits
from zerogr.corpus.stage import judged_of, no_document
from zerogr.corpus.survey import FOLDER, KEYS, NUM_BUCKETS, Survey, place_of
from zerogr.index.index import Index
from zerogr.store import storage

AT_ONCE = 2**22
"""Hashes that are merged together, 100 bytes each."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """Where every split stands in the whole. Lists of splits have one entry more, for their end."""

    documents: list[int]
    """Documents of the source before every split."""
    kept: list[int]
    """Those of them that are kept: the row_id of the split's first kept document, if the corpus begins with 0."""
    lines: list[list[int]]
    """Of every split, for every piece: lines or rows of its file before it."""

    def shards_of(self, split: int, size: int) -> range:
        """Returns the shards that begin in a split, given the documents of a shard.

        A shard begins behind the last document of the one before it: the rows that were rejected there are its own. So the
        first one begins in split 0, and one more than there are documents for may begin behind the last of all.
        """
        first = self.kept[split] // size + 1 if split else 0
        return range(first, self.kept[split + 1] // size + 1)


def number(config: Config, index: Index, splits: Splits) -> Numbering:
    """Returns the numbering of a source whose splits are all surveyed, and publishes it for the workers.

    Raises:
        UserError: No document is left.
    """
    uris = [place_of(index, "survey", split, "json") for split in range(len(splits.pieces))]
    surveys = [Survey(**entry) for entry in storage.for_each(storage.read_json, uris)]
    documents = [0, *accumulate(survey.num_documents for survey in surveys)]
    is_kept = np.zeros(documents[-1], dtype=bool)
    for positions in (
        _sampled(config, index, documents) if config.corpus.max_documents else _first(index, surveys, documents)
    ):
        is_kept[positions] = True
    if not is_kept.any():
        told = next((survey.first_rejected for survey in surveys if survey.first_rejected), None)
        raise no_document(config, sum(survey.num_rejected for survey in surveys), Rejected("", *told) if told else None)
    kept = [0, *accumulate(int(is_kept[begin:end].sum()) for begin, end in pairwise(documents))]
    numbering = Numbering(documents, kept, _lines_before(splits, surveys))
    storage.write_bytes(index.path(FOLDER, "kept.bin"), np.packbits(is_kept).tobytes())
    storage.write_json(index.path(FOLDER, "numbering.json"), asdict(numbering))
    return numbering


def read_numbering(index: Index) -> tuple[Numbering, np.ndarray]:
    """Returns the numbering and the bits of `kept.bin` (uint8, eight to a byte)."""
    numbering = Numbering(**storage.read_json(index.path(FOLDER, "numbering.json")))
    return numbering, np.frombuffer(storage.read_bytes(index.path(FOLDER, "kept.bin")), dtype=np.uint8)


def read_members(index: Index) -> set[str]:
    """Returns the doc_ids of the sample."""
    return set(storage.read_parquet(index.path(FOLDER, "members.parquet")).column("doc_id").to_pylist())


def _first(index: Index, surveys: list[Survey], documents: list[int]) -> Iterator[np.ndarray]:
    """Yields the positions in the source (int64) of the documents that are the first with their hash."""
    for begin, end in _buckets(surveys):
        parts, positions = [], []
        for split, survey in enumerate(surveys):
            low, high = survey.buckets[begin] * KEYS.itemsize, survey.buckets[end] * KEYS.itemsize
            if low < high:
                data = storage.read_range(place_of(index, "keys", split, "bin"), low, high)
                part = np.frombuffer(data, dtype=KEYS)
                parts.append(part["key"])
                positions.append(part["position"].astype(np.int64) + documents[split])
        if parts:
            # Splits stand in order, and of equal hashes np.unique names the first.
            yield np.concatenate(positions)[np.unique(np.concatenate(parts), return_index=True)[1]]


def _buckets(surveys: list[Survey]) -> Iterator[tuple[int, int]]:
    """Yields ranges of buckets that hold about `AT_ONCE` hashes, or one bucket each."""
    begin, size = 0, 0
    for bucket in range(NUM_BUCKETS):
        more = sum(survey.buckets[bucket + 1] - survey.buckets[bucket] for survey in surveys)
        if size and size + more > AT_ONCE:
            yield begin, bucket
            begin, size = bucket, 0
        size += more
    yield begin, NUM_BUCKETS


def _sampled(config: Config, index: Index, documents: list[int]) -> Iterator[np.ndarray]:
    """Yields the positions in the source (int64) of the sample, and publishes whose they are."""
    chosen = Chosen(config.corpus.max_documents or 0, judged=judged_of(config), seed=config.seed)
    for split, before in enumerate(documents[:-1]):
        for row in storage.read_parquet(place_of(index, "chosen", split, "parquet")).to_pylist():
            chosen.offer(row["doc_id"], before + row["position"])
    storage.write_parquet(index.path(FOLDER, "members.parquet"), pa.table({"doc_id": list(chosen.members)}))
    yield np.fromiter(chosen.members.values(), dtype=np.int64, count=len(chosen.members))


def _lines_before(splits: Splits, surveys: list[Survey]) -> list[list[int]]:
    before: defaultdict[int, int] = defaultdict(int)
    found = []
    for pieces, survey in zip(splits.pieces, surveys, strict=True):
        found.append([before[piece.file] for piece in pieces])
        for piece, num_lines in zip(pieces, survey.num_lines, strict=True):
            before[piece.file] += num_lines
    return found
