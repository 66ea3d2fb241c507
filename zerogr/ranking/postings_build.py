"""How postings are built: one part of the documents after the other, and then sorted by word.

A part is turned into postings as it comes, ten bytes each, so that the documents themselves are never all in memory. Then every
part is dealt out to its words' places in the final arrays, six bytes each, for which a count of postings per word is enough,
and forgotten. At the peak about sixteen bytes per posting are held, and the vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.ragged import offsets_of
from zerogr.text.words import key_of, stem

K1, B = 0.9, 0.4
"""Of BM25: in a document of average length a word that is there `K1` times counts half as much as it can; in a longer one it
takes more, `B` says how much."""
MOST_PLACES = 256


def build_arrays(documents: Iterable[tuple[pa.Array, ...]], num_terms: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays of `zerogr.ranking.postings.Postings`, and the words that occur, sorted.

    Args:
        documents, num_terms: As `Postings.build` takes them.
    """
    vocabulary, parts, lengths, num_rows = _Vocabulary(), [], [np.empty(0, np.int32)], 0
    for docids, terms, term_counts, length in documents:
        parts.append(_Part.of(docids, terms, term_counts, num_terms, num_rows, vocabulary))
        lengths.append(length.to_numpy())
        num_rows += len(docids)
    words, group_of_word, new_group, stems = vocabulary.sorted()
    size = np.zeros(len(stems), dtype=np.int64)
    for part in parts:
        part.group = new_group[part.group]
        groups, counts = np.unique(part.group, return_counts=True)
        size[groups] += counts
    arrays = {
        "group_of_word": group_of_word,
        "word_of_group": np.unique(group_of_word, return_index=True)[1].astype(np.int32),
        "stems": stems,
        "group_begin": offsets_of(size),
        "norms": _norms(np.concatenate(lengths)),
        **_dealt_out(parts, offsets_of(size)),
    }
    return arrays, words


@dataclass(slots=True)
class _Vocabulary:
    """Words and groups, numbered as they come; a group is the words of one stem."""

    number: dict[str, int] = field(default_factory=dict)
    """Of a word."""
    group: array[int] = field(default_factory=lambda: array("i"))
    """Of each word."""
    is_used: bytearray = field(default_factory=bytearray)
    """Whether a word stands for its group in some document."""
    group_of_stem: dict[int, int] = field(default_factory=dict)
    """By `key_of` the stem."""

    def numbers_of(self, words: list[str]) -> np.ndarray:
        """Returns the numbers (int32 [n]) of words; new ones get the next."""
        for word in words:
            if word not in self.number:
                self.number[word] = len(self.number)
                self.group.append(self.group_of_stem.setdefault(key_of(stem(word)), len(self.group_of_stem)))
                self.is_used.append(False)
        return np.fromiter(map(self.number.__getitem__, words), np.int32, len(words))

    def groups_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the groups (int32 [n]) of words by their numbers."""
        return np.frombuffer(self.group, np.int32)[numbers] if len(numbers) else np.empty(0, np.int32)

    def use(self, numbers: np.ndarray) -> None:
        """Says that words stand for their groups."""
        if len(numbers):
            np.frombuffer(self.is_used, np.bool_)[numbers] = True

    def sorted(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Returns what is used, in its final order: the words by their text, the group of each (int32 [W]), the new number of
        every old group (int32), and the stems of the new ones (uint64 [G], ascending)."""
        words = sorted(word for word, is_used in zip(self.number, self.is_used, strict=True) if is_used)
        keys = np.fromiter(self.group_of_stem, np.uint64, len(self.group_of_stem))
        groups = self.groups_of(np.array([self.number[word] for word in words], dtype=np.int64))
        kept = np.unique(groups)
        kept = kept[np.argsort(keys[kept])]
        new_group = np.zeros(len(keys), dtype=np.int32)
        new_group[kept] = np.arange(len(kept), dtype=np.int32)
        return words, new_group[groups], new_group, keys[kept]


