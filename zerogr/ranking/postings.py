"""Postings: which documents have a word, at which place and how often; and how words become a ranking of documents.

The words of a document are those of its docid and then its heaviest terms, each stem once (`words_of`). Where the retriever
writes single words (`docids.unit: word`), a search ends with the words that it wrote and their probabilities p, and with the
words that the query itself names, of which df among N documents have each. A document's score is, over those that it has,

    (1 - share) x sum of log(1 + p / 0.003) / (1 + place / 16)
        + share x covered x sum of times in the query x rarity x count / (count + norm) / (1 + place / 64)

with `decoding.query_share` for the share, rarity = ln((N + 1) / (df + 0.5)), norm = 0.9 x (0.6 + 0.4 x length / average
length), and covered for how much of the query, by times and rarity, is in words that any document has: where a query speaks in
other words than the documents, those that they share with it by chance say little. Words of one stem are one word, with the
sum of their probabilities: `wing` finds the document that says `wings`. What a document is most about stands first, and weighs
more.

The first sum is what the model knows. Its logarithm keeps one word from deciding alone (as in SPLADE, Formal et al. 2021).
Documents as sets of generated terms are from Zhang et al. 2023, "Term-Sets Can Be Strong Document Identifiers For
Auto-Regressive Search Engines", the sum over what was generated from Bevilacqua et al. 2022, "Autoregressive Search Engines".
The second sum is that of BM25 (Robertson and Zaragoza 2009) over these words: a name that the model has never met still finds
its documents. That the two add up is the convex combination of Bruch et al. 2023, "An Analysis of Fusion Functions for Hybrid
Retrieval".

Six bytes per word of each document, four per document and 16 per word, as memory maps. A search reads the postings of its words
and the norms of their documents alone.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from zerogr.ragged import offsets_of
from zerogr.ranking.postings_build import build_arrays
from zerogr.store.arrays import load_arrays, save_arrays
from zerogr.text.words import is_topical, key_of, stem
from zerogr.text.words import words as words_in

SMALL_PROBABILITY = 3e-3
"""Below it a word's score is in proportion to its probability, above it to the logarithm."""
HALF_PLACE = 16
"""The place, from 0, at which a written word counts half as much as at the first."""
HALF_PLACE_OF_NAMED = 64
"""The same of a word that the query names."""
ARRAYS = ("group_of_word", "word_of_group", "stems", "group_begin", "rows", "places", "counts", "norms")


class Weighted(NamedTuple):
    """Words, and what each of them weighs."""

    words: np.ndarray
    """int64 [n]"""
    weights: np.ndarray
    """float64 [n]: probabilities of written words, rarities of named ones."""


@dataclass(frozen=True, slots=True)
class PartOfScore:
    """A word of a document in its score."""

    word: int
    """The likeliest of its forms, or one that the query names."""
    probability: float
    """Of all its written forms."""
    score: float
    """What it adds to that of the document."""


