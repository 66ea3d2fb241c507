from __future__ import annotations

import random

import pytest

from zerogr.docids.schemes.terms import MOST_IN_QUERY, QUERY_SHARE, draw_terms, identifiers_of

TERMS = "boundary layer slipstream lift".split()
OWN = identifiers_of(TERMS, 64)


def shares(query: str, idf: dict[str, float] | None = None) -> dict[str, float]:
    """How much each word counts, over many draws."""
    counts = dict.fromkeys(TERMS, 0.0)
    for seed in range(400):
        answers = draw_terms(query, OWN, lambda word: (idf or {}).get(word, 1.0), random.Random(seed))
        assert sum(count for _, count in answers) == pytest.approx(1)
        assert len({word for word, _ in answers}) == len(answers)
        for word, probability in answers:
            counts[word] += probability / 400
    return {word: count for word, count in counts.items() if count}


def test_terms_of_the_query_have_their_share() -> None:
    found = shares("The lift of wings in slipstreams")
    assert set(found) == set(TERMS)
    assert found["lift"] + found["slipstream"] == pytest.approx(QUERY_SHARE, abs=0.01)


def test_rare_terms_and_early_ones_more_often() -> None:
    found = shares("lift slipstream", {"slipstream": 3.0})
    assert found["slipstream"] / found["lift"] == pytest.approx(3 * (1 + 3 / 16) / (1 + 2 / 16), rel=0.15)
    found = shares("lift slipstream")
    assert found["boundary"] > found["layer"]


def test_terms_of_the_query_always_count_the_same() -> None:
    once, again = (draw_terms("lift slipstream", OWN, lambda _: 1.0, random.Random(seed)) for seed in (0, 1))
    assert once[:2] == again[:2] and {word for word, _ in once[:2]} == {"lift", "slipstream"}


def test_of_many_terms_of_the_query_the_likeliest() -> None:
    terms = [f"w{number}" for number in range(300)]
    answers = draw_terms(" ".join(terms), identifiers_of(terms, 300), lambda _: 1.0, random.Random(0))
    assert [word for word, _ in answers] == terms[:MOST_IN_QUERY]
    assert sum(probability for _, probability in answers) == pytest.approx(1)


def test_no_term_of_the_query_or_all() -> None:
    assert set(shares("something else")) == set(TERMS)
    assert set(shares(" ".join(TERMS))) == set(TERMS)
