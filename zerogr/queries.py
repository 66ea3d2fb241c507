"""Pseudo-queries: what people might ask of a document, written by a language model, and what the document itself says.

Per document, B samples of one prompt that states the task's instruction; they are cleaned, filtered and de-duplicated.
`spans` are passages and keyword sets of the document used as queries: the paper's official recipe trains on both, and the
spans are what remains when a small model's questions are poor.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pyarrow as pa

from zerogr import prompts, storage
from zerogr.config import Config
from zerogr.corpus.stage import load_frequency
from zerogr.engines import Engine, Generation, Prompt, Sampling
from zerogr.generation import ShardReport, model_inputs, read_counts, write_shard
from zerogr.index import Index, shards_in
from zerogr.seeds import seed_of
from zerogr.words import DocumentFrequency, is_topical, rank_terms, words

VERSION = 1
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("instruction", pa.string()),
        ("queries", pa.list_(pa.string())),
        ("spans", pa.list_(pa.string())),
    ]
)
SPAN_WORDS = (6, 24)
"""Shortest and longest passage, in words."""
KEYWORD_SET = (2, 6)
"""Fewest and most terms of a keyword set."""
MAX_QUERY_WORDS = 40


def queries_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the query stage is made from."""
    queries = config.queries
    inputs = {
        "corpus": index.require("corpus").fingerprint,
        "seed": config.seed,
        "instruction": config.instruction,
        "version": VERSION,
    }
    keys = {"num_spans_per_document", "num_queries_per_document"}
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
            self._index, "queries", "queries", shard, SCHEMA, generate=self._generate, make_row=self._make_row
        )

    def _make_row(self, document: dict[str, Any], generation: Generation) -> dict[str, Any]:
        title, text, config = document["title"], document["text"], self._config
        seed = seed_of(config.seed, "spans", document["doc_id"])
        return {
            "row_id": document["row_id"],
            "doc_id": document["doc_id"],
            "instruction": config.instruction,
            "queries": clean_queries(generation.texts, title, text),
            "spans": make_spans(title, text, self._frequency, config.queries.num_spans_per_document, seed),
        }

    def _generate(self, documents: list[dict[str, Any]]) -> list[Generation]:
        queries = self._config.queries
        if self._engine is None:
            return [Generation(texts=[]) for _ in documents]
        requests = [
            Prompt(
                user=prompts.query_prompt(
                    prompts.excerpt(document["title"], document["text"], queries.document_words),
                    self._config.instruction,
                ),
                prefill=prompts.QUERY_PREFILL,
                seeds=tuple(
                    seed_of(self._config.seed, "queries", document["doc_id"], i)
                    for i in range(queries.num_queries_per_document)
                ),
            )
            for document in documents
        ]
        sampling = Sampling(
            max_tokens=queries.max_tokens, temperature=queries.temperature, top_p=queries.top_p, stop=("\n",)
        )
        return self._engine.generate(requests, sampling)


_LABEL = re.compile(r"^\s*(?:[-*•]|\d+[.)]|(?:search )?(?:query|question)\s*\d*\s*:)\s*", re.IGNORECASE)
_ECHO = re.compile(
    r"\b(?:(?:this|the|which|what) (?:document|passage|text|task|question)|(?:search )?quer(?:y|ies)|text above|an? ai)\b"
    r"|<<<|>>>|^(?:task|document)\s*:",
    re.IGNORECASE,
)


def clean_queries(texts: list[str], title: str, text: str) -> list[str]:
    """Returns the usable queries among an LM's samples, in their order.

    A label, a list mark or quotes around a query are taken off. Left out are empty ones, repetitions (whatever the case),
    echoes of the prompt (unless the document speaks that way), ones of more than `MAX_QUERY_WORDS` words, and ones off the
    topic: fewer than two of their topical words, or fewer than a third, share a stem with a word of the document.
    """
    document = f"{title}\n{text}".lower()
    own = {_stem(word) for word in words(document) if is_topical(word)}
    kept: dict[str, str] = {}
    for sample in texts:
        query = _LABEL.sub("", " ".join(sample.split())).strip(" \"'`*“”")
        terms = words(query)
        topical = {_stem(term) for term in terms if is_topical(term)}
        num_shared = len(topical & own)
        echo = _ECHO.search(query)
        if len(terms) > MAX_QUERY_WORDS or (echo and echo[0].lower() not in document):
            continue
        if num_shared < min(2, len(topical)) or 3 * num_shared < len(topical) or not num_shared:
            continue
        kept.setdefault(" ".join(terms), query)
    return list(kept.values())


def _stem(word: str) -> str:
    # Crude on purpose: the filter asks whether two words are kin, in any language.
    return word[:5]


def make_spans(title: str, text: str, frequency: DocumentFrequency, count: int, seed: int) -> list[str]:
    """Returns at most `count` distinct queries made of the document itself: the title, passages and keyword sets in turn."""
    draw = random.Random(seed)
    tokens = text.split()
    ranked = rank_terms(title, text, frequency)[:24]
    spans = dict.fromkeys([title] if title else [])
    for attempt in range(3 * count):
        if len(spans) >= count:
            break
        if attempt % 2 == 0 and tokens:
            size = min(draw.randint(*SPAN_WORDS), len(tokens))
            start = draw.randint(0, len(tokens) - size)
            span = " ".join(tokens[start : start + size])
        elif ranked:
            span = " ".join(_draw_terms(ranked, min(draw.randint(*KEYWORD_SET), len(ranked)), draw))
        else:
            continue
        if words(span):
            spans.setdefault(span)
    return list(spans)[:count]


def _draw_terms(ranked: list[tuple[str, float]], count: int, draw: random.Random) -> list[str]:
    """Returns `count` different terms, heavy ones more often (exponential keys: Efraimidis and Spirakis, 2006)."""
    keyed = sorted(ranked, key=lambda pair: draw.expovariate(1.0) / max(pair[1], 1e-6))
    return [term for term, _ in keyed[:count]]


def queries_counts(index: Index) -> dict[str, Any]:
    """Returns the counts of the finished query stage."""
    tables = [storage.read_parquet(index.shard("queries", shard)) for shard in shards_in(index.path("queries"))]
    return {
        "rows": sum(table.num_rows for table in tables),
        "rejected": sum(index.num_rejected("queries").values()),
        "queries": sum(len(table.column("queries").combine_chunks().flatten()) for table in tables),
        "spans": sum(len(table.column("spans").combine_chunks().flatten()) for table in tables),
        **read_counts(tables),
    }
