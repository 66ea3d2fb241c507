"""The docid stage: candidates per shard, in parallel; then one resolution over all of them.

`DocidProposer` is the unit of parallel work: a shard of the corpus in, a shard of proposals out (`work/docids`), published
whole. `assign_docids` resolves the collisions, for which it holds about 150 bytes per document
(`benchmarks/results/resolution.md`), and writes the docids shard by shard. A shard that a lost driver has left stays if it is
what would be written now; it need not be, where a lost shard of proposals had to be made again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.config.tree import Config
from zerogr.docids import report
from zerogr.docids.embeddings import read_vectors
from zerogr.docids.resolve import Assignment, Read, content_of, gather, map_shards, pick, resolve_shards
from zerogr.docids.scheme import FITTED, Context, Proposal, Scheme, Taken, scheme_class
from zerogr.index.index import Index, shards_in
from zerogr.index.versions import root_of
from zerogr.llm.engines.engine import Engine
from zerogr.llm.generation import Rejection, ShardReport, publish_rows, read_counts
from zerogr.store import storage
from zerogr.text.words import key_of

VERSION, FIT_VERSION = 5, 1
SPARE_CODES = 8
"""Of every level but the first, and on one level more: ordinals begin at 2."""
FOLDER = "work/docids"

IDENTIFIERS = pa.list_(pa.struct([("text", pa.string()), ("view", pa.string()), ("weight", pa.float64())]))
"""`zerogr.docids.scheme.Identifier`s."""
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
        ("own", pa.list_(pa.string())),  # what tells it apart from others
        ("identifiers", IDENTIFIERS),  # those it shares
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
SHARED_SCHEMA = SCHEMA.append(pa.field("identifiers", IDENTIFIERS))
"""Where the scheme has shared identifiers."""


def scheme_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the scheme's `fit` makes its part of the index from."""
    settings = config.docids
    return {
        "corpus": index.require("corpus").fingerprint,
        **({"embeddings": index.require("embeddings").fingerprint} if settings.needs_embeddings else {}),
        "seed": config.seed,
        "version": FIT_VERSION,
        **{f"docids.{key}": value for key, value in settings.model_dump(mode="json").items()},
        **scheme_class(settings).inputs(settings),
    }


def docids_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the docid stage is made from."""
    settings = config.docids
    return {
        "corpus": index.require("corpus").fingerprint,
        **({"embeddings": index.require("embeddings").fingerprint} if settings.needs_embeddings else {}),
        **({"scheme": root_of(index).require("scheme").fingerprint} if settings.has_fit else {}),
        "seed": config.seed,
        "version": VERSION,
        **{f"docids.{key}": value for key, value in settings.model_dump(mode="json").items()},
        **scheme_class(settings).inputs(settings),  # a model counts by its weights, not by its name
    }


def load_scheme(config: Config, index: Index, engine: Engine | None = None) -> Scheme:
    """Returns the configuration's scheme, for the documents of an index."""
    scheme: Scheme = scheme_class(config.docids)(config.docids, Context(index, config.seed, engine))
    return scheme


def fit_scheme(config: Config, index: Index) -> dict[str, Any]:
    """Makes and publishes what the scheme needs to know of the whole corpus; returns the counts."""
    storage.delete(index.path(FITTED))  # of a run that was lost while it published, perhaps the half of it
    with storage.staging_folder(index.path(FITTED)) as folder:
        scheme_class(config.docids).fit(config.docids, Context(index, config.seed), folder)
    return {}


class DocidProposer:
    """Makes the candidates of one shard at a time."""

    def __init__(self, config: Config, index: Index, engine: Engine | None, taken: Taken | None = None) -> None:
        """`engine` is None for the schemes that need no language model; `taken` for an index that begins."""
        self._index, self._scheme, self._taken = index, load_scheme(config, index, engine), taken
        self._needs_embeddings = config.docids.needs_embeddings

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the shard's candidates and returns its counts."""
        documents = storage.read_parquet(self._index.shard("corpus", shard)).to_pylist()
        if self._needs_embeddings:
            for document, vector in zip(documents, read_vectors(self._index, shard), strict=True):
                document["vector"] = vector
        proposals = self._scheme.identify(documents)
        if self._taken:
            proposals = self._taken.settle(documents, proposals, self._scheme)
        outcomes = [
            (document["doc_id"], each if isinstance(each, Rejection) else _row(document, each))
            for document, each in zip(documents, proposals, strict=True)
        ]
        made = [each for each in proposals if isinstance(each, Proposal)]
        return publish_rows(
            self._index,
            "docids",
            FOLDER,
            shard,
            PROPOSAL_SCHEMA,
            outcomes,
            num_prompt_tokens=sum(each.num_prompt_tokens for each in made),
            num_output_tokens=sum(each.num_output_tokens for each in made),
        )


