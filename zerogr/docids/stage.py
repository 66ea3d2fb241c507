"""The docid stage: candidates per shard, in parallel; then one resolution over all of them.

`DocidProposer` is the unit of parallel work: a shard of the corpus in, a shard of proposals out (`work/docids`), published
whole. `assign_docids` resolves the collisions, for which it holds about 150 bytes per document
(`benchmarks/results/pipeline.md`), and writes the docids shard by shard. It writes all of them each time: that is quick, and a
docid left from an interrupted run could be taken by now if a lost shard of proposals had to be made again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.config.tree import Config
from zerogr.corpus.stage import load_frequency
from zerogr.docids import report
from zerogr.docids.resolve import Assignment, Read, content_of, gather, map_shards, pick, resolve_shards
from zerogr.docids.rules import Limits, Terms, validate
from zerogr.docids.schemes import Candidate, keyword_candidates, random_candidates, tfidf_candidates, title_candidates
from zerogr.index.index import Index, shards_in
from zerogr.llm import prompts
from zerogr.llm.engines.engine import Engine, Generation, Prompt, Sampling
from zerogr.llm.generation import Rejection, ShardReport, model_inputs, read_counts, write_shard
from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.text.words import key_of

VERSION = 4
FOLDER = "work/docids"
MIN_TERMS = 32
"""Ranked terms kept per document at least, to tell colliding documents apart."""
MOST_COUNTED = 255
"""Occurrences of a term in a document."""

PROPOSAL_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("content", pa.binary(16)),  # equal for documents with equal title and text
        ("candidates", pa.list_(pa.string())),
        ("keys", pa.list_(pa.uint64())),  # of the candidates, for the resolution
        ("sources", pa.list_(pa.string())),  # of the candidates
        ("coverage", pa.list_(pa.float32())),  # of the candidates
        ("violations", pa.list_(pa.string())),
        ("terms", pa.list_(pa.string())),
        ("term_counts", pa.list_(pa.uint8())),
        ("length", pa.int32()),  # the sum of the counts of all its terms
    ]
)
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("doc_id", pa.string()),
        ("docid", pa.string()),
        ("source", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("terms", pa.list_(pa.string())),
        ("term_counts", pa.list_(pa.uint8())),
        ("length", pa.int32()),
    ]
)


OF_EVERY_SCHEME = frozenset(
    {"scheme", "min_words", "max_words", "min_core_terms", "max_foreign_words", "num_terms", "unit"}
)
"""Settings of the section; the others say how the LM is asked."""


def docids_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the docid stage is made from; without an LM, nothing of the LM's settings."""
    docids = config.docids
    inputs = {"corpus": index.require("corpus").fingerprint, "seed": config.seed, "version": VERSION}
    keys = set(OF_EVERY_SCHEME - {"unit"})
    if docids.scheme == "keywords":
        keys = set(type(docids).model_fields) - {"model", "unit"}
        inputs |= {
            "docids.prompt": prompts.docid_wording(docids),
            **model_inputs("docids", docids),
        }
    return inputs | {f"docids.{key}": getattr(docids, key) for key in sorted(keys)}


def idle_settings(config: Config) -> list[str]:
    """Returns the settings of the section that differ from their defaults and have no effect, because no LM is asked."""
    docids = config.docids
    if docids.scheme == "keywords":
        return []
    usual = type(docids)()
    of_model = [key for key in type(docids).model_fields if key not in OF_EVERY_SCHEME]
    return [f"docids.{key}" for key in of_model if getattr(docids, key) != getattr(usual, key)]


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
        num_terms = max(MIN_TERMS, self._config.docids.num_terms)
        return {
            "row_id": document["row_id"],
            "doc_id": document["doc_id"],
            "content": content_of(document["title"], document["text"]),
            "candidates": [candidate.docid for candidate in candidates],
            "keys": [key_of(candidate.docid) for candidate in candidates],
            "sources": [candidate.source for candidate in candidates],
            "coverage": [terms.coverage(candidate.docid.split(" ")) for candidate in candidates],
            "violations": list(candidates[0].violations),
            "terms": terms.ranked[:num_terms],
            "term_counts": [min(count, MOST_COUNTED) for count in terms.counts[:num_terms]],
            "length": sum(terms.counts),
        }

    def _generate(self, documents: list[dict[str, Any]]) -> list[Generation]:
        docids = self._config.docids
        if self._engine is None:
            return [Generation(texts=[]) for _ in documents]
        requests = []
        for document in documents:
            user, prefill = prompts.docid_prompt(docids, document)
            seeds = (seed_of(self._config.seed, "docids", document["doc_id"], i) for i in range(docids.candidates))
            requests.append(Prompt(user=user, prefill=prefill, seeds=tuple(seeds)))
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


