"""What a docid scheme is: where the identifiers of documents come from, and what a query teaches of them.

A scheme proposes docids for a document, best first; `zerogr.docids.resolve` gives every document one of its own. It may also
give identifiers that several documents share, such as their terms: then the retriever writes those, one at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from zerogr.config.base import SchemeSettings
from zerogr.config.owned import SCHEME
from zerogr.corpus.stage import load_frequency
from zerogr.index.index import Index
from zerogr.index.versions import root_of
from zerogr.llm.engines.engine import Engine
from zerogr.llm.generation import Rejection
from zerogr.plugins import load_class
from zerogr.store import cache
from zerogr.text.terms import DocumentFrequency

FITTED = "scheme"
"""Folder of the index, where the scheme has a fit."""


class Identifier(NamedTuple):
    """A text that the retriever may write to find a document."""

    text: str
    view: str
    """Of which kind it is, for an explanation."""
    weight: float
    """How much it counts for this document."""


@dataclass(slots=True, kw_only=True)
class Proposal:
    """What a document could be called."""

    candidates: list[str]
    """Docids it could have, best first, at least one; a collision takes the next."""
    sources: list[str]
    """Of each candidate: `lm`, `repaired` (an LM's, mended) or `scheme` (made without an LM)."""
    shared: Sequence[Identifier] = ()
    """Identifiers that other documents may have, too, best first."""
    own: Sequence[str] = ()
    """What `Scheme.tell_apart` knows of the document, most important first."""
    coverage: Sequence[float] = ()
    """Of each candidate, which share of the document's TF-IDF weight its words have."""
    violations: Sequence[str] = ()
    """The rules that an LM's first candidate broke."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


@dataclass
class Context:
    """What a scheme may ask for."""

    index: Index
    seed: int
    engine: Engine | None = None
    """The language model, if the scheme needs one."""

    @cached_property
    def fitted(self) -> Path:
        """The local folder of what the scheme's `fit` made."""
        return cache.local_folder(root_of(self.index).path(FITTED))

    @cached_property
    def frequency(self) -> DocumentFrequency:
        """How many documents of the corpus have each term."""
        return load_frequency(self.index)


class Taken(Protocol):
    """The docids of an index that documents are added to."""

    def settle(
        self, documents: Sequence[dict[str, Any]], proposals: Sequence[Proposal | Rejection], scheme: Scheme
    ) -> list[Proposal | Rejection]:
        """Returns the proposals with candidates alone that are free, or that a document of the same content has."""

    def has(self, docid: str) -> bool:
        """Whether a document has this docid."""


class Scheme(Protocol):
    """One kind of identifiers. The class names its settings and is made of them and a `Context`, once per worker."""

    Settings: ClassVar[type[SchemeSettings]]

    def __init__(self, settings: Any, context: Context) -> None: ...

    @classmethod
    def inputs(cls, settings: Any) -> dict[str, Any]:
        """Returns what its docids are made from besides the settings: prompts, hashes of models."""

    @classmethod
    def fit(cls, settings: Any, context: Context, folder: Path) -> None:
        """Makes of the whole corpus, once, what every worker finds in `Context.fitted`, if the settings say `has_fit`."""

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns what each of a shard's documents could be called, or why it cannot be called anything.

        A document is a row of corpus/, with its `vector` where the settings say that the scheme needs embeddings.
        """

    def tell_apart(self, docid: str, own: Sequence[str], rival: Collection[str]) -> Iterator[str]:
        """Yields other docids for a document whose candidates are all taken, best first.

        Args:
            docid: Its first candidate.
            own, rival: `Proposal.own` of the document and of the one that has that docid.
        """

    def numbered(self, docid: str, number: int) -> str:
        """Returns the docid with a number, where nothing else tells two documents apart."""

    @staticmethod
    def fold(text: str) -> str:
        """Returns what shared identifiers that count as one have in common."""

    def teach(
        self, query: str, docid: str, shared: Sequence[Identifier], draw: Callable[[], random.Random]
    ) -> list[tuple[str, float]]:
        """Returns what a query about a document teaches the retriever to write, with probabilities that add up to 1.

        `draw` makes this example's source of random numbers, the same in every run. That takes longer than all the rest, so
        ask only where there is something to draw.
        """


class DocidScheme:
    """What schemes have in common that give docids and nothing to share: each does what `Scheme` says, unless it says more."""

    @classmethod
    def inputs(cls, settings: Any) -> dict[str, Any]:
        """Returns nothing: its settings say it all."""
        return {}

    @classmethod
    def fit(cls, settings: Any, context: Context, folder: Path) -> None:
        """Makes nothing."""

    @staticmethod
    def fold(text: str) -> str:
        """Returns the text itself."""
        return text

    def teach(
        self, query: str, docid: str, shared: Sequence[Identifier], draw: Callable[[], random.Random]
    ) -> list[tuple[str, float]]:
        """Returns the docid."""
        return [(docid, 1.0)]


class WordScheme(DocidScheme):
    """What schemes have in common whose docids are words, separated by single spaces."""

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings, self.context = settings, context
        self.max_words: int = settings.max_words

    def tell_apart(self, docid: str, own: Sequence[str], rival: Collection[str]) -> Iterator[str]:
        """Yields the docid with one more word of the document, or with that for its last, words that the rival lacks first."""
        words = docid.split(" ")
        spare = [word for word in own if word not in words]
        for word in sorted(spare, key=lambda word: word in rival):
            yield " ".join([*words[: self.max_words - 1], word])

    def numbered(self, docid: str, number: int) -> str:
        """Returns the docid with the number for its last word."""
        return " ".join([*docid.split(" ")[: self.max_words - 1], str(number)])


def scheme_class(settings: SchemeSettings) -> Any:
    """Returns the class of the scheme that these settings choose."""
    return load_class(settings.scheme, SCHEME.package)
