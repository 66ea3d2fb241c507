"""Tokenises the retriever's training examples with Ray Data, a file per shard, for machines that train together."""

from __future__ import annotations

import os
from functools import partial

from jobs.shards import run_pending
from zerogr.config.tree import Config
from zerogr.index.index import Index
from zerogr.llm.generation import ShardReport
from zerogr.training.recipes.retriever import JUDGED, RetrieverRecipe, part_of

WORTH_IT = 50_000
"""Documents from which one machine, too, tokenises with all its cores instead of in the process that trains."""


def publish_examples(config: Config, index: Index) -> None:
    """Publishes every part of the examples that is not there yet.

    A small corpus on one machine needs none of this: whoever trains tokenises what is not published.

    Raises:
        UserError: A document's docid is not in the trie, or judged queries do not fit the index.
        Fault: As `run_pending`.
    """
    num_rows = index.rows_of_shards()
    total = sum(num_rows.values())
    if not os.environ.get("RAY_ADDRESS") and total < WORTH_IT:
        return
    recipe = RetrieverRecipe(config)
    published = recipe.published()
    there = published.names()
    missing = [part for part in recipe.parts() if part not in there]
    pending = {int(part): num_rows[int(part)] for part in missing if part != JUDGED}
    make = partial(ExampleWriter, config)
    run_pending("retriever", index, pending, total, make, config.compute, needs_engine=False, notes_hosts=False)
    if JUDGED in missing:
        published.write(JUDGED, recipe.part(JUDGED))


class ExampleWriter:
    """Tokenises one shard at a time."""

    def __init__(self, config: Config) -> None:
        self._recipe = RetrieverRecipe(config)
        self._published = self._recipe.published()

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the examples of a shard."""
        name = part_of(shard)
        part = self._recipe.part(name)
        self._published.write(name, part)
        return ShardReport(shard, len(part), 0)
