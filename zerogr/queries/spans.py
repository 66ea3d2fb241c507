"""Spans: passages and keyword sets of a document, used as queries.

The paper's official recipe trains on them beside the pseudo-queries; they are what remains where a small model's questions are
poor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from zerogr.text.terms import DocumentFrequency, Term, rank_terms
from zerogr.text.words import stretches, words

KEYWORD_SET = (2, 6)
"""Fewest and most terms of a keyword set."""


def make_spans(
    title: str, text: str, frequency: DocumentFrequency, count: int, seed: int, *, span_words: Sequence[int] = (6, 24)
) -> list[str]:
    """Returns at most `count` distinct queries made of the document itself: the title, passages and keyword sets in turn.

    A passage has `span_words` words, from and to.
    """
    draw = random.Random(seed)
    tokens = list(stretches(text))
    ranked = rank_terms(title, text, frequency)[:24]
    spans = dict.fromkeys([title] if title else [])
    for attempt in range(3 * count):
        if len(spans) >= count:
            break
        if attempt % 2 == 0 and tokens:
            size = min(draw.randint(*span_words), len(tokens))
            start = draw.randint(0, len(tokens) - size)
            span = " ".join("".join(tokens[start : start + size]).split())
        elif ranked:
            span = " ".join(_draw_terms(ranked, min(draw.randint(*KEYWORD_SET), len(ranked)), draw))
        else:
            continue
        if words(span):
            spans.setdefault(span)
    return list(spans)[:count]


def _draw_terms(ranked: list[Term], count: int, draw: random.Random) -> list[str]:
    """Returns `count` different terms, heavy ones more often (exponential keys: Efraimidis and Spirakis, 2006)."""
    keyed = sorted(ranked, key=lambda term: -math.log(1.0 - draw.random()) / max(term.weight, 1e-6))
    return [term.word for term in keyed[:count]]
