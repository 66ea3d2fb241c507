from __future__ import annotations

import random
from collections import Counter

import pytest

from zerogr.training.answers import MOST_NAMED, NAMED_SHARE, WHOLE, draw_answers

TERMS = "boundary layer slipstream lift".split()


def shares(query: str, rarity: dict[str, float] | None = None) -> dict[str, float]:
    """How much each word counts, over many draws."""
    counts = Counter[str]()
    for seed in range(400):
        answers = draw_answers(query, TERMS, lambda word: (rarity or {}).get(word, 1.0), random.Random(seed))
        assert sum(count for _, count in answers) == pytest.approx(WHOLE, rel=0.02)
        assert len({word for word, _ in answers}) == len(answers)
        counts.update(dict(answers))
    return {word: count / counts.total() for word, count in counts.items()}


def test_what_the_query_names_has_its_share() -> None:
    found = shares("The lift of wings in slipstreams")
    assert set(found) == set(TERMS)
    assert found["lift"] + found["slipstream"] == pytest.approx(NAMED_SHARE, abs=0.01)


def test_rare_words_and_early_ones_more_often() -> None:
    found = shares("lift slipstream", {"slipstream": 3.0})
    assert found["slipstream"] / found["lift"] == pytest.approx(3 * (1 + 3 / 16) / (1 + 2 / 16), rel=0.15)
    found = shares("lift slipstream")
    assert found["boundary"] > found["layer"]


def test_named_words_always_count_the_same() -> None:
    once, again = (draw_answers("lift slipstream", TERMS, lambda _: 1.0, random.Random(seed)) for seed in (0, 1))
    assert once[:2] == again[:2] and {word for word, _ in once[:2]} == {"lift", "slipstream"}


def test_of_many_named_words_the_likeliest() -> None:
    terms = [f"w{number}" for number in range(300)]
    answers = draw_answers(" ".join(terms), terms, lambda _: 1.0, random.Random(0))
    assert [word for word, _ in answers] == terms[:MOST_NAMED]
    assert all(1 <= count <= WHOLE for _, count in answers)


def test_nothing_named_or_all() -> None:
    assert set(shares("something else")) == set(TERMS)
    assert set(shares(" ".join(TERMS))) == set(TERMS)
