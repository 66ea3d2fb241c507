"""What a ranker is: it turns what the retriever wrote, and their probabilities, into ranked documents.

A ranker is chosen by `ranking.name`. It says how many leaves of the trie it wants to see, ranks documents by them, and says of
which parts a document's score is the sum. For an explanation it either has the document's own docid scored token by token, or
is shown `num_traced` leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from zerogr.config.base import RankerSettings
from zerogr.config.owned import RANKER, settings_of
from zerogr.errors import UserError
from zerogr.plugins import load_class
from zerogr.ranking.lexical_index import LexicalIndex
from zerogr.ranking.owners import OWNERS, Owners
from zerogr.trie.filtered import Rows


class Leaves(NamedTuple):
    """What the retriever wrote for one query, L leaves in the strategy's order."""

    identifiers: np.ndarray
    """int64 [L]: rows of the trie."""
    log_probs: np.ndarray
    """float64 [L]"""
    text_of: Callable[[int], str]
    """Returns the text of leaf 0 <= i < L."""


class Ranking(NamedTuple):
    """Documents, best first."""

    rows: np.ndarray
    """int64 [n]"""
    scores: np.ndarray
    """float64 [n]"""


class Part(NamedTuple):
    """One summand of a document's score."""

    ranker: str
    text: str
    probability: float | None
    """That the retriever gives to the text; None where it was not asked."""
    score: float


class Filter(NamedTuple):
    """Which rows may be found; None = all may, or none is denied."""

    allow: Rows | None = None
    deny: Rows | None = None

    @property
    def is_everything(self) -> bool:
        """Whether all rows may be found."""
        return self.allow is None and self.deny is None

    def mask(self, num_rows: int, before: np.ndarray | None = None) -> np.ndarray:
        """Returns bool [num_rows]: which rows may be found, of those that could be before."""
        allowed = np.zeros(num_rows, dtype=bool)
        allowed[slice(None) if self.allow is None else np.asarray(self.allow, dtype=np.int64)] = True
        allowed[np.asarray([] if self.deny is None else self.deny, dtype=np.int64)] = False
        return allowed if before is None else allowed & before


@dataclass
class Data:
    """What a ranker may read of the index; each is opened when it is asked for."""

    trie_folder: Path
    lexical_folder: Path | None = None
    """Where the index has a lexical one."""

    @property
    def has_owners(self) -> bool:
        """Whether documents share identifiers."""
        return (self.trie_folder / OWNERS).is_dir()

    @cached_property
    def owners(self) -> Owners:
        """Which documents have an identifier, where documents share identifiers."""
        return Owners.load(self.trie_folder / OWNERS)

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The lexical index."""
        assert self.lexical_folder is not None
        return LexicalIndex.load(self.lexical_folder)


class Ranker(Protocol):
    """A way to rank. The class names its settings and is made of them and of `Data`."""

    Settings: ClassVar[type[RankerSettings]]
    name: str
    """As the configuration has it."""
    has_log_probs: bool
    """Whether its scores are natural-log probabilities of docids."""
    num_traced: int
    """Leaves that an explanation is made from; 0 = the document's own docid, token by token."""

    def __init__(self, settings: Any, data: Data) -> None: ...

    def num_leaves(self, k: int) -> int:
        """Returns how many leaves it wants to see for k documents; 0 = nothing is to be decoded."""

    def rank(self, query: str, leaves: Leaves, k: int) -> Ranking:
        """Returns at most k documents."""

    def parts(self, query: str, leaves: Leaves, row: int) -> list[Part]:
        """Returns what a document's score is the sum of, the largest first."""

    def restrict(self, rows: Filter) -> tuple[Self, Filter]:
        """Returns this ranker for some of the documents, and which rows of the trie are left for them."""


class AdditiveRanker:
    """What rankers have in common whose scores are sums of positive parts, so that a mix can add them."""

    name: str = ""
    has_log_probs = False

    def score_all(self, query: str, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """Returns every document with a score: rows (int64 [n], ascending) and scores (float64 [n])."""
        raise NotImplementedError

    def rank(self, query: str, leaves: Leaves, k: int) -> Ranking:
        """Returns the k documents with the highest scores; of equal ones the first rows."""
        rows, scores = self.score_all(query, leaves)
        if len(rows) > k:
            is_best = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            rows, scores = rows[is_best], scores[is_best]
        best = np.lexsort((rows, -scores))[:k]
        return Ranking(rows[best].astype(np.int64), scores[best])


def summed(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row once, ascending, with the sum of its scores."""
    found, number = np.unique(rows, return_inverse=True)
    return found.astype(np.int64), np.bincount(number, scores, minlength=len(found))


def ranker_within(ranker: Ranker, name: str | None) -> Ranker:
    """Returns a ranker, or one of those whose sum it is, by its name; None = itself. Raises UserError for another name."""
    known = {ranker.name: ranker, **getattr(ranker, "rankers", {})}
    if (name or ranker.name) not in known:
        raise UserError(f"the index ranks by {', '.join(known)}, not by '{name}'; section ranking says by what")
    return known[name or ranker.name]


def num_leaves_of(ranker: Ranker, k: int, num_leaves: int | None, beam_width: int | None) -> int:
    """Returns how many leaves are to be written for k documents, where a search may say so.

    Raises:
        UserError: The ranker has no setting `num_leaves`.
    """
    if num_leaves is not None and "num_leaves" not in ranker.Settings.model_fields:
        raise UserError(f"num_leaves is no setting of the ranker {ranker.name}")
    wanted = num_leaves or ranker.num_leaves(k)
    return min(wanted, beam_width or wanted)  # a beam cannot find more than its width


def load_ranker(settings: RankerSettings, data: Data) -> Ranker:
    """Returns the ranker that these settings choose."""
    ranker: Ranker = load_class(settings.name, RANKER.package)(settings, data)
    ranker.name = settings.name
    return ranker


def ranker_of(name: str, data: Data) -> Ranker:
    """Returns a ranker with its default settings. Raises ValueError if there is none of that name."""
    settings = settings_of(RANKER, name)
    return load_ranker(settings.model_validate({"name": name}), data)  # type: ignore[arg-type]
