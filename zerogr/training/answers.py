"""Answers: which words of its document a query teaches, where the retriever writes single words.

Most are words that the query names, rare ones first: to pick them out of a query is what a language model learns soonest, and
for documents it has hardly seen. The others are what the document is about beside them, so that the retriever comes to know
which words go with which, as a relevance model does (Lavrenko and Croft 2001, "Relevance-Based Language Models").
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from zerogr.postings import place_weight
from zerogr.words import stem, words

NUM_DRAWS = 8
"""Words drawn per query; one that is drawn twice counts twice."""
NAMED_SHARE = 0.7
"""Of the draws, those among the words that the query names."""


def draw_answers(
    query: str, terms: Sequence[str], rarity: Callable[[str], float], draw: random.Random
) -> tuple[tuple[str, int], ...]:
    """Returns words of a document and how often each was drawn, `NUM_DRAWS` in all.

    Args:
        query: A text.
        terms: The words, at least one, as `zerogr.postings.words_of` orders them.
        rarity: Of a word, above 0; times the weight of its place it is in proportion to how often it is drawn.
        draw: Where the randomness comes from.
    """
    asked = {stem(word) for word in words(query)}
    places = place_weight(np.arange(len(terms))).tolist()
    weights = {word: rarity(word) * weight for word, weight in zip(terms, places, strict=True)}
    named = [word for word in weights if stem(word) in asked]
    others = [word for word in weights if stem(word) not in asked]
    drawn: Counter[str] = Counter()
    for _ in range(NUM_DRAWS):
        pool = named if named and (not others or draw.random() < NAMED_SHARE) else others
        drawn.update(draw.choices(pool, [weights[word] for word in pool]))
    return tuple(drawn.items())
