"""Answers: documents as people know them, found and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.corpus.lookup import Lookup
from zerogr.decoding.trace import Step
from zerogr.errors import UserError
from zerogr.ranking.ranker import Filter, Part, Ranking
from zerogr.search.contents import Contents
from zerogr.trie.conditions import Conditions, conditions_of
from zerogr.trie.metadata import Metadata


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of an answer."""

    doc_id: str
    docid: str
    rank: int
    """From 1."""
    score: float
    """By the ranker: the natural-log probability of the docid (`normalise` says over which tokens), or a sum."""
    title: str | None = None
    """This and what follows: None where the search did not ask for it."""
    text: str | None = None
    """A snippet: the part of the text that has most of the query's words, on one line."""
    kind: str | None = None
    """`text`, `table` or `code`."""
    metadata: dict[str, Any] | None = None
    """As the corpus has it."""

    def as_json(self) -> dict[str, Any]:
        """Returns what the hit says, without what was not asked for."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Traced:
    """What the model thought of a document."""

    doc_id: str
    docid: str
    score: float
    """As a `Hit` has it, over the allowed tokens."""
    parts: list[Part]
    """What the score is the sum of, the largest first."""
    steps: list[Step] = field(default_factory=list)
    """Where docids are written: its docid's tokens and the end token."""


@dataclass(frozen=True, slots=True)
class Documents:
    """The N documents of an index; a row stands for each, those of removed ones included."""

    doc_ids: pa.Array
    """string [N]"""
    docids: pa.Array
    """string [N]"""
    denied: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """int64, ascending: rows of removed documents. Their doc_ids may stand again, in later rows."""
    row_ids: pa.Array | None = None
    """int64 [N]: where the corpus has them."""
    corpus: Lookup | None = None
    """What they say; None where nobody asks."""
    metadata: Metadata | None = None
    """What they can be filtered by; None where nobody asks."""

    @classmethod
    def of(
        cls, table: pa.Table, denied: np.ndarray, corpus: Lookup | None = None, metadata: Metadata | None = None
    ) -> Documents:
        """Returns the documents of a table with columns row_id, doc_id and docid."""
        # In one piece already where they are mapped, and then not copied into memory.
        columns = (table.column(name) for name in ("row_id", "doc_id", "docid"))
        row_ids, doc_ids, docids = (
            each.chunk(0) if each.num_chunks == 1 else each.combine_chunks() for each in columns
        )
        return cls(doc_ids, docids, denied, row_ids, corpus, metadata)

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def num_live(self) -> int:
        """The number of documents that were not removed."""
        return len(self) - len(self.denied)

    def live_doc_ids(self) -> set[str]:
        """Returns the keys of all documents that were not removed."""
        if not len(self.denied):
            return set(self.doc_ids.to_pylist())
        is_live = np.ones(len(self), dtype=bool)
        is_live[self.denied] = False
        return set(self.doc_ids.filter(pa.array(is_live)).to_pylist())

    def names(self, row: int) -> tuple[str, str]:
        """Returns doc_id and docid of a document."""
        return self.doc_ids[row].as_py(), self.docids[row].as_py()

    def row_of(self, doc_id: str) -> int:
        """Returns the row of a document. Raises UserError if the index does not hold it."""
        rows = self.rows_of([doc_id])
        if not len(rows):
            raise UserError(f"the index holds no document '{doc_id}'")
        return int(rows[0])

    def rows_of(self, doc_ids: Sequence[str]) -> np.ndarray:
        """Returns the rows (int64, ascending) of those doc_ids that are in the index."""
        is_wanted = pc.is_in(self.doc_ids, value_set=pa.array(doc_ids, self.doc_ids.type))
        rows: np.ndarray = pc.indices_nonzero(is_wanted).to_numpy().astype(np.int64)
        return np.setdiff1d(rows, self.denied, assume_unique=True) if len(self.denied) else rows

    def held(self, doc_ids: Sequence[str]) -> list[str]:
        """Returns those doc_ids that are in the index."""
        found: list[str] = self.doc_ids.take(pa.array(self.rows_of(doc_ids))).to_pylist()
        return found

    def chosen(self, allow: Sequence[str] | None, deny: Sequence[str] | None, wanted: Conditions | None) -> Filter:
        """Returns which rows may be found: those of the doc_ids in `allow`, without those in `deny`, that a filter leaves.

        Raises:
            UserError: The filter does not fit the documents' metadata.
        """
        rows = None if allow is None else self.rows_of(allow)
        if wanted is not None and conditions_of(wanted):
            assert self.metadata is not None
            matching = np.setdiff1d(self.metadata.rows(wanted), self.denied, assume_unique=True)
            rows = matching if rows is None else np.intersect1d(rows, matching, assume_unique=True)
        return Filter(rows, None if deny is None else self.rows_of(deny))

    def answers(self, queries: Sequence[str], rankings: Sequence[Ranking], wanted: Contents) -> list[list[Hit]]:
        """Returns the hits of every query, with what is wanted of their documents' contents."""
        answers = [self.hits(ranking) for ranking in rankings]
        if not wanted.fields:
            return answers
        assert self.corpus is not None and self.row_ids is not None
        row_ids = [self.row_ids.take(pa.array(ranking.rows)).to_pylist() for ranking in rankings]
        contents = wanted.read(self.corpus, queries, row_ids)
        return [
            [replace(hit, **said) for hit, said in zip(*of_query, strict=True)]
            for of_query in zip(answers, contents, strict=True)
        ]

    def hits(self, ranking: Ranking) -> list[Hit]:
        """Returns ranked documents by their names."""
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(*self.names(row), rank, score) for rank, (row, score) in enumerate(pairs, 1)]
