"""TF-IDF: the document's heaviest terms are its docid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from zerogr.config.base import SchemeSettings
from zerogr.docids.scheme import Proposal, WordScheme
from zerogr.docids.words import NO_WORDS, proposal_of, terms_of
from zerogr.llm.generation import Rejection


class TfidfSettings(SchemeSettings):
    """Of the scheme tfidf."""

    scheme: str = Field("tfidf", description="The document's heaviest terms by TF-IDF, heaviest first.")
    max_words: int = Field(8, ge=1, le=32, description="Most words of a docid.")


class Tfidf(WordScheme):
    """The `max_words` heaviest terms, heaviest first."""

    Settings = TfidfSettings

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns one candidate per document."""
        found: list[Proposal | Rejection] = []
        for document in documents:
            terms = terms_of(document, self.context)
            docid = " ".join(terms.ranked[: self.max_words])
            found.append(proposal_of(terms, [docid], ["scheme"]) if docid else NO_WORDS)
        return found
