"""Answers: which words of its document a query teaches, and how much each, where the retriever writes single words.

Part of the probability is for words that the query names, rare ones first: to pick them out of a query is what a language
model learns soonest, and for documents it has hardly seen. The rest is for what the document is about beside them, so that the
retriever comes to know which words go with which, as a relevance model does (Lavrenko and Croft 2001, "Relevance-Based
Language Models"); a search counts the query's own words anyway (`decoding.query_share`). Named words are few and taught with
their probabilities themselves; of the others a sample is drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from zerogr.ranking.postings import place_weight
from zerogr.text.words import stem, words

NAMED_SHARE = 0.4
"""Of the probability, what words have that the query names."""
MOST_NAMED = 24
"""The likeliest named words; a pseudo-query of 20 words names 16 at most."""
NUM_OTHERS = 8
"""Draws of other words; one that is drawn twice counts twice."""
WHOLE = 255
"""What certainty counts."""


def draw_answers(
    query: str, terms: Sequence[str], rarity: Callable[[str], float], draw: random.Random
) -> tuple[tuple[str, int], ...]:
    """Returns words of a document and how much each counts, 1 to `WHOLE`: about `WHOLE` together.

    Args:
        query: A text.
        terms: The words, at least one, as `zerogr.ranking.postings.words_of` orders them.
        rarity: Of a word, above 0; times the weight of its place it is in proportion to the word's probability.
        draw: Where the randomness comes from.
    """
    asked = {stem(word) for word in words(query)}
    places = place_weight(np.arange(len(terms))).tolist()
    weights = {word: rarity(word) * weight for word, weight in zip(terms, places, strict=True)}
    named = [word for word in weights if stem(word) in asked]
    others = [word for word in weights if stem(word) not in asked]
    named = sorted(named, key=lambda word: -weights[word])[:MOST_NAMED]
    share = (NAMED_SHARE if others else 1.0) if named else 0.0
    total = sum(weights[word] for word in named)
    counts = {word: WHOLE * share * weights[word] / total for word in named}
    if others:
        drawn = Counter(draw.choices(others, [weights[word] for word in others], k=NUM_OTHERS))
        counts |= {word: WHOLE * (1 - share) * number / NUM_OTHERS for word, number in drawn.items()}
    return tuple((word, max(1, round(count))) for word, count in counts.items())
