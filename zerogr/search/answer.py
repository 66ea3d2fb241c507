"""Answers: documents as people know them, found and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.decoding.trace import Step
from zerogr.errors import UserError
from zerogr.ranking.ranker import Part, Ranking


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of an answer."""

    doc_id: str
    docid: str
    rank: int
    """From 1."""
    score: float
    """By the ranker: the natural-log probability of the docid (`normalise` says over which tokens), or a sum."""


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

    @classmethod
    def of(cls, table: pa.Table, denied: np.ndarray) -> Documents:
        """Returns the documents of a table with columns doc_id and docid."""
        return cls(table.column("doc_id").combine_chunks(), table.column("docid").combine_chunks(), denied)

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

    def hits(self, ranking: Ranking) -> list[Hit]:
        """Returns ranked documents by their names."""
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(*self.names(row), rank, score) for rank, (row, score) in enumerate(pairs, 1)]
