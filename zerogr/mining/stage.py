"""The negatives stage: for queries, documents that are not relevant to them, with a teacher's scores.

A document that is relevant to the query, or that shares a docid with one, is never a negative, whatever finds it. Where sources
give too few, documents are drawn from all.

Cost: the documents' docids and doc_ids in memory, as Arrow has them; per query a ranking by the lexical index, or the decoding
of `negatives.depth` docids.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.lookup import Lookup
from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.llm.generation import ShardReport, publish_rows
from zerogr.llm.models import model_hash, resolve_model
from zerogr.mining.teacher import CrossEncoderTeacher, LexicalTeacher, Teacher
from zerogr.queries.negatives import FOLDER, NOT_PSEUDO, SCHEMA, judged_uri
from zerogr.queries.source import Example, judged_examples, pseudo_examples
from zerogr.retriever import Retriever
from zerogr.seeds import seed_of
from zerogr.store import cache, storage
from zerogr.trie.opened import read_docids

VERSION = 1
_AT_ONCE = 256
"""Queries that are decoded together at most."""


def negatives_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the negatives are made from."""
    settings, training = config.negatives, config.training
    inputs = {
        "docids": index.require("docids").fingerprint,
        "queries": index.require("queries").fingerprint,
        "seed": config.seed,
        **{f"negatives.{key}": getattr(settings, key) for key in ("sources", "number", "depth", "every")},
        "version": VERSION,
    }
    if settings.needs_lexical:
        inputs["lexical"] = index.require("lexical").fingerprint
    if settings.retriever is not None:
        inputs["negatives.retriever"] = Index(settings.retriever).require("retriever").fingerprint
    if settings.teacher is not None:
        inputs["negatives.teacher"] = model_hash(resolve_model(settings.teacher))
    if training.judged and training.judged_share:
        inputs["training.judged"] = Collection.load(training.judged, training.judged_split).hash()
    return inputs


class _Asked(NamedTuple):
    """A query that is to have negatives."""

    row_id: int
    example: Example


class _Rows:
    """Where the documents are by their row_ids, which ascend."""

    def __init__(self, row_ids: np.ndarray) -> None:
        self.row_ids = row_ids

    def __contains__(self, row_id: object) -> bool:
        row = int(np.searchsorted(self.row_ids, row_id))  # type: ignore[call-overload]
        return row < len(self.row_ids) and bool(self.row_ids[row] == row_id)

    def rows_of(self, relevant: Sequence[tuple[int, float]]) -> list[int]:
        """Returns the rows of (row_id, grade) pairs, all of which are there."""
        rows: list[int] = np.searchsorted(self.row_ids, [row_id for row_id, _ in relevant]).tolist()
        return rows


