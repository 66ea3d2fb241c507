"""The docid stage: candidates per shard, in parallel; then one resolution over all of them.

`DocidProposer` is the unit of parallel work: a shard of the corpus in, a shard of candidates out (`work/docids`), published
whole. `assign_docids` reads all candidates, resolves the collisions and writes the docids shard by shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pyarrow as pa

from zerogr import prompts, storage
from zerogr.config import Config
from zerogr.corpus.stage import load_frequency
from zerogr.docids.resolve import resolve
from zerogr.docids.rules import Limits, Terms, validate
from zerogr.docids.schemes import Candidate, keyword_candidates, random_candidates, tfidf_candidates, title_candidates
from zerogr.engines import Engine, Generation, Prompt, Sampling
from zerogr.generation import Rejection, ShardReport, model_inputs, read_counts, write_shard
from zerogr.index import Index, shards_in
from zerogr.seeds import seed_of

VERSION = 1
FOLDER = "work/docids"
NUM_TERMS = 32
"""Ranked terms kept per document, to tell colliding documents apart."""

PROPOSAL_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("content", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("sources", pa.list_(pa.string())),
        ("violations", pa.list_(pa.string())),
        ("terms", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("docid", pa.string()),
        ("source", pa.string()),
        ("candidates", pa.list_(pa.string())),
    ]
)


def docids_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the docid stage is made from; without an LM, nothing of the LM's settings."""
    docids = config.docids
    inputs = {"corpus": index.require("corpus").fingerprint, "seed": config.seed, "version": VERSION}
    keys = {"scheme", "min_words", "max_words", "min_core_terms", "max_foreign_words"}
    if docids.scheme == "keywords":
        keys = set(type(docids).model_fields) - {"model"}
        inputs |= {"docids.prompt": prompts.DOCID_USER + prompts.DOCID_PREFILL, **model_inputs("docids", docids)}
    return inputs | {f"docids.{key}": getattr(docids, key) for key in sorted(keys)}


def limits_of(config: Config) -> Limits:
    """Returns the rules' limits as configured."""
    docids = config.docids
    return Limits(
        min_words=docids.min_words,
        max_words=docids.max_words,
        min_core_terms=docids.min_core_terms,
        max_foreign_words=docids.max_foreign_words,
    )


class DocidProposer:
    """Makes the candidates of one shard at a time."""

    def __init__(self, config: Config, index: Index, engine: Engine | None) -> None:
        """`engine` is None for the schemes that need no language model."""
        self._config, self._index, self._engine = config, index, engine
        self._limits = limits_of(config)
        self._frequency = load_frequency(index)

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the shard's candidates and returns its counts."""
        return write_shard(
            self._index, "docids", FOLDER, shard, PROPOSAL_SCHEMA, generate=self._generate, make_row=self._make_row
        )

    def _make_row(self, document: dict[str, Any], generation: Generation) -> dict[str, Any] | Rejection:
        terms = Terms.of(document["title"], document["text"], self._frequency)
        candidates = self._candidates(document, terms, generation.texts)
        if not candidates or not candidates[0].docid:
            return Rejection("no_words", "title and text hold no letter and no digit")
        return {
            "row_id": document["row_id"],
            "doc_id": document["doc_id"],
            "content": hashlib.sha256(f"{document['title']}\x1f{document['text']}".encode()).hexdigest()[:32],
            "candidates": [candidate.docid for candidate in candidates],
            "sources": [candidate.source for candidate in candidates],
            "violations": list(candidates[0].violations),
            "terms": terms.ranked[:NUM_TERMS],
        }

    def _generate(self, documents: list[dict[str, Any]]) -> list[Generation]:
        docids = self._config.docids
        if self._engine is None:
            return [Generation(texts=[]) for _ in documents]
        requests = [
            Prompt(
                user=prompts.docid_prompt(
                    prompts.excerpt(document["title"], document["text"], docids.document_words),
                    docids.min_words,
                    docids.max_words,
                ),
                prefill=prompts.DOCID_PREFILL,
                seeds=tuple(
                    seed_of(self._config.seed, "docids", document["doc_id"], i) for i in range(docids.candidates)
                ),
            )
            for document in documents
        ]
        sampling = Sampling(max_tokens=docids.max_tokens, temperature=docids.temperature, top_p=docids.top_p)
        return self._engine.generate(requests, sampling)

    def _candidates(self, document: dict[str, Any], terms: Terms, texts: list[str]) -> list[Candidate]:
        match self._config.docids.scheme:
            case "keywords":
                return keyword_candidates(texts, terms, self._limits, self._frequency) if terms.ranked else []
            case "title":
                return title_candidates(document["title"], document["text"], self._limits)
            case "tfidf":
                return tfidf_candidates(terms, self._limits)
            case "random":
                return random_candidates(self._config.seed, document["doc_id"], self._limits)


def assign_docids(config: Config, index: Index) -> dict[str, Any]:
    """Resolves the collisions of all candidates, writes the docid shards, and returns the stage's counts."""
    shards = shards_in(index.path(FOLDER))
    tables = [storage.read_parquet(index.shard(FOLDER, shard)) for shard in shards]
    proposals = pa.concat_tables([table.replace_schema_metadata() for table in tables]).combine_chunks()

    def column(name: str) -> Any:
        chunked = proposals.column(name)
        return chunked.chunk(0) if chunked.num_chunks else pa.array([], type=chunked.type)

    limits = config.docids
    resolution = resolve(column("content"), column("candidates"), column("terms"), limits.max_words)
    sources = [
        "resolved" if choice != 0 else source[0]
        for source, choice in zip(column("sources").to_pylist(), resolution.choice.tolist(), strict=True)
    ]
    docids = pa.table(
        [
            column("row_id"),
            column("doc_id"),
            pa.array(resolution.docids, pa.string()),
            pa.array(sources, pa.string()),
            column("candidates"),
        ],
        schema=SCHEMA,
    )
    start = 0
    for shard, table in zip(shards, tables, strict=True):
        storage.write_parquet(index.shard("docids", shard), docids.slice(start, table.num_rows))
        start += table.num_rows
    num_rows = max(proposals.num_rows, 1)
    violations = Counter(rule for broken in column("violations").to_pylist() for rule in broken)
    num_valid = sum(source[0] == "lm" for source in column("sources").to_pylist())
    return {
        "rows": proposals.num_rows,
        "rejected": sum(index.num_rejected("docids").values()),
        **({"valid_at_first_try": round(num_valid / num_rows, 4)} if limits.scheme == "keywords" else {}),
        **resolution.counts,
        "violations": dict(sorted(violations.items())),
        "words_per_docid": round(sum(docid.count(" ") + 1 for docid in resolution.docids) / num_rows, 2),
        **read_counts(tables),
    }


def check_docids(config: Config, index: Index) -> dict[str, int]:
    """Returns {rule: docids of the finished stage that break it}; empty when every keyword docid obeys the rules."""
    frequency = load_frequency(index)
    limits = limits_of(config)
    broken: Counter[str] = Counter()
    for shard in shards_in(index.path("docids")):
        documents = {row["row_id"]: row for row in storage.read_parquet(index.shard("corpus", shard)).to_pylist()}
        for row in storage.read_parquet(index.shard("docids", shard), ["row_id", "docid"]).to_pylist():
            document = documents[row["row_id"]]
            terms = Terms.of(document["title"], document["text"], frequency)
            broken.update(validate(row["docid"].split(" "), terms, limits, frequency))
    return dict(sorted(broken.items()))
