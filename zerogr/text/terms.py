"""Terms: the topical words of a document, and how many documents hold each.

Document frequencies are counted in a hashed table of 2**22 counters: 16 MiB whatever the corpus, mergeable across shards, and
two terms that share a counter (one pair in four million) only look a little more common than they are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zerogr.text.words import is_topical, stem, words


class DocumentFrequency:
    """How many documents hold each term. The forms of a word are one term.

    Attributes:
        num_documents: Documents counted so far.
    """

    NUM_COUNTERS = 2**22

    def __init__(self) -> None:
        self.num_documents = 0
        self._counters = np.zeros(self.NUM_COUNTERS, dtype="<u4")

    def add(self, terms: Iterable[str]) -> None:
        """Counts one document that holds these terms; repetitions count once."""
        slots = {self._slot(term) for term in set(terms)}
        self._counters[list(slots)] += 1
        self.num_documents += 1

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the counters that are not zero: their numbers (uint32 [n], ascending) and values (uint32 [n])."""
        slots = np.flatnonzero(self._counters)
        return slots.astype("<u4"), self._counters[slots]

    def add_counts(self, slots: np.ndarray, values: np.ndarray, num_documents: int) -> None:
        """Counts the documents of another table, given as its `counts`."""
        self._counters[slots] += values
        self.num_documents += num_documents

    def of(self, term: str) -> int:
        """Returns the number of documents that hold `term` (at least, if terms share a counter)."""
        return int(self._counters[self._slot(term)])

    def _slot(self, term: str) -> int:
        return zlib.crc32(stem(term).encode()) % self.NUM_COUNTERS

    def idf(self, term: str) -> float:
        """Returns ln((N + 1) / (df + 0.5)), positive, higher for rarer terms; a term never seen is the rarest."""
        return math.log((self.num_documents + 1) / (min(self.of(term), self.num_documents) + 0.5))

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


@dataclass(frozen=True, slots=True)
class Term:
    """A topical word of a document."""

    word: str
    """The form that the document has most often."""
    weight: float
    """TF-IDF, (1 + ln count) x idf."""
    count: float
    """How often the document has any of its forms."""


def rank_terms(title: str, text: str, frequency: DocumentFrequency, *, title_weight: float = 3.0) -> list[Term]:
    """Returns the document's topical terms, heaviest first, ties in order of appearance.

    The forms of a word are one term. An occurrence in the title counts `title_weight` times.
    """
    counts: dict[str, dict[str, float]] = {}
    for part, weight in ((title, title_weight), (text, 1.0)):
        for word in filter(is_topical, words(part)):
            forms = counts.setdefault(stem(word), {})
            forms[word] = forms.get(word, 0.0) + weight
    ranked = []
    for term, forms in counts.items():
        count = sum(forms.values())
        ranked.append(Term(max(forms, key=forms.__getitem__), (1 + math.log(count)) * frequency.idf(term), count))
    return sorted(ranked, key=lambda term: -term.weight)
