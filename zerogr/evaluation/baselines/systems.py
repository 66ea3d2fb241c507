"""Baselines over the very documents of an index, under the same protocol as the retriever.

    bm25        words: Lucene's BM25 over title and text
    doc2query   the same with the index's pseudo-queries behind the text, as docT5query does it
    minilm      vectors: all-MiniLM-L6-v2 and exact cosine
    rrf         reciprocal-rank fusion of the first strategy compared and BM25: what the two know together

The documents are held in memory, which bounds these baselines at some millions; the retriever has no such bound.

Source: Nogueira and Lin 2019, "From doc2query to docTTTTTquery".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.evaluation.baselines.bm25 import BM25, document_text
from zerogr.evaluation.baselines.dense import DenseIndex
from zerogr.evaluation.baselines.fusion import fuse
from zerogr.evaluation.systems import Answers
from zerogr.index.index import Index
from zerogr.index.versions import Live


class Searchable(Protocol):
    """A baseline's index."""

    def search(self, queries: list[str], k: int) -> list[list[str]]:
        """Returns the k best doc_ids of every query."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What the baselines index: N documents of an index."""

    doc_ids: list[str]
    texts: list[str]
    """Title and text."""
    pseudo_queries: list[list[str]]
    """The LM's; [] where the index has none."""

    @classmethod
    def read(cls, index: Index, doc_ids: set[str]) -> Documents:
        """Returns those documents of the index that are among `doc_ids`, with their pseudo-queries."""
        found, live = cls([], [], []), Live(index)
        queries = set(live.shards("queries"))
        for layer, shard in live.shards("corpus"):
            rows = live.read(layer, "corpus", shard, ["doc_id", "title", "text"]).to_pylist()
            asked = {}
            if (layer, shard) in queries:
                table = live.read(layer, "queries", shard, ["doc_id", "queries"])
                asked = {row["doc_id"]: row["queries"] for row in table.to_pylist()}
            for row in rows:
                if row["doc_id"] in doc_ids:
                    found.doc_ids.append(row["doc_id"])
                    found.texts.append(document_text(row["title"], row["text"]))
                    found.pseudo_queries.append(asked.get(row["doc_id"], []))
        return found

    def expanded(self) -> list[str]:
        """Returns each text with its pseudo-queries behind it. Raises UserError if there are none at all."""
        if not any(self.pseudo_queries):
            raise UserError(
                "the baseline doc2query needs the LM's pseudo-queries, and this index has none "
                "(queries.num_queries_per_document is 0); leave it out"
            )
        return [" ".join([text, *queries]) for text, queries in zip(self.texts, self.pseudo_queries, strict=True)]


def run_baseline(name: str, documents: Documents, collection: Collection, k: int, compared: list[Answers]) -> Answers:
    """Returns what a baseline finds.

    Args:
        name: One of `zerogr.config.evaluation.BASELINES`.
        documents: Of the index.
        collection: The judged queries.
        k: Documents per query.
        compared: What is known of other systems; `rrf` fuses the first strategy with BM25.

    Raises:
        UserError: `rrf` without a strategy, `doc2query` without pseudo-queries, or `minilm` without its package.
    """
    if name == "rrf":
        return _fusion(documents, collection, k, compared)
    build: dict[str, Callable[[], Searchable]] = {
        "bm25": lambda: BM25.build(documents.doc_ids, documents.texts),
        "doc2query": lambda: BM25.build(documents.doc_ids, documents.expanded()),
        "minilm": lambda: DenseIndex.build(documents.doc_ids, documents.texts),
    }
    start = time.monotonic()
    searchable = build[name]()
    built = time.monotonic()
    found = searchable.search([query.text for query in collection.queries.values()], k)
    ms = 1000 * (time.monotonic() - built) / len(collection.queries)
    run = dict(zip(collection.queries, found, strict=True))
    return Answers(name, run, ms_per_query=ms, seconds_to_index=built - start, k=k)


def _fusion(documents: Documents, collection: Collection, k: int, compared: list[Answers]) -> Answers:
    ours = next((answers for answers in compared if answers.strategy is not None), None)
    if ours is None:
        raise UserError("the baseline rrf fuses a strategy with bm25; name a strategy as well")
    words = next((answers for answers in compared if answers.system == "bm25"), None) or run_baseline(
        "bm25", documents, collection, k, compared
    )
    assert ours.ms_per_query is not None and words.ms_per_query is not None
    assert ours.seconds_to_index is not None and words.seconds_to_index is not None
    return Answers(
        "rrf",
        fuse([ours.run, words.run], k),
        ms_per_query=ours.ms_per_query + words.ms_per_query,
        seconds_to_index=ours.seconds_to_index + words.seconds_to_index,
        k=k,
    )