def _row(document: dict[str, Any], proposal: Proposal) -> dict[str, Any]:
    return {
        "row_id": document["row_id"],
        "doc_id": document["doc_id"],
        "content": content_of(document["title"], document["text"]),
        "candidates": proposal.candidates,
        "keys": [key_of(candidate) for candidate in proposal.candidates],
        "sources": proposal.sources,
        "coverage": [*proposal.coverage] or [0.0] * len(proposal.candidates),
        "violations": list(proposal.violations),
        "own": list(proposal.own),
        "identifiers": [identifier._asdict() for identifier in proposal.shared],
    }


def assign_docids(config: Config, index: Index, *, taken: Taken | None = None, num_workers: int = 4) -> dict[str, Any]:
    """Resolves the collisions of all candidates, writes the docid shards, and returns the stage's counts.

    Args:
        config: Of the run.
        index: Where the proposals are and the docids go.
        taken: The docids of an index that these documents are added to.
        num_workers: Threads that read and write shards; the docids do not depend on it.
    """
    shards, written = shards_in(index.path(FOLDER)), set(shards_in(index.path("docids")))

    def read(place: int, columns: list[str]) -> pa.Table:
        return storage.read_parquet(index.shard(FOLDER, shards[place]), columns)

    has = taken.has if taken else _nobody_has
    assignment = resolve_shards(read, len(shards), load_scheme(config, index), num_workers=num_workers, has=has)
    schema = SHARED_SCHEMA if config.docids.has_shared else SCHEMA
    writer = _DocidWriter(read, assignment, _elsewhere(read, assignment, num_workers), schema)

    def write(place: int) -> report.Sums:
        docids, sums = writer.docids(place)
        uri = index.shard("docids", shards[place])
        if shards[place] not in written or not storage.read_parquet(uri).equals(docids):
            storage.write_parquet(uri, docids)
        return sums

    sums = report.total(map_shards("docids", write, range(len(shards)), num_workers))
    rejected = sum(index.num_rejected("docids").values())
    codes = {"codes": _num_codes(index, shards)} if config.docids.codec == "codes" else {}
    return {
        **codes,
        **report.counts(sums, assignment, rejected=rejected, has_model=config.docids.needs_engine),
        **read_counts(index, FOLDER),
    }


def _nobody_has(docid: str) -> bool:
    return False


def _num_codes(index: Index, shards: list[int]) -> list[int]:
    """Returns how many codes each level of the docids has: the highest one's number and one, and some for documents to come.

    An update numbers new documents behind those of their cluster; what a retriever has no token for, it cannot write.
    """
    highest: Counter[int] = Counter()
    for shard in shards:
        for docid in storage.read_parquet(index.shard("docids", shard), ["docid"]).column("docid").to_pylist():
            for level, code in enumerate(docid.split(" ")):
                highest[level] = max(highest[level], int(code) + 1)
    used = [highest[level] for level in range(len(highest))]
    return [*used[:1], *(number + SPARE_CODES for number in used[1:]), SPARE_CODES + 2]


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
    schema: pa.Schema
    """Of what is written."""

    def docids(self, place: int) -> tuple[pa.Table, report.Sums]:
        """Returns the rows of a docid shard, and their sums."""
        kept = [name for name in self.schema.names if name not in ("docid", "source")]
        proposals = self.read(place, [*kept, "sources", "coverage", "violations"])
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
        columns = {"docid": docid, "source": source, **{name: proposals.column(name) for name in kept}}
        table = pa.table([columns[name] for name in self.schema.names], schema=self.schema)
        return table, report.Sums.of(docid, source, coverage, proposals)