class Miner:
    """Finds the negatives of one shard's queries at a time, or those of the judged ones."""

    def __init__(self, config: Config, index: Index) -> None:
        """Reads the documents' docids. Raises UserError for a retriever or a teacher that cannot be opened."""
        self._config, self._index, self._settings = config, index, config.negatives
        table = read_docids(index)
        self._rows_by_id = _Rows(table.column("row_id").to_numpy())
        self._docids, self._doc_ids = table.column("docid"), table.column("doc_id")

    @cached_property
    def _lexical(self) -> LexicalTeacher:
        return LexicalTeacher(cache.local_folder(self._index.path("lexical")))

    @cached_property
    def _teacher(self) -> Teacher:
        if self._settings.teacher is None:
            return self._lexical
        version = Version.of(self._index.manifest())
        return CrossEncoderTeacher(self._settings.teacher, Lookup(self._index, version), self._rows_by_id.row_ids)

    @cached_property
    def _retriever(self) -> Retriever:
        assert self._settings.retriever is not None
        return Retriever.load(self._settings.retriever)

    def _rows_of_docs(self, doc_ids: Iterable[str]) -> dict[str, int]:
        """Returns {doc_id: row} of those that the index holds."""
        wanted = list(dict.fromkeys(doc_ids))
        rows = pc.index_in(pa.array(wanted, pa.string()), value_set=self._doc_ids).to_pylist()
        return {doc_id: row for doc_id, row in zip(wanted, rows, strict=True) if row is not None}

    def _docid(self, row: int) -> str:
        return str(self._docids[row])

    def __call__(self, shard: int) -> ShardReport:
        """Publishes the negatives of a shard's pseudo-queries."""
        rows = [(str(row["row_id"]), row) for row in self._rows(self.asked(shard))]
        return publish_rows(
            self._index,
            "negatives",
            FOLDER,
            shard,
            SCHEMA,
            rows,
            num_prompt_tokens=0,
            num_output_tokens=0,
            count=_counts,
        )

    def asked(self, shard: int) -> list[_Asked]:
        """Returns the pseudo-queries of a shard that are to have negatives."""
        found = []
        for example in pseudo_examples(self._index, shard, self._rows_by_id):
            row_id = example.relevant[0][0]
            if seed_of(self._config.seed, "negatives", row_id, example.query) % self._settings.every == 0:
                found.append(_Asked(row_id, example))
        return found

    def judged(self) -> int:
        """Publishes the negatives of all judged queries that may train, whatever share does; returns their number."""
        training = self._config.training
        if not (training.judged and training.judged_share):
            return 0
        collection = Collection.load(training.judged, training.judged_split)
        rows_of = self._rows_of_docs(doc_id for grades in collection.qrels.values() for doc_id in grades)
        row_of = {doc_id: int(self._rows_by_id.row_ids[row]) for doc_id, row in rows_of.items()}
        examples = judged_examples(collection, row_of, instruction=self._config.instruction, weight=1.0)
        rows = self._rows([_Asked(NOT_PSEUDO, example) for example in examples])
        storage.write_parquet(judged_uri(self._index), pa.Table.from_pylist(rows, SCHEMA))
        return len(rows)

    def _rows(self, asked: Sequence[_Asked]) -> list[dict[str, Any]]:
        rows = []
        for begin in range(0, len(asked), _AT_ONCE):
            part = asked[begin : begin + _AT_ONCE]
            decoded = self._decoded(part) if "decoded" in self._settings.sources else [[] for _ in part]
            rows += [self._row(each, found) for each, found in zip(part, decoded, strict=True)]
        return rows

    def _row(self, asked: _Asked, decoded: list[int]) -> dict[str, Any]:
        query, seed = asked.example.query, self._config.seed
        draw = random.Random(seed_of(seed, "negatives", "draw", asked.row_id, query))
        row_ids, relevant = self._rows_by_id.row_ids, self._rows_by_id.rows_of(asked.example.relevant)
        chosen = self._chosen(query, set(relevant), decoded, draw)
        scores = self._teacher.score(query, [*relevant, *chosen])
        return {
            "row_id": asked.row_id,
            "query": query,
            "relevant": [
                {"row_id": int(row_ids[row]), "teacher": score} for row, score in zip(relevant, scores, strict=False)
            ],
            "negatives": [
                {"row_id": int(row_ids[row]), "docid": self._docid(row), "teacher": score}
                for row, score in zip(chosen, scores[len(relevant) :], strict=True)
            ],
        }

    def _chosen(self, query: str, relevant: set[int], decoded: list[int], draw: random.Random) -> list[int]:
        """Returns the rows of a query's negatives."""
        settings, taken = self._settings, set(map(self._docid, relevant))
        found = list(decoded)
        if "lexical" in settings.sources:
            found += self._lexical.first(query, settings.depth)
        if "any" in settings.sources:
            found += draw.choices(range(len(self._docids)), k=settings.depth)
        candidates = list(dict.fromkeys(found))
        draw.shuffle(candidates)
        chosen: list[int] = []
        every = draw.sample(range(len(self._docids)), k=min(len(self._docids), 2 * settings.number + len(relevant)))
        for row in [*candidates, *every]:
            if len(chosen) == settings.number:
                break
            if (docid := self._docid(row)) not in taken:
                taken.add(docid)
                chosen.append(row)
        return chosen

    def _decoded(self, asked: Sequence[_Asked]) -> list[list[int]]:
        """Returns the rows of what the retriever finds for each query."""
        hits = self._retriever.search(
            [each.example.query for each in asked],
            instruction=[each.example.instruction for each in asked],
            k=self._settings.depth,
        )
        row_of = self._rows_of_docs(hit.doc_id for found in hits for hit in found)
        return [[row_of[hit.doc_id] for hit in found if hit.doc_id in row_of] for found in hits]


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(negatives=0)
    for row in rows:
        counts.update(negatives=len(row["negatives"]))
    return dict(counts)
