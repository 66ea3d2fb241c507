"""The embeddings stage: a vector for every document, for schemes that make identifiers of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.config.base import EncoderConfig
from zerogr.config.tree import Config
from zerogr.index.index import Index, shards_in
from zerogr.llm.encoder import Encoder, encoder_hash
from zerogr.llm.generation import ShardReport
from zerogr.store import storage

VERSION = 1
FOLDER = "embeddings"


def encoder_of(config: Config) -> str:
    """Returns the encoder of a configuration whose scheme needs one."""
    assert isinstance(config.docids, EncoderConfig)
    return config.docids.encoder


def embeddings_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the vectors are made from."""
    return {
        "corpus": index.require("corpus").fingerprint,
        "docids.encoder": encoder_hash(encoder_of(config)),
        "version": VERSION,
    }


class Embedder:
    """Encodes the documents of one shard at a time."""

    def __init__(self, config: Config, index: Index) -> None:
        """Loads the encoder. Raises UserError if it or its package is missing."""
        self._index, self._encoder = index, Encoder(encoder_of(config))

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the vectors of a shard: row_id, doc_id, vector (float32 [dimensions])."""
        documents = storage.read_parquet(self._index.shard("corpus", shard), ["row_id", "doc_id", "title", "text"])
        titles, texts = (documents.column(name).to_pylist() for name in ("title", "text"))
        vectors = self._encoder.encode([f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
        table = documents.select(["row_id", "doc_id"]).append_column("vector", column)
        self._index.publish_shard("embeddings", FOLDER, shard, table, [])
        return ShardReport(shard, len(table), 0, 0, 0)


def read_vectors(index: Index, shard: int) -> np.ndarray:
    """Returns the vectors of a shard's documents, float32 [documents, dimensions], in the order of corpus/."""
    column = storage.read_parquet(index.shard(FOLDER, shard), ["vector"]).column("vector").combine_chunks()
    vectors: np.ndarray = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return vectors


def sampled_vectors(index: Index, number: int, seed: int) -> np.ndarray:
    """Returns the vectors of so many documents at most, drawn evenly; float32 [documents, dimensions], in their order.

    One shard is read at a time: what is held are the vectors that are returned.
    """
    shards = shards_in(index.path(FOLDER))
    ends = np.cumsum([storage.parquet_num_rows(index.shard(FOLDER, shard)) for shard in shards])
    total = int(ends[-1])
    rows = np.arange(total)
    if total > number:
        rows = np.sort(np.random.default_rng(seed).choice(total, number, replace=False))
    found = []
    for begin, end, shard in zip([0, *ends[:-1].tolist()], ends.tolist(), shards, strict=True):
        own = rows[(rows >= begin) & (rows < end)] - begin
        found.append(read_vectors(index, shard)[own])
    return np.concatenate(found)
