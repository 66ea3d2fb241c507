"""Title: the words of the document's title are its docid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from zerogr.config.base import SchemeSettings
from zerogr.docids.scheme import Proposal, WordScheme
from zerogr.docids.words import NO_WORDS, proposal_of, terms_of
from zerogr.llm.generation import Rejection
from zerogr.text.words import words


class TitleSettings(SchemeSettings):
    """Of the scheme title."""

    scheme: str = Field("title", description="The title's words, or the text's first words where there is no title.")
    max_words: int = Field(8, ge=1, le=32, description="Most words of a docid.")


class Title(WordScheme):
    """The title's words, or the text's first words where there is no title, cut to `max_words`."""

    Settings = TitleSettings

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns one candidate per document."""
        found: list[Proposal | Rejection] = []
        for document in documents:
            chosen = words(document["title"])[: self.max_words] or words(document["text"])[: self.max_words]
            terms = terms_of(document, self.context)
            found.append(proposal_of(terms, [" ".join(chosen)], ["scheme"]) if chosen else NO_WORDS)
        return found
