"""Owners: which documents have an identifier, where documents share identifiers, and what it weighs for each.

Identifiers that count as one, such as words of one stem, are a group. Five or six bytes per identifier of each document and
eight per identifier, as memory maps; a search reads the postings of its identifiers alone.
"""

from __future__ import annotations

import copy
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.ranking.inverted import Postings, deal_out, posting_of, postings_of
from zerogr.store.arrays import load_arrays, save_arrays

OWNERS = "owners"
"""Folder below that of the trie."""
MOST_WEIGHTS = 2**16
ARRAYS = ("group_of_identifier", "group_begin", "rows", "codes", "weights")


class Owners:
    """G groups of identifiers, W identifiers, P postings, N documents. Read-only; make one with `build` or `load`."""

    def __init__(self, arrays: dict[str, np.ndarray], num_rows: int, allowed: np.ndarray | None = None) -> None:
        """Wraps the arrays named in `ARRAYS`; `allowed` (bool [N]) says which documents may be found, None = all."""
        self._arrays = arrays
        self.group_of_identifier = arrays["group_of_identifier"]  # int32 [W]
        self.group_begin = arrays["group_begin"]  # int64 [G + 1] into the next two
        self.rows = arrays["rows"]  # int32 [P], ascending within a group
        self.codes = arrays["codes"]  # uint8 or uint16 [P] into the weights
        self.weights = arrays["weights"]  # float64, each once
        self.num_rows, self.allowed = num_rows, allowed

    @classmethod
    def build(cls, documents: Iterable[pa.Array], fold: Callable[[str], str]) -> tuple[Self, list[str]]:
        """Returns the owners of identifiers, and the identifiers, sorted; identifier i is row i of the trie.

        Args:
            documents: Parts of the documents' identifiers, list<struct<text, weight, ...>> [n]; documents are numbered through.
            fold: Returns what identifiers of one group have in common.

        Raises:
            ValueError: There are more than `MOST_WEIGHTS` different weights.
        """
        vocabulary, weights = _Vocabulary(fold), _Numbers()
        parts, num_rows = [], 0
        for identifiers in documents:
            row = np.arange(len(identifiers)).repeat(pc.list_value_length(identifiers).to_numpy())
            flat = pc.list_flatten(identifiers)
            texts = pc.struct_field(flat, "text").dictionary_encode()
            number = vocabulary.numbers_of(texts.dictionary.to_pylist())[texts.indices.to_numpy()]
            group = vocabulary.groups_of(number)
            code = weights.of(pc.struct_field(flat, "weight").to_numpy())
            first = _first_of_each(group, row)
            parts.append(Postings(group[first], (row[first] + num_rows).astype(np.int32), {"codes": code[first]}))
            num_rows += len(identifiers)
        texts, group_of_identifier, new_group = vocabulary.sorted()
        for part in parts:
            part.group = new_group[part.group]
        arrays = {"codes": np.empty(0, np.uint16), **deal_out(parts, int(new_group.max(initial=-1)) + 1)}
        if len(weights) <= 256:
            arrays["codes"] = arrays["codes"].astype(np.uint8)
        return cls({"group_of_identifier": group_of_identifier, "weights": weights.array, **arrays}, num_rows), texts

    def postings_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all postings (int64 [p]) of groups (int [g]), and the number in `groups` of each."""
        return postings_of(self.group_begin, groups)

    def posting_of(self, group: int, row: int) -> int | None:
        """Returns the posting of a group for a document; None if it has none of its identifiers."""
        return posting_of(self.group_begin, self.rows, group, row)

    def weights_of(self, postings: np.ndarray | int) -> np.ndarray:
        """Returns what identifiers weigh at postings, float64."""
        return self.weights[self.codes[postings]]

    def restricted(self, allowed: np.ndarray) -> tuple[Self, np.ndarray]:
        """Returns a view in which only some documents (bool [N]) exist, and the identifiers (int64, ascending) they have."""
        view = copy.copy(self)
        view.allowed = allowed
        has_any = np.logical_or.reduceat(allowed[self.rows], self.group_begin[:-1]) if len(self.rows) else self.rows
        return view, np.flatnonzero(has_any[self.group_of_identifier])

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrays into the local folder `path`."""
        save_arrays(path, self._arrays, {"num_rows": self.num_rows})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Opens saved owners as memory maps. Raises UserError if a file is missing or not what was written."""
        arrays, meta = load_arrays(path, ARRAYS, "table of owners", stage="trie")
        return cls(arrays, meta["num_rows"])


@dataclass(slots=True)
class _Vocabulary:
    """Identifiers and their groups, numbered as they come."""

    fold: Callable[[str], str]
    number: dict[str, int] = field(default_factory=dict)
    """Of an identifier."""
    group: array[int] = field(default_factory=lambda: array("i"))
    """Of each identifier."""
    group_of_fold: dict[str, int] = field(default_factory=dict)

    def numbers_of(self, texts: list[str]) -> np.ndarray:
        """Returns the numbers (int32 [n]) of identifiers; new ones get the next."""
        for text in texts:
            if text not in self.number:
                self.number[text] = len(self.number)
                self.group.append(self.group_of_fold.setdefault(self.fold(text), len(self.group_of_fold)))
        return np.fromiter(map(self.number.__getitem__, texts), np.int32, len(texts))

    def groups_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the groups (int32 [n]) of identifiers by their numbers."""
        return np.frombuffer(self.group, np.int32)[numbers] if len(numbers) else np.empty(0, np.int32)

    def sorted(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Returns the identifiers by their text, the group of each (int32 [W]) and the new number of every group (int32).

        Groups are numbered by their folded text, so that the order of the documents' parts does not matter.
        """
        texts = sorted(self.number)
        new_group = np.empty(len(self.group_of_fold), dtype=np.int32)
        for new, folded in enumerate(sorted(self.group_of_fold)):
            new_group[self.group_of_fold[folded]] = new
        groups = self.groups_of(np.array([self.number[text] for text in texts], dtype=np.int64))
        return texts, new_group[groups], new_group


class _Numbers:
    """Different weights, numbered as they come."""

    def __init__(self) -> None:
        self._number: dict[float, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Returns the numbers (uint16 [n]) of values; new ones get the next."""
        different, inverse = np.unique(values, return_inverse=True)
        numbers = [self._number.setdefault(value, len(self._number)) for value in different.tolist()]
        if len(self._number) > MOST_WEIGHTS:
            raise ValueError(f"identifiers have more than {MOST_WEIGHTS} different weights; the scheme must round them")
        return np.array(numbers, dtype=np.uint16)[inverse]

    @property
    def array(self) -> np.ndarray:
        """The values by number, float64."""
        return np.array(list(self._number), dtype=np.float64)


def _first_of_each(group: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns which entries (int64 [m], ascending) are the first of their group in their row; rows (int [n]) never fall."""
    by_group = np.argsort(group, kind="stable")
    is_first = np.ones(len(group), dtype=bool)
    is_first[1:] = (np.diff(group[by_group]) != 0) | (np.diff(row[by_group]) != 0)
    return np.sort(by_group[is_first])
