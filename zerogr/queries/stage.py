"""The query stage: pseudo-queries and spans of every document, a shard at a time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.stage import load_frequency
from zerogr.index.index import Index
from zerogr.llm import prompts
from zerogr.llm.engines.engine import Engine, Generation, Prompt, Sampling
from zerogr.llm.generation import Rejection, ShardReport, model_inputs, read_counts, write_shard
from zerogr.queries.pseudo import instruction_of, judge_queries
from zerogr.queries.spans import make_spans
from zerogr.seeds import seed_of
from zerogr.text.words import words

VERSION = 3
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("instruction", pa.string()),
        ("queries", pa.list_(pa.string())),
        ("spans", pa.list_(pa.string())),
    ]
)


def queries_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the query stage is made from."""
    queries = config.queries
    inputs = {
        "corpus": index.require("corpus").fingerprint,
        "seed": config.seed,
        "instruction": config.instruction,
        "version": VERSION,
    }
    keys = {"num_spans_per_document", "span_words", "num_queries_per_document", "instructions"}
    if queries.num_queries_per_document:
        keys = set(type(queries).model_fields) - {"model"}
        inputs |= {"queries.prompt": prompts.QUERY_USER + prompts.QUERY_PREFILL, **model_inputs("queries", queries)}
    return inputs | {f"queries.{key}": getattr(queries, key) for key in sorted(keys)}


class QueryWriter:
    """Writes the pseudo-queries and spans of one shard at a time."""

    def __init__(self, config: Config, index: Index, engine: Engine | None) -> None:
        """`engine` is None when no query is to be sampled."""
        self._config, self._index, self._engine = config, index, engine
        self._frequency = load_frequency(index)

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the shard's queries and returns its counts."""
        return write_shard(
            self._index,
            "queries",
            "queries",
            shard,
            SCHEMA,
            generate=self._generate,
            make_row=self._make_row,
            count=_counts_of,
        )

    def _make_row(self, document: dict[str, Any], generation: Generation) -> dict[str, Any] | Rejection:
        title, text, config = document["title"], document["text"], self._config
        seed = seed_of(config.seed, "spans", document["doc_id"])
        instruction = instruction_of(config, document)
        if not isinstance(instruction, str):
            return Rejection("invalid_instruction", f"its metadata's instruction is {instruction!r}, which is no text")
        settings = config.queries
        queries, dropped = judge_queries(generation.texts, title, text, on_topic=settings.on_topic)
        return {
            "row_id": document["row_id"],
            "doc_id": document["doc_id"],
            "instruction": instruction,
            "queries": queries,
            "spans": make_spans(
                title, text, self._frequency, settings.num_spans_per_document, seed, span_words=settings.span_words
            ),
            "dropped": [reason for reason, _ in dropped],  # counted, not kept
        }

    def _generate(self, documents: list[dict[str, Any]]) -> list[Generation]:
        queries = self._config.queries
        if self._engine is None:
            return [Generation(texts=[]) for _ in documents]
        requests = []
        for document in documents:
            user, prefill = prompts.query_prompt(queries, document, str(instruction_of(self._config, document)))
            count = queries.num_queries_per_document
            seeds = (seed_of(self._config.seed, "queries", document["doc_id"], i) for i in range(count))
            requests.append(Prompt(user=user, prefill=prefill, seeds=tuple(seeds)))
        sampling = Sampling(
            max_tokens=queries.max_tokens, temperature=queries.temperature, top_p=queries.top_p, stop=("\n",)
        )
        return self._engine.generate(requests, sampling)


def _counts_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Returns what a shard's metadata says of its queries; sums, so that those of shards can be added."""
    counts: Counter[str] = Counter(samples=0, queries=0, spans=0, query_words=0, bigrams=0, distinct_bigrams=0)
    for row in rows:
        terms = [words(query) for query in row["queries"]]
        bigrams = [pair for query in terms for pair in pairwise(query)]
        counts.update(
            samples=len(row["queries"]) + len(row["dropped"]),
            queries=len(row["queries"]),
            spans=len(row["spans"]),
            documents_without_query=not row["queries"],
            query_words=sum(map(len, terms)),
            bigrams=len(bigrams),
            distinct_bigrams=len(set(bigrams)),
        )
        counts.update(f"dropped_{reason}" for reason in row["dropped"])
    return dict(counts)


def queries_counts(index: Index) -> dict[str, Any]:
    """Returns the counts of the finished query stage, which are those of its shards' footers.

    `kept` is the share of the samples that became queries, `dropped` says why the others did not. `distinct_bigrams` is the
    share of word pairs that are new within their document's queries (distinct-2 of Li et al., 2016, per document): 1 where no
    two queries of a document have a phrase in common.
    """
    counts = read_counts(index, "queries")

    def ratio(one: str, other: str, digits: int) -> float:
        return round(counts.get(one, 0) / max(counts.get(other, 0), 1), digits)

    of_model = {
        "samples": counts.get("samples", 0),
        "kept": ratio("queries", "samples", 4),
        "dropped": {key.removeprefix("dropped_"): n for key, n in sorted(counts.items()) if key.startswith("dropped_")},
        "documents_without_query": counts.get("documents_without_query", 0),
        "words_per_query": ratio("query_words", "queries", 2),
        "distinct_bigrams": ratio("distinct_bigrams", "bigrams", 4),
    }
    return {
        "rows": counts["rows"],
        "rejected": sum(index.num_rejected("queries").values()),
        "queries": counts.get("queries", 0),
        "spans": counts.get("spans", 0),
        **(of_model if of_model["samples"] else {}),
        "prompt_tokens": counts["prompt_tokens"],
        "output_tokens": counts["output_tokens"],
    }
