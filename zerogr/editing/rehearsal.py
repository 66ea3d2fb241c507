"""Old pseudo-queries: a fixed sample of what an index has learnt, for measuring what is forgotten and for learning on.

The sample is a function of the index alone: a few shards, evenly spaced, of those the documents with the smallest hashes, one
query of each document before a second of any. So it costs the same however large the index is. An update that learns hands its
sample on to the next one, which adds the new documents' queries, so it costs the same however many updates there were.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zerogr.config.tree import Config
from zerogr.editing.sample import Known, Ranked, Sample
from zerogr.index.index import Index, shards_in
from zerogr.index.versions import Layer, Live, Version, folder_of, read_removed
from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.training.recipes.retriever import RetrieverRecipe

_SPARE = 8
"""How many times the wanted documents are looked at."""
MOST_SHARDS = 64
"""That are read."""


@dataclass(frozen=True, slots=True)
class _Shard:
    layer: Layer
    number: int
    num_rows: int


def kept(root: Index, config: Config, version: Version, num_queries: int, *, for_measuring: bool = False) -> Sample:
    """Returns `num_queries` pseudo-queries of a version's documents, or all if there are fewer.

    Args:
        root: The index.
        config: Of it.
        version: Its removed documents are left out.
        num_queries: How many.
        for_measuring: Whether the last queries of a document come first, which no method is shown if there are enough, and
            documents that were added by updates are left out, so that the sample stays the same.
    """
    if for_measuring:
        return _read(root, config, version, version.layers[:1], num_queries, from_the_end=True)
    uri = root.path(folder_of(version.kept or 0), _file_of(num_queries))
    if version.kept is None or not storage.exists(uri):
        return _read(root, config, version, version.layers, num_queries)
    since = [layer for layer in version.layers if layer.number > version.kept]
    handed_on = Sample.read(uri).left_by(read_removed(root, version))
    return handed_on.with_more(_read(root, config, version, since, num_queries), num_queries)


def hand_on(root: Index, config: Config, version: Version, num_queries: int) -> None:
    """Writes the sample of a version that is being made into its folder, for `kept` of those that come after it."""
    sample = kept(root, config, version, num_queries)
    sample.write(root.path(folder_of(version.number), _file_of(num_queries)))


def _read(
    root: Index,
    config: Config,
    version: Version,
    layers: Iterable[Layer],
    num_queries: int,
    *,
    from_the_end: bool = False,
) -> Sample:
    """Returns the sample of some layers, from their shards."""
    live = Live(root, version)
    chosen: list[tuple[int, int, int, Ranked]] = []
    for shard in _spread([each for layer in layers for each in _shards(layer)], _SPARE * num_queries):
        recipe = RetrieverRecipe(config.model_copy(update={"index": root.path(shard.layer.folder)}))
        rows = live.read(shard.layer, "docids", shard.number, ["doc_id"]).column("doc_id").to_pylist()
        left, seen = set(rows), dict[str, int]()
        taught = recipe.taught_by(shard.number)
        for document, example in reversed(taught) if from_the_end else taught:
            doc_id = document["doc_id"]
            if doc_id not in left:
                continue
            seen[doc_id] = number = seen.get(doc_id, -1) + 1
            known = Known(doc_id, document["docid"], example)
            ranked = Ranked(number, seed_of(config.seed, "kept", doc_id, number), shard.layer.number, known)
            # A heap of the best so far, the worst first.
            entry = (-number, -ranked.hash, -len(chosen), ranked)
            if len(chosen) < num_queries:
                heapq.heappush(chosen, entry)
            elif entry[:2] > chosen[0][:2]:
                heapq.heapreplace(chosen, entry)
    return Sample.of(ranked for *_, ranked in chosen)


def _file_of(num_queries: int) -> str:
    return f"sample-{num_queries}.parquet"


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
