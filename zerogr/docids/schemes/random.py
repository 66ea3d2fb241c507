"""Random: nonsense words without meaning, the baseline that every claim about learned docids has to be held against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from zerogr.config.base import SchemeSettings
from zerogr.docids.scheme import Proposal, WordScheme
from zerogr.docids.words import proposal_of, terms_of
from zerogr.llm.generation import Rejection
from zerogr.seeds import seed_of

_LETTERS = ("bdfgklmnprstvz", "aeiou") * 2


class RandomSettings(SchemeSettings):
    """Of the scheme random."""

    scheme: str = Field("random", description="Pronounceable nonsense words, a function of seed and doc_id.")
    num_words: int = Field(6, ge=1, le=32, description="Words of a docid.")

    @property
    def max_words(self) -> int:
        """Most words of a docid."""
        return self.num_words


class Random(WordScheme):
    """`num_words` pronounceable nonsense words, a function of seed and `doc_id`."""

    Settings = RandomSettings

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns one candidate per document; one without a word has a docid, too."""
        found: list[Proposal | Rejection] = []
        for document in documents:
            terms = terms_of(document, self.context)
            draw = random.Random(seed_of(self.context.seed, "docid", document["doc_id"]))
            nonsense = ("".join(draw.choice(letters) for letters in _LETTERS) for _ in range(self.settings.num_words))
            found.append(proposal_of(terms, [" ".join(nonsense)], ["scheme"]))
        return found