class Postings:
    """G groups of words with one stem, W words, P postings, N documents. Read-only; make one with `build` or `load`."""

    def __init__(self, arrays: dict[str, np.ndarray], allowed: np.ndarray | None = None) -> None:
        """Wraps the arrays named in `ARRAYS`.

        Args:
            arrays: See the comments.
            allowed: bool [N]; None = all documents may be found.
        """
        self.group_of_word = arrays["group_of_word"]  # int32 [W]
        self.word_of_group = arrays["word_of_group"]  # int32 [G], one of each
        self.stems = arrays["stems"]  # uint64 [G], ascending: `key_of` the stem
        self.group_begin = arrays["group_begin"]  # int64 [G + 1] into the next two
        self.rows = arrays["rows"]  # int32 [P], ascending within a group
        self.places = arrays["places"]  # uint8 [P]
        self.counts = arrays["counts"]  # uint8 [P], at least 1
        self.norms = arrays["norms"]  # float32 [N], above 0
        self.num_rows = len(self.norms)
        self._allowed = allowed

    @classmethod
    def build(cls, documents: Iterable[tuple[pa.Array, ...]], num_terms: int) -> tuple[Self, list[str]]:
        """Returns the postings of documents, and the words that occur, sorted; word i is row i of the trie.

        Args:
            documents: Parts of (docids string [n], terms list<string> [n], how often a document has each of its terms
                list<uint8> [n], its length int [n]); the documents are numbered through. A word of a docid that is none of the
                terms counts once.
            num_terms: As in `words_of`.
        """
        arrays, words = build_arrays(documents, num_terms)
        return cls(arrays), words

    def named(self, query: str) -> tuple[Weighted, list[str]]:
        """Returns the topical words of a query that any document has, and their texts; words of one stem are one.

        A word weighs ln((N + 1) / (df + 0.5)) over the documents that may be found, times how often the query has it, times the
        share of such weights that these words have among all of the query's topical words. A query without a topical word is
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
        counts = {group: count for group in groups if (count := self._num_documents(group))}
        num_rows = self.num_rows if self._allowed is None else int(self._allowed.sum())
        found = [int(self.stems[group]) for group in counts]
        rarity = np.log((num_rows + 1) / (np.array(list(counts.values()), dtype=np.float64) + 0.5))
        weights = rarity * [times[key] for key in found]
        num_unheard = sum(times[key] for key in texts.keys() - set(found))
        covered = weights.sum() / (weights.sum() + num_unheard * math.log((num_rows + 1) / 0.5)) if found else 0.0
        return Weighted(self.word_of_group[list(counts)].astype(np.int64), covered * weights), [texts[k] for k in found]

    def _num_documents(self, group: int) -> int:
        """Returns how many documents that may be found have a word."""
        rows = self.rows[int(self.group_begin[group]) : int(self.group_begin[group + 1])]
        return len(rows) if self._allowed is None else int(self._allowed[rows].sum())

    def rank(self, written: Weighted, named: Weighted, query_share: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents that have any of some words: rows (int64 [<= k]) and scores (float64), best first.

        Args:
            written: Words and their probabilities, above 0; of one that is there twice they are added.
            named: As `named` returns them.
            query_share: In [0, 1]; see the module.
            k: At least 1. Documents with the same score come out in row order.
        """
        parts = []
        if query_share < 1:
            groups, masses = self._masses(written)
            postings, number = self._postings_of(groups)
            parts.append((postings, (1 - query_share) * self._written_scores(masses[number], postings)))
        if query_share > 0:
            postings, number = self._postings_of(self.group_of_word[named.words])
            parts.append((postings, query_share * self._named_scores(named.weights[number], postings)))
        postings, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        rows = self.rows[postings]
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

    def of_row(self, row: int, written: Weighted, named: Weighted, query_share: float) -> list[PartOfScore]:
        """Returns which of some words a document has, what adds most to its score first.

        Args:
            row: Of the document.
            written, named, query_share: As in `rank`.
        """
        likeliest_last = written.words[np.argsort(written.weights, kind="stable")]
        shown = {int(self.group_of_word[word]): int(word) for word in [*named.words, *likeliest_last]}
        probability = dict(zip(*(array.tolist() for array in self._masses(written)), strict=True))
        rarity = dict(zip(self.group_of_word[named.words].tolist(), named.weights.tolist(), strict=True))
        found = []
        for group, word in shown.items():
            begin, end = int(self.group_begin[group]), int(self.group_begin[group + 1])
            at = begin + int(np.searchsorted(self.rows[begin:end], np.int32(row)))
            if at < end and self.rows[at] == row:
                mass = probability.get(group, 0.0)
                score = (1 - query_share) * self._written_scores(mass, at)
                score += query_share * self._named_scores(rarity.get(group, 0.0), at)
                found.append(PartOfScore(word, mass, float(score)))
        return sorted(found, key=lambda part: -part.score)

    def _masses(self, written: Weighted) -> tuple[np.ndarray, np.ndarray]:
        """Returns the groups (int [g], ascending) of written words, and the probability of each."""
        groups, number = np.unique(self.group_of_word[written.words], return_inverse=True)
        return groups, np.bincount(number, written.weights, minlength=len(groups))

    def _postings_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all postings (int64 [p]) of groups (int [g]), and the number in `groups` of each."""
        begin = self.group_begin[groups]
        count = self.group_begin[groups + 1] - begin
        number = np.arange(len(groups)).repeat(count)
        return (begin - offsets_of(count)[:-1])[number] + np.arange(len(number)), number

    def _written_scores(self, mass: Any, postings: Any) -> Any:
        """Returns what written words of some probability (float [p]) add at postings (int [p])."""
        return np.log1p(mass / SMALL_PROBABILITY) * place_weight(self.places[postings])

    def _named_scores(self, rarity: Any, postings: Any) -> Any:
        """Returns what words that the query names add at postings (int [p])."""
        count = self.counts[postings].astype(np.float64)
        saturated = count / (count + self.norms[self.rows[postings]])
        return rarity * saturated * place_weight(self.places[postings], HALF_PLACE_OF_NAMED)

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
        return type(self)(arrays, allowed), np.flatnonzero(has_any[self.group_of_word])

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrays into the local folder `path`."""
        save_arrays(path, {name: getattr(self, name) for name in ARRAYS}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Opens saved postings as memory maps.

        Raises:
            UserError: A file is missing or not what was written.
        """
        arrays, _ = load_arrays(path, ARRAYS, "postings")
        return cls(arrays)


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


def place_weight(places: np.ndarray, half_place: int = HALF_PLACE) -> np.ndarray:
    """Returns how much words count at places (int [n], from 0) of a document."""
    return 1.0 / (1.0 + places / half_place)
