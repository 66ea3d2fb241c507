"""The lexical index: which documents have a term, at which position among their heaviest and how often.

Terms are known by the 64-bit key of their stem. Six bytes per term of each document, four per document and 16 per term, as
memory maps. A search reads the postings of its terms and the norms of their documents alone; building it holds at most 14 bytes
per posting.
"""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.ranking.inverted import Postings, deal_out, position_in_run, posting_of, postings_of
from zerogr.store.arrays import load_arrays, save_arrays
from zerogr.text.words import is_topical, key_of, stem
from zerogr.text.words import words as words_in

K1, B = 0.9, 0.4
"""Of BM25: in a document of average length a term that is there `K1` times counts half as much as it can; in a longer one it
takes more, `B` says how much."""
ARRAYS = ("stems", "group_begin", "rows", "positions", "counts", "norms")


class QueryTerms(NamedTuple):
    """The terms of a query that any document has."""

    groups: np.ndarray
    """int64 [n]"""
    weights: np.ndarray
    """float64 [n]"""
    texts: list[str]
    """As the query has them."""


class LexicalIndex:
    """G terms, P postings, N documents. Read-only; make one with `build` or `load`."""

    def __init__(self, arrays: dict[str, np.ndarray], allowed: np.ndarray | None = None) -> None:
        """Wraps the arrays named in `ARRAYS`; `allowed` (bool [N]) says which documents may be found, None = all."""
        self._arrays = arrays
        self.stems = arrays["stems"]  # uint64 [G], ascending: `key_of` the stem
        self.group_begin = arrays["group_begin"]  # int64 [G + 1] into the next three
        self.rows = arrays["rows"]  # int32 [P], ascending within a term
        self.positions = arrays["positions"]  # uint8 [P]
        self.counts = arrays["counts"]  # uint8 [P], at least 1
        self.norms = arrays["norms"]  # float32 [N], above 0
        self.num_rows = len(self.norms)
        self.allowed = allowed

    @classmethod
    def build(cls, documents: Iterable[tuple[pa.Array, ...]]) -> Self:
        """Returns the index of documents, which are numbered as they come.

        Args:
            documents: Parts of (keys of each document's stems list<uint64> [n], heaviest first and each once, how often it has
                each list<uint8> [n], its length int [n]).
        """
        parts, keys, lengths, num_rows = [], [], [np.empty(0, np.int32)], 0
        known = np.empty(0, np.uint64)
        for stems, counts, length in documents:
            row = np.arange(len(stems)).repeat(pc.list_value_length(stems).to_numpy())
            values = {
                "positions": position_in_run(row).astype(np.uint8),
                "counts": pc.list_flatten(counts).to_numpy().astype(np.uint8),
            }
            keys.append(pc.list_flatten(stems).to_numpy().astype(np.uint64))
            known = np.union1d(known, keys[-1])
            parts.append(Postings(np.empty(0, np.int32), (row + num_rows).astype(np.int32), values))
            lengths.append(length.to_numpy())
            num_rows += len(stems)
        for part in reversed(parts):
            part.group = np.searchsorted(known, keys.pop()).astype(np.int32)
        return cls({"stems": known, "norms": _norms(np.concatenate(lengths)), **_dealt(parts, len(known))})

    def query_terms(self, query: str) -> QueryTerms:
        """Returns the topical terms of a query that any document has; words of one stem are one.

        A term weighs ln((N + 1) / (df + 0.5)) over the documents that may be found, times how often the query has it, times the
        share of such weights that these terms have among all of the query's topical ones. A query without a topical word is
        taken by all its words.
        """
        texts: dict[int, str] = {}
        times = Counter[int]()
        every = words_in(query)
        for word in list(filter(is_topical, every)) or every:
            key = key_of(stem(word))
            texts.setdefault(key, word)
            times[key] += 1
        keys = np.array(sorted(texts), dtype=np.uint64)
        at = np.searchsorted(self.stems, keys)
        groups = [
            int(group)
            for group, key in zip(at, keys, strict=True)
            if group < len(self.stems) and self.stems[group] == key
        ]
        frequency = {group: count for group in groups if (count := self._num_documents(group))}
        num_rows = self.num_rows if self.allowed is None else int(self.allowed.sum())
        found = [int(self.stems[group]) for group in frequency]
        idf = np.log((num_rows + 1) / (np.array(list(frequency.values()), dtype=np.float64) + 0.5))
        weights = idf * [times[key] for key in found]
        num_unknown = sum(times[key] for key in texts.keys() - set(found))
        covered = weights.sum() / (weights.sum() + num_unknown * math.log((num_rows + 1) / 0.5)) if found else 0.0
        return QueryTerms(np.array(list(frequency), dtype=np.int64), covered * weights, [texts[key] for key in found])

    def postings_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all postings (int64 [p]) of terms (int [g]), and the number in `groups` of each."""
        return postings_of(self.group_begin, groups)

    def posting_of(self, group: int, row: int) -> int | None:
        """Returns the posting of a term for a document; None if it does not have it."""
        return posting_of(self.group_begin, self.rows, group, row)

    def restricted(self, allowed: np.ndarray) -> Self:
        """Returns a view in which only some documents (bool [N]) exist."""
        view = copy.copy(self)
        view.allowed = allowed
        return view

    def _num_documents(self, group: int) -> int:
        """Returns how many documents that may be found have a term."""
        rows = self.rows[int(self.group_begin[group]) : int(self.group_begin[group + 1])]
        return len(rows) if self.allowed is None else int(self.allowed[rows].sum())

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrays into the local folder `path`."""
        save_arrays(path, self._arrays, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a saved index as memory maps. Raises UserError if a file is missing or not what was written."""
        arrays, _ = load_arrays(path, ARRAYS, "lexical index", stage="lexical")
        return cls(arrays)


def _dealt(parts: list[Postings], num_groups: int) -> dict[str, np.ndarray]:
    empty = {"positions": np.empty(0, np.uint8), "counts": np.empty(0, np.uint8)}
    return {**empty, **deal_out(parts, num_groups)}


def _norms(lengths: np.ndarray) -> np.ndarray:
    """Returns what documents of some lengths (int [N]) add to a count before it is half of what it can be."""
    lengths = np.maximum(lengths, 1)  # one without a word may still have a random docid
    return (K1 * (1 - B + B * lengths / lengths.mean() if len(lengths) else lengths)).astype(np.float32)
