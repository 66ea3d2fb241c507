"""Postings: which documents have a word, and at which place.

The words of a document are those of its docid and then its heaviest terms, each stem once (`words_of`). Where the retriever
writes single words (`docids.unit: word`), a search ends with some words and their probabilities p: the model's, and with a
share of them (`decoding.query_share`) the words that the query itself names, rare ones first (`Postings.named`). A document's
score is the sum over those that it has

    log(1 + p / 0.003) / (1 + place / 16)

Words of one stem are one word, with the sum of their probabilities: `wing` finds the document that says `wings`. The logarithm
keeps one word from deciding alone (as in SPLADE, Formal et al. 2021); what a document is most about stands first, and weighs
more. To mix a relevance model with the query's own words is RM3 (Abdul-Jaleel et al. 2004, "UMass at TREC 2004: Novelty and
HARD"), here with a language model for the relevance model: a name that it has never met still finds its documents. Documents as
sets of generated terms are from Zhang et al. 2023, "Term-Sets Can Be Strong Document Identifiers For Auto-Regressive Search
Engines", the sum over what was generated from Bevilacqua et al. 2022, "Autoregressive Search Engines".

Five bytes per word of each document and 16 per word, as memory maps. A search reads the postings of its words alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.array_files import load_arrays, save_arrays
from zerogr.trie_build import offsets_of
from zerogr.words import key_of, stem
from zerogr.words import words as words_in

SMALL_PROBABILITY = 3e-3
"""Below it a word's score is in proportion to its probability, above it to the logarithm."""
HALF_PLACE = 16
"""The place, from 0, at which a word counts half as much as at the first."""
MOST_PLACES = 256
ARRAYS = ("group_of_word", "word_of_group", "stems", "group_begin", "rows", "places")