@dataclass(slots=True)
class _Part:
    """The postings of some documents, in the order of the documents and of the places in them."""

    group: np.ndarray  # int32 [p]
    row: np.ndarray  # int32 [p], never falls
    place: np.ndarray  # uint8 [p]
    count: np.ndarray  # uint8 [p]

    @classmethod
    def of(
        cls,
        docids: pa.Array,
        terms: pa.Array,
        term_counts: pa.Array,
        num_terms: int,
        first_row: int,
        vocabulary: _Vocabulary,
    ) -> _Part:
        """Returns the postings of documents that are numbered from `first_row`."""
        texts = pc.binary_join_element_wise(docids, pc.binary_join(terms, " "), " ")
        lists = pc.split_pattern(pc.utf8_rtrim(texts, " "), " ")
        written = pc.list_flatten(lists).dictionary_encode()
        number = vocabulary.numbers_of(written.dictionary.to_pylist())
        index = written.indices.to_numpy()
        group = vocabulary.groups_of(number)[index]
        row = np.arange(len(docids)).repeat(pc.list_value_length(lists).to_numpy())
        is_of_docid = _place_in_run(row) < (pc.count_substring(docids, " ").to_numpy() + 1)[row]
        count = np.ones(len(row), np.uint8)
        count[~is_of_docid] = pc.list_flatten(term_counts).to_numpy()

        first, count = _first_of_each(group, row, count)
        place = _place_in_run(row[first])
        is_kept = is_of_docid[first] | (place < num_terms)
        first, place, count = first[is_kept], place[is_kept], count[is_kept]
        vocabulary.use(number[np.unique(index[first])])
        return cls(
            group[first],
            (row[first] + first_row).astype(np.int32),
            np.minimum(place, MOST_PLACES - 1).astype(np.uint8),
            count,
        )


def _dealt_out(parts: list[_Part], group_begin: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows, places and counts of all postings by group, within a group by row; takes the parts, whose rows ascend."""
    arrays = {
        name: np.empty(group_begin[-1], dtype)
        for name, dtype in (("rows", np.int32), ("places", np.uint8), ("counts", np.uint8))
    }
    filled = group_begin[:-1].copy()
    parts.reverse()
    while parts:
        part = parts.pop()
        by_group = np.argsort(part.group, kind="stable")
        group = part.group[by_group]
        at = filled[group] + _place_in_run(group)
        for name, values in (("rows", part.row), ("places", part.place), ("counts", part.count)):
            arrays[name][at] = values[by_group]
        filled[group] = at + 1  # the last of each group stays
    return arrays


def _norms(lengths: np.ndarray) -> np.ndarray:
    """Returns what documents of some lengths (int [N]) add to a count before it is half of what it can be."""
    lengths = np.maximum(lengths, 1)  # one without a word may still have a random docid
    return (K1 * (1 - B + B * lengths / lengths.mean() if len(lengths) else lengths)).astype(np.float32)


def _place_in_run(values: np.ndarray) -> np.ndarray:
    """Returns how many equal values (int [n], never falling) stand before each (int64 [n])."""
    begin = np.flatnonzero(np.diff(values, prepend=-1))
    return np.arange(len(values)) - begin.repeat(np.diff(begin, append=len(values)))


def _first_of_each(group: np.ndarray, row: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which entries (int64 [m], ascending) are the first of their group in their row, and the highest count ([m]) of
    that group there; rows (int [n]) never fall."""
    by_group = np.argsort(group, kind="stable")
    is_first = np.ones(len(group), dtype=bool)
    is_first[1:] = (np.diff(group[by_group]) != 0) | (np.diff(row[by_group]) != 0)
    begin = np.flatnonzero(is_first)
    highest = np.maximum.reduceat(count[by_group], begin) if len(begin) else count
    first = by_group[begin]
    order = np.argsort(first)
    return first[order], highest[order]
