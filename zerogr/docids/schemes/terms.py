"""Terms: a document is found by its heaviest terms, which it shares with others; the retriever writes one at a time.

After Zhang et al. 2023, "Term-Sets Can Be Strong Document Identifiers For Auto-Regressive Search Engines". What a query
teaches follows a relevance model (Lavrenko and Croft 2001, "Relevance-Based Language Models"). Part of the probability is for
terms of the document that occur in the query: a language model learns soonest to pick them out. The rest is for the document's
other terms, so that the retriever comes to know which terms go with which. The first are few and taught with their
probabilities; of the others a sample is drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from zerogr.config.base import SchemeSettings
from zerogr.docids.scheme import Identifier, Proposal, WordScheme
from zerogr.docids.words import NO_WORDS, proposal_of, terms_of
from zerogr.llm.generation import Rejection
from zerogr.text.words import stem, words

HALF_POSITION = 16
"""The position, from 0, at which a term counts half as much as at the first."""
QUERY_SHARE = 0.4
"""Of the probability, what terms have that occur in the query."""
MOST_IN_QUERY = 24
"""The likeliest terms of the query; a pseudo-query of 20 words has 16 at most."""
NUM_OTHERS = 8
"""Draws of other terms; one that is drawn twice counts twice."""


class TermsSettings(SchemeSettings):
    """Of the scheme terms."""

    has_shared = True

    scheme: str = Field("terms", description="The document's heaviest terms by TF-IDF, each by itself.")
    max_words: int = Field(8, ge=1, le=32, description="Most words of the docid that a hit shows.")
    num_terms: int = Field(64, ge=1, le=256, description="Terms by which a document is found, heaviest first.")


class Terms(WordScheme):
    """The `num_terms` heaviest terms of a document; the first `max_words` are its docid."""

    Settings = TermsSettings

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns one candidate per document, and its terms."""
        found: list[Proposal | Rejection] = []
        for document in documents:
            terms = terms_of(document, self.context)
            docid = " ".join(terms.ranked[: self.max_words])
            shared = identifiers_of(terms.ranked, self.settings.num_terms)
            found.append(proposal_of(terms, [docid], ["scheme"], shared=shared) if docid else NO_WORDS)
        return found

    @staticmethod
    def fold(text: str) -> str:
        """Returns the stem: `wing` finds the document that says `wings`."""
        return stem(text)

    def teach(
        self, query: str, docid: str, shared: Sequence[Identifier], draw: Callable[[], random.Random]
    ) -> list[tuple[str, float]]:
        """Returns terms of the document, those of the query first."""
        return draw_terms(query, shared, self.context.frequency.idf, draw())


def identifiers_of(ranked: Sequence[str], num_terms: int) -> list[Identifier]:
    """Returns the first `num_terms` terms, each stem once, with 1 / (1 + position / `HALF_POSITION`) for a weight."""
    by_stem: dict[str, str] = {}
    for term in ranked:
        by_stem.setdefault(stem(term), term)
    terms = list(by_stem.values())[:num_terms]
    return [Identifier(term, "term", 1.0 / (1.0 + position / HALF_POSITION)) for position, term in enumerate(terms)]


def draw_terms(
    query: str, terms: Sequence[Identifier], idf: Callable[[str], float], draw: random.Random
) -> list[tuple[str, float]]:
    """Returns terms of a document with their probabilities, which add up to 1.

    Args:
        query: A text.
        terms: The document's, at least one.
        idf: Of a term, above 0; times the term's weight it is in proportion to its probability.
        draw: Where the randomness comes from.
    """
    asked = {stem(word) for word in words(query)}
    weights = {term.text: idf(term.text) * term.weight for term in terms}
    in_query = sorted((term for term in weights if stem(term) in asked), key=lambda term: -weights[term])
    others = [term for term in weights if stem(term) not in asked]
    in_query = in_query[:MOST_IN_QUERY]
    share = (QUERY_SHARE if others else 1.0) if in_query else 0.0
    total = sum(weights[term] for term in in_query)
    found = [(term, share * weights[term] / total) for term in in_query]
    if others:
        drawn = Counter(draw.choices(others, [weights[term] for term in others], k=NUM_OTHERS))
        found += [(term, (1 - share) * number / NUM_OTHERS) for term, number in drawn.items()]
    return found
