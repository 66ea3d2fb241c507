"""What the schemes of words share: a document's terms, and a proposal with what is to be known of its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zerogr.docids.rules import Terms
from zerogr.docids.scheme import Context, Identifier, Proposal
from zerogr.llm.generation import Rejection

NUM_OWN = 32
"""Terms kept per document to tell colliding documents apart."""
NO_WORDS = Rejection("no_words", "title and text hold no letter and no digit")


def terms_of(document: dict[str, Any], context: Context) -> Terms:
    """Returns the terms of a row of corpus/."""
    return Terms.of(document["title"], document["text"], context.frequency)


def proposal_of(
    terms: Terms, candidates: list[str], sources: list[str], *, shared: Sequence[Identifier] = ()
) -> Proposal:
    """Returns the proposal of these docids for a document with these terms."""
    return Proposal(
        candidates=candidates,
        sources=sources,
        shared=shared,
        own=terms.ranked[:NUM_OWN],
        coverage=[terms.coverage(candidate.split(" ")) for candidate in candidates],
    )
