"""Old pseudo-queries: a fixed sample of what an index has learnt, for measuring what is forgotten and for learning on.

The sample is a function of the index alone: a few shards, evenly spaced, of those the documents with the smallest hashes, one
query of each document before a second of any. So it costs the same however large the index is.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zerogr.config.tree import Config
from zerogr.index.index import Index, shards_in
from zerogr.index.versions import Layer, Live, Version
from zerogr.seeds import seed_of
from zerogr.training.examples import TextExample
from zerogr.training.recipes.retriever import RetrieverRecipe

_SPARE = 8
"""How many times the wanted documents are looked at."""
MOST_SHARDS = 64
"""That are read."""


class Known(NamedTuple):
    """A query of a document, and what it teaches."""

    doc_id: str
    docid: str
    example: TextExample


@dataclass(frozen=True, slots=True)
class _Shard:
    layer: Layer
    number: int
    num_rows: int


def kept(
    root: Index, config: Config, version: Version, num_queries: int, *, for_measuring: bool = False
) -> list[Known]:
    """Returns `num_queries` pseudo-queries of a version's documents, or all if there are fewer.

    Args:
        root: The index.
        config: Of it.
        version: Its removed documents are left out.
        num_queries: How many.
        for_measuring: Whether the last queries of a document come first, which no method is shown if there are enough, and
            documents that were added by updates are left out, so that the sample stays the same.
    """
    live = Live(root, version)
    layers = version.layers[:1] if for_measuring else version.layers
    chosen: list[tuple[int, int, int, Known]] = []
    for shard in _spread([each for layer in layers for each in _shards(layer)], _SPARE * num_queries):
        recipe = RetrieverRecipe(config.model_copy(update={"index": root.path(shard.layer.folder)}))
        rows = live.read(shard.layer, "docids", shard.number, ["doc_id"]).column("doc_id").to_pylist()
        left, seen = set(rows), dict[str, int]()
        taught = recipe.taught_by(shard.number)
        for document, example in reversed(taught) if for_measuring else taught:
            doc_id = document["doc_id"]
            if doc_id not in left:
                continue
            seen[doc_id] = number = seen.get(doc_id, -1) + 1
            # A heap of the best so far, the worst first: low numbers first, then low hashes.
            entry = (
                -number,
                -seed_of(config.seed, "kept", doc_id, number),
                -len(chosen),
                Known(doc_id, document["docid"], example),
            )
            if len(chosen) < num_queries:
                heapq.heappush(chosen, entry)
            elif entry[:2] > chosen[0][:2]:
                heapq.heapreplace(chosen, entry)
    return [known for *_, known in sorted(chosen, key=lambda entry: (-entry[0], -entry[1]))]


def new_queries(index: Index, config: Config) -> list[Known]:
    """Returns the pseudo-queries of the documents that an update adds."""
    recipe = RetrieverRecipe(config.model_copy(update={"index": index.uri}))
    published = set(shards_in(index.path("docids")))
    return [
        Known(document["doc_id"], document["docid"], example)
        for shard in shards_in(index.path("queries"))
        if shard in published
        for document, example in recipe.taught_by(shard)
    ]


def _shards(layer: Layer) -> list[_Shard]:
    counts = range(0, layer.num_rows, layer.shard_size)
    return [_Shard(layer, number, min(layer.shard_size, layer.num_rows - begin)) for number, begin in enumerate(counts)]


def _spread(shards: list[_Shard], num_rows: int) -> list[_Shard]:
    """Returns shards that hold about `num_rows` rows, evenly spaced by rows, and no more than `MOST_SHARDS`."""
    ends = np.cumsum([shard.num_rows for shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    number = min(MOST_SHARDS, len(shards), max(1, round(len(shards) * num_rows / max(total, 1))))
    if number == len(shards):
        return shards
    rows = (np.arange(number) * total) // number
    return [shards[i] for i in np.unique(np.searchsorted(ends, rows, side="right"))]
