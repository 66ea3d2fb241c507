"""Who is let in: by what is underway and the pace at which queries were answered."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest

from serve.admission import FADE_S, SEEN_S, Admission


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve(admission: Admission, clock: Clock, *, at_once: int, batch_s: float, batches: int) -> None:
    """Answers batches of queries, one after the other."""
    for _ in range(batches):
        with ExitStack() as batch:
            for _ in range(at_once):
                batch.enter_context(admission.underway(1))
            clock.now += batch_s


def test_the_time_is_what_is_underway_over_the_pace(clock: Clock) -> None:
    admission = Admission(4, clock)
    serve(admission, clock, at_once=10, batch_s=0.5, batches=40)  # 20 a second
    with admission.underway(50):
        assert admission.expected_s == pytest.approx(50 / 20, rel=0.06)
        assert admission.has_room(2.7) and not admission.has_room(2.3)
    assert admission.expected_s == 0


def test_a_new_pace_takes_the_place_of_the_old(clock: Clock) -> None:
    admission = Admission(4, clock)
    serve(admission, clock, at_once=10, batch_s=0.1, batches=100)
    serve(admission, clock, at_once=10, batch_s=1.0, batches=int(6 * FADE_S))
    with admission.underway(30):
        assert admission.expected_s == pytest.approx(3.0, rel=0.15)


def test_idle_time_is_no_slowness(clock: Clock) -> None:
    admission = Admission(1, clock)
    serve(admission, clock, at_once=10, batch_s=0.5, batches=40)
    clock.now += 3600
    with admission.underway(20):
        assert admission.expected_s == pytest.approx(1.0, rel=0.06)


def test_a_few_are_let_in_whatever_the_pace(clock: Clock) -> None:
    admission = Admission(4, clock)
    with admission.underway(3):
        clock.now += 60
        assert admission.expected_s == math.inf and admission.has_room(1.0)
        with admission.underway(1):
            assert not admission.has_room(1.0)


def test_each_searcher_that_answers_may_have_its_batch(clock: Clock) -> None:
    admission = Admission(4, clock)
    for name in ("a", "b", "a"):
        admission.answered_by(name)
    with admission.underway(7):
        clock.now += 20
        assert admission.has_room(1.0)
        admission.answered_by("b")
        with admission.underway(1):
            assert not admission.has_room(1.0)
            clock.now += SEEN_S - 15
        assert not admission.has_room(1.0), "a has not answered for too long"


def test_what_fails_was_not_answered(clock: Clock) -> None:
    admission = Admission(1, clock)
    with pytest.raises(TimeoutError), admission.underway(5):
        clock.now += 1
        raise TimeoutError
    with admission.underway(1):
        assert not admission.has_room(1e9)
