"""What the two generating stages share: how a shard is made, its counts, and the fingerprint of a generator.

A shard's counts travel in its Parquet file's metadata, so that the totals of a stage that was interrupted and resumed are
those of all its shards, and are known from the files' footers alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from zerogr.config.base import EngineConfig
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Engine, Generation
from zerogr.llm.engines.loading import load_engine
from zerogr.llm.models import model_hash, resolve_model
from zerogr.store import storage

COUNTS_KEY = b"zerogr"
"""Where the counts are in a shard's metadata."""


@dataclass(slots=True)
class ShardReport:
    """What was done for one shard."""

    shard: int
    rows: int
    rejected: int
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a document gets no row."""

    reason: str
    """A short machine-readable word."""
    detail: str
    """One sentence for a person."""


def write_shard(
    index: Index,
    stage: str,
    folder: str,
    shard: int,
    schema: pa.Schema,
    *,
    generate: Callable[[list[dict[str, Any]]], list[Generation]],
    make_row: Callable[[dict[str, Any], Generation], dict[str, Any] | Rejection],
    count: Callable[[list[dict[str, Any]]], dict[str, int]] = lambda _: {},
) -> ShardReport:
    """Makes a generating stage's shard from the corpus' shard of the same number, and publishes it.

    Args:
        index: Where both are.
        stage: Whose rejected rows these are.
        folder: Where the shard goes.
        shard: Its number.
        schema: Of its rows.
        generate: Asks the language model about all documents of the shard at once.
        make_row: Turns a document and its answer into a row, or says why not.
        count: Returns what else the shard's metadata says of its rows, in sums.
    """
    documents = storage.read_parquet(index.shard("corpus", shard)).to_pylist()
    generations = generate(documents)
    outcomes = [
        (
            document["doc_id"],
            Rejection("engine_error", generation.error) if generation.error else make_row(document, generation),
        )
        for document, generation in zip(documents, generations, strict=True)
    ]
    return publish_rows(
        index,
        stage,
        folder,
        shard,
        schema,
        outcomes,
        num_prompt_tokens=sum(generation.num_prompt_tokens for generation in generations),
        num_output_tokens=sum(generation.num_output_tokens for generation in generations),
        count=count,
    )


def publish_rows(
    index: Index,
    stage: str,
    folder: str,
    shard: int,
    schema: pa.Schema,
    outcomes: Sequence[tuple[str, dict[str, Any] | Rejection]],
    *,
    num_prompt_tokens: int,
    num_output_tokens: int,
    count: Callable[[list[dict[str, Any]]], dict[str, int]] = lambda _: {},
) -> ShardReport:
    """Publishes a shard of what became of documents, by their `doc_id`; the rest as in `write_shard`."""
    rows = [row for _, row in outcomes if not isinstance(row, Rejection)]
    rejected = [(doc_id, row.reason, row.detail) for doc_id, row in outcomes if isinstance(row, Rejection)]
    counts = {"prompt_tokens": num_prompt_tokens, "output_tokens": num_output_tokens, **count(rows)}
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata({COUNTS_KEY: json.dumps(counts)})
    index.publish_shard(stage, folder, shard, table, rejected)
    return ShardReport(shard, len(rows), len(rejected), num_prompt_tokens, num_output_tokens)


def read_counts(index: Index, folder: str) -> dict[str, int]:
    """Returns the sums of the counts of a generating stage's shards: rows, tokens, and what else it counts."""
    totals = Counter(rows=0, prompt_tokens=0, output_tokens=0)
    uris = [index.shard(folder, shard) for shard in shards_in(index.path(folder))]
    for footer in storage.for_each(storage.parquet_footer, uris):
        totals.update(json.loads(footer.metadata[COUNTS_KEY]), rows=footer.num_rows)
    return dict(totals)


def model_inputs(section: str, config: EngineConfig) -> dict[str, Any]:
    """Returns the fingerprint's part for the weights of a generator: the fake engine has none, a user's engine names them."""
    if config.engine == "fake":
        return {f"{section}.model": None}
    return {f"{section}.model": config.model if ":" in config.engine else model_hash(resolve_model(config.model))}


def load_generator(config: EngineConfig, *, batch_size: int | None, options: dict[str, Any]) -> Engine:
    """Returns the engine of a generating stage; `options` reach vLLM, or an engine of the user's."""
    return load_engine(config.engine, config.model, batch_size=batch_size, **options)
