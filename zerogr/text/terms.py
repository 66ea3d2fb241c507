"""Terms: the topical words of a document, and how many documents hold each.

Document frequencies are counted in a hashed table of 2**22 counters: 16 MiB whatever the corpus, mergeable across shards, and
two terms that share a counter (one pair in four million) only look a little more common than they are.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from zerogr.text.words import is_topical, stem, words

MAX_REMEMBERED = 2**16
"""Terms whose number is kept at hand; few words are most of any text."""


class DocumentFrequency:
    """How many documents hold each term. The forms of a word are one term.

    Attributes:
        num_documents: Documents counted so far.
    """

    NUM_COUNTERS = 2**22

    def __init__(self) -> None:
        self.num_documents = 0
        self._counters = np.zeros(self.NUM_COUNTERS, dtype="<u4")
        self._idfs: dict[str, float] = {}

    def add(self, terms: Iterable[str]) -> None:
        """Counts one document that holds these terms; repetitions count once."""
        slots = {_hash_of(term) % self.NUM_COUNTERS for term in set(terms)}
        self._counters[list(slots)] += 1
        self._idfs.clear()
        self.num_documents += 1

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the counters that are not zero: their numbers (uint32 [n], ascending) and values (uint32 [n])."""
        slots = np.flatnonzero(self._counters)
        return slots.astype("<u4"), self._counters[slots]

    def add_counts(self, slots: np.ndarray, values: np.ndarray, num_documents: int) -> None:
        """Counts the documents of another table, given as its `counts`."""
        self._counters[slots] += values
        self._idfs.clear()
        self.num_documents += num_documents

    def of(self, term: str) -> int:
        """Returns the number of documents that hold `term` (at least, if terms share a counter)."""
        return int(self._counters[_hash_of(term) % self.NUM_COUNTERS])

    def idf(self, term: str) -> float:
        """Returns ln((N + 1) / (df + 0.5)), positive, higher for rarer terms; a term never seen is the rarest."""
        if (known := self._idfs.get(term)) is not None:
            return known
        if len(self._idfs) >= MAX_REMEMBERED:
            self._idfs.clear()
        idf = math.log((self.num_documents + 1) / (min(self.of(term), self.num_documents) + 0.5))
        return self._idfs.setdefault(term, idf)

    def to_bytes(self) -> bytes:
        """Returns the table in a form `from_bytes` reads; the same counts give the same bytes."""
        return self.num_documents.to_bytes(8, "little") + zlib.compress(self._counters.tobytes(), level=1)

    @classmethod
    def from_bytes(cls, data: bytes) -> DocumentFrequency:
        """Returns the table `to_bytes` wrote."""
        table = cls()
        table.num_documents = int.from_bytes(data[:8], "little")
        table._counters = np.frombuffer(zlib.decompress(data[8:]), dtype="<u4").copy()
        return table


@lru_cache(maxsize=MAX_REMEMBERED)
def _hash_of(term: str) -> int:
    return zlib.crc32(stem(term).encode())


class Term(NamedTuple):
    """A topical word of a document."""

    word: str
    """The form that the document has most often."""
    weight: float
    """TF-IDF, (1 + ln count) x idf."""
    occurrences: float
    """How often the document has any of its forms."""


def rank_terms(title: str, text: str, frequency: DocumentFrequency, *, title_weight: float = 3.0) -> list[Term]:
    """Returns the document's topical terms, heaviest first, ties in order of appearance.

    The forms of a word are one term. An occurrence in the title counts `title_weight` times.
    """
    return rank_words(words(title), words(text), frequency, title_weight=title_weight)


def rank_words(
    title: list[str], text: list[str], frequency: DocumentFrequency, *, title_weight: float = 3.0
) -> list[Term]:
    """As `rank_terms`, of the words of both."""
    counts: dict[str, float] = {word: title_weight * number for word, number in Counter(title).items()}
    for word, number in Counter(text).items():
        counts[word] = counts.get(word, 0.0) + number
    # By stem: its commonest form, how often the document has that, how often it has any.
    forms: dict[str, tuple[str, float, float]] = {}
    for word, count in counts.items():
        if is_topical(word):
            term = stem(word)
            if (known := forms.get(term)) is None:
                forms[term] = (word, count, count)
            else:
                form, most, total = known
                forms[term] = (word, count, total + count) if count > most else (form, most, total + count)
    idf, log = frequency.idf, math.log
    ranked = [Term(form, (1 + log(total)) * idf(term), total) for term, (form, _, total) in forms.items()]
    return sorted(ranked, key=attrgetter("weight"), reverse=True)  # ties stay in their order
