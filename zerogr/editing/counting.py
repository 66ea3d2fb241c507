"""The statistics stage: the keys of old queries are summed group by group of shards, in parallel, and added up."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from zerogr.config.tree import Config
from zerogr.editing.existing import chat_of
from zerogr.editing.positions import Reader
from zerogr.editing.rehearsal import kept
from zerogr.editing.statistics import Statistics, layers_between, merged, patch, sample_ids, sum_of_keys
from zerogr.index.index import Index, shards_in
from zerogr.index.stage import STATISTICS
from zerogr.index.versions import Version
from zerogr.llm.generation import ShardReport
from zerogr.llm.models import load_model
from zerogr.seeds import seed_of
from zerogr.store import cache, storage
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples
from zerogr.training.normalisation import NORMALISATIONS
from zerogr.training.recipes.retriever import RetrieverRecipe
from zerogr.trie import DocidTrie

VERSION = 1
MOST_GROUPS = 16
QUERIES_PER_GROUP = 4096


def statistics_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the statistics are made from."""
    update = config.update
    return {
        "retriever": index.require("retriever").fingerprint,
        "update.layers": update.layers,
        "update.statistics_queries": update.statistics_queries,
        "update.patch_queries": update.patch_queries,
        "seed": config.seed,
        "version": VERSION,
    }


def groups_of(config: Config, index: Index) -> dict[int, int]:
    """Returns {group: its shards} of those groups whose sums are not published."""
    shards, number = shards_in(index.path("queries")), _num_groups(config, index)
    return {
        group: len(shards[group::number]) for group in range(number) if not storage.exists(_uri(index, group, number))
    }


def _num_groups(config: Config, index: Index) -> int:
    counts = index.require("queries").counts
    num_queries = min(config.update.statistics_queries, counts["queries"] + counts["spans"])
    return max(1, min(MOST_GROUPS, len(shards_in(index.path("queries"))), -(-num_queries // QUERIES_PER_GROUP)))


class KeyCounter:
    """Sums the keys of a group of shards at a time."""

    def __init__(self, config: Config, index: Index) -> None:
        """Loads the retriever."""
        self._config, self._index = config, index
        self._number = _num_groups(config, index)
        self.reader, self._tokenised = reader_of(config, index)

    def __call__(self, group: int) -> ShardReport:
        """Publishes the sums of a group."""
        shards = shards_in(self._index.path("queries"))
        quota = -(-self._config.update.statistics_queries // len(shards))
        recipe = RetrieverRecipe(self._config)
        chosen = []
        for shard in shards[group :: self._number]:
            examples = [example for _, example in recipe.taught_by(shard)]
            ids = sample_ids(len(examples), quota, seed_of(self._config.seed, "statistics", str(shard)) % 2**32)
            chosen += [examples[i] for i in ids]
        layers = layers_between(self._config.update.layers, len(self.reader.layers))
        sums, number = sum_of_keys(self.reader, self._tokenised(chosen), layers)
        tensors = {str(layer): outer for layer, outer in sums.items()}
        tensors["num_keys"] = torch.tensor(number)
        storage.write_bytes(_uri(self._index, group, self._number), save_tensors(tensors))
        return ShardReport(group, len(chosen), 0)


def build_statistics(config: Config, index: Index) -> dict[str, Any]:
    """Adds up the sums of all groups, measures the layers where that is wanted, and publishes both."""
    number = _num_groups(config, index)
    parts = []
    for group in range(number):
        tensors = load_tensors(storage.read_bytes(_uri(index, group, number)))
        num_keys = int(tensors.pop("num_keys"))
        parts.append(({int(layer): outer for layer, outer in tensors.items()}, num_keys))
    statistics = merged(parts)
    if config.update.patch_queries:
        _measure_layers(config, index, statistics)
    with storage.staging_folder(index.path(STATISTICS.name)) as folder:
        statistics.save(folder)
    return {"keys": statistics.num_keys, "layers": sorted(statistics.moments)}


def _measure_layers(config: Config, index: Index, statistics: Statistics) -> None:
    reader, tokenised = reader_of(config, index)
    known = kept(index, config, Version.of(index.manifest()), config.update.patch_queries, for_measuring=True)
    normalisation = NORMALISATIONS[config.training.normalise]
    statistics.patched, statistics.unpatched = patch(reader, tokenised([each.example for each in known]), normalisation)


def reader_of(config: Config, index: Index) -> tuple[Reader, Any]:
    """Returns the retriever that an index began with, and what makes examples for it."""
    version = Version()
    model, _ = load_model(str(cache.local_folder(index.path(version.retriever))), dtype="float32")
    chat, trie = chat_of(index, version), DocidTrie.load(cache.local_folder(index.path("trie")))
    choices = Choices(trie, chat.end_token_id)
    needed = choices if NORMALISATIONS[config.training.normalise].needs_choices else None
    return Reader(model, choices), lambda texts: Examples.build(texts, chat, needed)


def _uri(index: Index, group: int, number: int) -> str:
    return index.path("work/statistics", f"{group}-of-{number}.safetensors")
