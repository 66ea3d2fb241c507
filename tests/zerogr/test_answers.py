from __future__ import annotations

import random
from collections import Counter

import pytest

from zerogr.training.answers import NUM_DRAWS, draw_answers

TERMS = "boundary layer slipstream lift".split()


def shares(query: str, rarity: dict[str, float] | None = None) -> dict[str, float]:
    """How often each word is drawn, over many draws."""
    counts = Counter[str]()
    for seed in range(400):
        answers = draw_answers(query, TERMS, lambda word: (rarity or {}).get(word, 1.0), random.Random(seed))
        assert sum(count for _, count in answers) == NUM_DRAWS
        assert len({word for word, _ in answers}) == len(answers)
        counts.update(dict(answers))
    return {word: count / counts.total() for word, count in counts.items()}


def test_mostly_what_the_query_names() -> None:
    found = shares("The lift of wings in slipstreams")
    assert set(found) == set(TERMS)
    assert found["lift"] + found["slipstream"] == pytest.approx(0.7, abs=0.03)


def test_rare_words_and_early_ones_more_often() -> None:
    found = shares("lift slipstream", {"slipstream": 3.0})
    assert found["slipstream"] / found["lift"] == pytest.approx(3 * (1 + 3 / 16) / (1 + 2 / 16), rel=0.15)
    found = shares("lift slipstream")
    assert found["boundary"] > found["layer"]


def test_nothing_named_or_all() -> None:
    assert set(shares("something else")) == set(TERMS)
    assert set(shares(" ".join(TERMS))) == set(TERMS)
