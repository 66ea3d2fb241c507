"""Reads corpus/; writes a vector per document with Ray Data, embeddings/. `zerogr embeddings CONFIG`"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.command import run_module
from jobs.shards import run_shards
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.docids.embeddings import FOLDER, Embedder, embeddings_inputs
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import EMBEDDINGS


def run(config: Config) -> StageRecord:
    """Runs the embeddings stage."""
    return run_stage(EMBEDDINGS, config, embeddings_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    run_shards("embeddings", index, FOLDER, partial(make_worker, config), config.compute, needs_engine=True)
    return {"rows": sum(index.rows_of_shards().values())}


def make_worker(config: Config) -> Embedder:
    """Returns what encodes the documents of a shard; called in the actor."""
    return Embedder(config, Index(config.index))


command = stage_command(EMBEDDINGS, run)

if __name__ == "__main__":
    run_module("embeddings", command)