class Postings:
    """G groups of words with one stem, W words, P postings, N documents. Read-only; make one with `build` or `load`."""

    def __init__(self, arrays: dict[str, np.ndarray], num_rows: int, allowed: np.ndarray | None = None) -> None:
        """Wraps the arrays named in `ARRAYS`.

        Args:
            arrays: See the comments.
            num_rows: N.
            allowed: bool [N]; None = all documents may be found.
        """
        self.group_of_word = arrays["group_of_word"]  # int32 [W]
        self.word_of_group = arrays["word_of_group"]  # int32 [G], one of each
        self.stems = arrays["stems"]  # uint64 [G], ascending: `key_of` the stem
        self.group_begin = arrays["group_begin"]  # int64 [G + 1] into the next two
        self.rows = arrays["rows"]  # int32 [P], ascending within a group
        self.places = arrays["places"]  # uint8 [P]
        self.num_rows = num_rows
        self._allowed = allowed

    @classmethod
    def build(cls, documents: Iterable[tuple[pa.Array, pa.Array]], num_terms: int) -> tuple[Self, list[str]]:
        """Returns the postings of documents, and the words that occur, sorted; word i is row i of the trie.

        Args:
            documents: Parts of (docids string [n], terms list<string> [n]); the documents are numbered through.
            num_terms: As in `words_of`.
        """
        columns, rows, sizes, num_rows = [], [], [], 0
        for docids, terms in documents:
            texts = pc.binary_join_element_wise(docids, pc.binary_join(terms, " "), " ")
            lists = pc.split_pattern(pc.utf8_rtrim(texts, " "), " ")
            columns.append(pc.list_flatten(lists).dictionary_encode())
            rows.append(np.arange(num_rows, num_rows + len(docids)).repeat(pc.list_value_length(lists).to_numpy()))
            sizes.append(pc.count_substring(docids, " ").to_numpy() + 1)
            num_rows += len(docids)
        written = pa.chunked_array(columns, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
        words = written.chunk(0).dictionary.to_pylist() if written.num_chunks else []
        keys = np.array([key_of(stem(word)) for word in words], dtype=np.uint64)
        stems, group_of_word = np.unique(keys, return_inverse=True)

        word = np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in written.chunks)])
        row = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int32)
        place = _place_in_row(row)
        is_of_docid = place < np.concatenate([np.empty(0, np.int64), *sizes])[row]
        is_first = _is_first(group_of_word[word], row)
        word, row, is_of_docid = word[is_first], row[is_first], is_of_docid[is_first]
        place = _place_in_row(row)
        is_kept = is_of_docid | (place < num_terms)
        word, row, place = word[is_kept], row[is_kept], place[is_kept]

        used = sorted(np.unique(word).tolist(), key=words.__getitem__)
        groups, word_of_group, group_of_used = np.unique(group_of_word[used], return_index=True, return_inverse=True)
        group = np.searchsorted(groups, group_of_word[word]).astype(np.int32)
        by_group = np.argsort(group, kind="stable")  # rows ascend within a group
        arrays = {
            "group_of_word": group_of_used.astype(np.int32),
            "word_of_group": word_of_group.astype(np.int32),
            "stems": stems[groups],
            "group_begin": offsets_of(np.bincount(group, minlength=len(groups))),
            "rows": row[by_group],
            "places": np.minimum(place, MOST_PLACES - 1).astype(np.uint8)[by_group],
        }
        return cls(arrays, num_rows), [words[i] for i in used]

    def named(self, query: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Returns the words of a query that any document has: texts, words (int64 [n]), probabilities (float64 [n], sum 1).

        Words of one stem are one. Each is as probable as it is rare, ln((N + 1) / (df + 0.5)) over the documents that may be
        found, times how often the query has it.
        """
        texts: dict[int, str] = {}
        times = Counter[int]()
        for word in words_in(query):
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
        counts = {group: count for group in groups if (count := self._num_documents(group))}
        num_rows = self.num_rows if self._allowed is None else int(self._allowed.sum())
        found = [int(self.stems[group]) for group in counts]
        rarity = np.log((num_rows + 1) / (np.array(list(counts.values()), dtype=np.float64) + 0.5))
        weights = rarity * [times[key] for key in found]
        return (
            [texts[key] for key in found],
            self.word_of_group[list(counts)].astype(np.int64),
            weights / weights.sum(),
        )

    def _num_documents(self, group: int) -> int:
        """Returns how many documents that may be found have a word."""
        rows = self.rows[int(self.group_begin[group]) : int(self.group_begin[group + 1])]
        return len(rows) if self._allowed is None else int(self._allowed[rows].sum())

    def rank(
        self, words: Sequence[int] | np.ndarray, probabilities: Sequence[float] | np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents that have any of some words: rows (int64 [<= k]) and scores (float64), best first.

        Args:
            words: int [n]; of one that is there twice the probabilities are added.
            probabilities: float [n], above 0.
            k: At least 1. Documents with the same score come out in row order.
        """
        groups, number = np.unique(self.group_of_word[np.asarray(words, dtype=np.int64)], return_inverse=True)
        mass = np.bincount(number, np.asarray(probabilities, dtype=np.float64), minlength=len(groups))
        begin = self.group_begin[groups]
        count = self.group_begin[groups + 1] - begin
        postings = np.repeat(begin - offsets_of(count)[:-1], count) + np.arange(count.sum())
        rows = self.rows[postings]
        scores = np.repeat(word_score(mass), count) * place_weight(self.places[postings])
        if self._allowed is not None:
            is_allowed = self._allowed[rows]
            rows, scores = rows[is_allowed], scores[is_allowed]
        found, number = np.unique(rows, return_inverse=True)
        total = np.bincount(number, scores, minlength=len(found))
        if len(found) > k:
            is_best = total >= np.partition(total, len(total) - k)[len(total) - k]
            found, total = found[is_best], total[is_best]
        best = np.lexsort((found, -total))[:k]
        return found[best].astype(np.int64), total[best]

    def of_row(
        self, row: int, words: Sequence[int] | np.ndarray, probabilities: Sequence[float] | np.ndarray
    ) -> list[tuple[int, float, float]]:
        """Returns which of some words a document has, what adds most to its score first.

        Args:
            row: Of the document.
            words, probabilities: As in `rank`.

        Returns:
            (The likeliest of a word's forms, probability of all its forms, what they add to the score) per word.
        """
        mass_of = np.asarray(probabilities, dtype=np.float64)
        likeliest_first = np.argsort(-mass_of, kind="stable")
        forms: dict[int, list[int]] = {}
        for i in likeliest_first.tolist():
            forms.setdefault(int(self.group_of_word[words[i]]), []).append(i)
        found = []
        for group, members in forms.items():
            begin, end = int(self.group_begin[group]), int(self.group_begin[group + 1])
            at = begin + int(np.searchsorted(self.rows[begin:end], np.int32(row)))
            if at < end and self.rows[at] == row:
                mass = mass_of[members].sum()
                score = float(word_score(mass) * place_weight(self.places[at]))
                found.append((int(words[members[0]]), float(mass), score))
        return sorted(found, key=lambda each: -each[2])

    def filter(
        self, *, allow: Sequence[int] | np.ndarray | None = None, deny: Sequence[int] | np.ndarray | None = None
    ) -> tuple[Self, np.ndarray]:
        """Returns a view in which only some documents exist, and the words (int64, ascending) that they have.

        Args:
            allow: Rows that may be found; None = all that may be found here.
            deny: Rows that may not be found, even if they are in `allow`.
        """
        allowed = np.zeros(self.num_rows, dtype=bool)
        allowed[slice(None) if allow is None else np.asarray(allow, dtype=np.int64)] = True
        allowed[np.asarray([] if deny is None else deny, dtype=np.int64)] = False
        if self._allowed is not None:
            allowed &= self._allowed
        has_any = np.logical_or.reduceat(allowed[self.rows], self.group_begin[:-1]) if len(self.rows) else self.rows
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return type(self)(arrays, self.num_rows, allowed), np.flatnonzero(has_any[self.group_of_word])

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrays into the local folder `path`."""
        save_arrays(path, {name: getattr(self, name) for name in ARRAYS}, {"num_rows": self.num_rows})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Opens saved postings as memory maps.

        Raises:
            UserError: A file is missing or not what was written.
        """
        arrays, meta = load_arrays(path, ARRAYS, "postings")
        return cls(arrays, meta["num_rows"])


def words_of(docid: str, terms: Sequence[str], num_terms: int) -> list[str]:
    """Returns the words by which a document is found: each of its docid's, then its terms until there are `num_terms`. Of words
    with one stem the first stands for all."""
    found: dict[str, str] = {}
    for word in docid.split(" "):
        found.setdefault(stem(word), word)
    for term in terms:
        if len(found) < num_terms:
            found.setdefault(stem(term), term)
    return list(found.values())


def word_score(probability: np.ndarray) -> np.ndarray:
    """Returns what a word of some probability (float [n]) adds to a document that begins with it."""
    return np.log1p(probability / SMALL_PROBABILITY)


def place_weight(places: np.ndarray) -> np.ndarray:
    """Returns how much words count at places (int [n], from 0) of a docid."""
    return 1.0 / (1.0 + places / HALF_PLACE)


def _place_in_row(row: np.ndarray) -> np.ndarray:
    """Returns how many entries of the same row stand before each (int64 [n]); rows (int [n]) never fall."""
    return np.arange(len(row)) - offsets_of(np.bincount(row))[row]


def _is_first(group: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Returns which entries (bool [n]) are the first of their group in their row; rows (int [n]) never fall."""
    by_group = np.argsort(group, kind="stable")
    is_first = np.ones(len(group), dtype=bool)
    is_first[by_group[1:]] = (np.diff(group[by_group]) != 0) | (np.diff(row[by_group]) != 0)
    return is_first
