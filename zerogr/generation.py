"""What the two generating stages share: the counts of a shard, and the fingerprint of a generator.

Token counts travel in the Parquet file's metadata, so that the totals of a stage that was interrupted and resumed are
those of all its shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from zerogr.config import GenerationConfig
from zerogr.engines import Engine, Generation, load_engine
from zerogr.models import model_hash, resolve_model

_KEY = b"zerogr"


@dataclass(slots=True)
class ShardReport:
    """What was done for one shard."""

    shard: int
    rows: int
    rejected: int
    prompt_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def of(cls, shard: int, rows: int, rejected: int, generations: Sequence[Generation]) -> ShardReport:
        """Returns the report of a shard whose rows cost these generations."""
        return cls(
            shard,
            rows,
            rejected,
            sum(generation.num_prompt_tokens for generation in generations),
            sum(generation.num_output_tokens for generation in generations),
        )


def add_counts(table: pa.Table, report: ShardReport) -> pa.Table:
    """Returns the table with the report's token counts in its metadata."""
    counts = {key: value for key, value in asdict(report).items() if key.endswith("_tokens")}
    return table.replace_schema_metadata({_KEY: json.dumps(counts)})


def read_counts(tables: Sequence[pa.Table]) -> dict[str, int]:
    """Returns the sums of the token counts of a stage's shards."""
    totals = {"prompt_tokens": 0, "output_tokens": 0}
    for table in tables:
        for key, value in json.loads((table.schema.metadata or {}).get(_KEY, b"{}")).items():
            totals[key] += value
    return totals


def model_inputs(section: str, config: GenerationConfig) -> dict[str, Any]:
    """Returns the fingerprint's part for the weights of a generator; the fake engine has none."""
    weights = None if config.engine == "fake" else model_hash(resolve_model(config.model))
    return {f"{section}.model": weights}


def load_generator(config: GenerationConfig, *, batch_size: int, options: dict[str, Any]) -> Engine:
    """Returns the engine of a generating stage; `options` reach vLLM alone."""
    vllm_only = options if config.engine in ("auto", "vllm") else {}
    return load_engine(config.engine, config.model, batch_size=batch_size, **vllm_only)