def assign_docids(config: Config, index: Index, *, num_workers: int = 4) -> dict[str, Any]:
    """Resolves the collisions of all candidates, writes the docid shards, and returns the stage's counts.

    Args:
        config: Of the run.
        index: Where the proposals are and the docids go.
        num_workers: Threads that read and write shards; the docids do not depend on it.
    """
    shards = shards_in(index.path(FOLDER))

    def read(place: int, columns: list[str]) -> pa.Table:
        return storage.read_parquet(index.shard(FOLDER, shards[place]), columns)

    assignment = resolve_shards(read, len(shards), config.docids.max_words, num_workers=num_workers)
    writer = _DocidWriter(read, assignment, _elsewhere(read, assignment, num_workers), config.docids.num_terms)

    def write(place: int) -> report.Sums:
        docids, sums = writer.docids(place)
        storage.write_parquet(index.shard("docids", shards[place]), docids)
        return sums

    sums = report.total(map_shards("docids", write, range(len(shards)), num_workers))
    rejected = sum(index.num_rejected("docids").values())
    has_model = config.docids.scheme == "keywords"
    return {
        **report.counts(sums, assignment, rejected=rejected, has_model=has_model),
        **read_counts(index, FOLDER),
    }


_CHOSEN = pa.schema([("docid", pa.string()), ("source", pa.string()), ("coverage", pa.float32())])


def _chosen(proposals: pa.Table, choice: np.ndarray) -> pa.Table:
    """Returns `_CHOSEN` for rows [n] by the number of their candidate (int64 [n]); -1 is the first and does not hold."""
    number = np.maximum(choice, 0)
    lists = {name: proposals.column(name).combine_chunks() for name in ("candidates", "sources", "coverage")}
    source = pc.if_else(pa.array(choice == 0), pick(lists["sources"], np.zeros_like(number)), "resolved")
    return pa.table([pick(lists["candidates"], number), source, pick(lists["coverage"], number)], schema=_CHOSEN)


def _elsewhere(read: Read, assignment: Assignment, num_workers: int) -> tuple[np.ndarray, pa.Table]:
    """Returns (rows, `_CHOSEN` of them) of all rows whose docid another row shares, or is none of its own candidates."""
    is_shared = assignment.group != np.arange(len(assignment.group))
    rows = np.union1d(assignment.group[is_shared], assignment.told_apart)
    if not len(rows):
        return rows, _CHOSEN.empty_table()
    proposals = gather(read, assignment.starts, rows, ["candidates", "sources", "coverage"], num_workers=num_workers)
    chosen = _chosen(proposals, assignment.choice[rows])
    is_told_apart = pa.array(np.isin(rows, assignment.told_apart))
    docids = pc.replace_with_mask(chosen.column("docid").combine_chunks(), is_told_apart, assignment.texts)
    return rows, chosen.set_column(0, "docid", docids)


@dataclass(slots=True)
class _DocidWriter:
    """Makes the docid shards from the proposals and the resolution, one at a time."""

    read: Read
    assignment: Assignment
    elsewhere: tuple[np.ndarray, pa.Table]
    """From `_elsewhere`."""
    num_terms: int
    """Per document."""

    def docids(self, place: int) -> tuple[pa.Table, report.Sums]:
        """Returns the rows of a docid shard, and their sums."""
        columns = [
            "row_id",
            "doc_id",
            "candidates",
            "sources",
            "coverage",
            "violations",
            "terms",
            "term_counts",
            "length",
        ]
        proposals = self.read(place, columns)
        rows = np.arange(*self.assignment.starts[place : place + 2])
        group, choice = self.assignment.group[rows], self.assignment.choice[rows]
        is_own = (group == rows) & (choice >= 0)
        known, texts = self.elsewhere
        # What is elsewhere stands behind the shard's own rows, and is taken from there.
        others = texts.take(np.searchsorted(known, group[~is_own]))
        position = np.arange(len(rows))
        position[~is_own] = len(rows) + np.arange(len(others))
        chosen = (
            pa.concat_tables([_chosen(proposals, np.where(is_own, choice, 0)), others]).combine_chunks().take(position)
        )
        docid, source, coverage = (chosen.column(name).combine_chunks() for name in _CHOSEN.names)
        kept = [proposals.column(name) for name in ("row_id", "doc_id", "candidates")]
        terms, counts = (pc.list_slice(proposals.column(name), 0, self.num_terms) for name in ("terms", "term_counts"))
        length = proposals.column("length")
        table = pa.table([*kept[:2], docid, source, kept[2], terms, counts, length], schema=SCHEMA)
        return table, report.Sums.of(docid, source, coverage, proposals)


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
