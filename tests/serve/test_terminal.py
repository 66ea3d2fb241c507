"""What a person is shown while a service runs."""

from __future__ import annotations

import pytest

from serve.terminal import Events, change, tell


@pytest.mark.parametrize(
    ("before", "now", "status", "line"),
    [
        (2, 2, "HEALTHY", ""),
        (1, 3, "UPSCALING", "3 searchers run, 1 before"),
        (3, 1, "DOWNSCALING", "1 searchers run, 3 before: fewer are needed"),
        (2, 1, "UNHEALTHY", "a searcher was lost: 1 of 2 are left, and Ray Serve starts another"),
        (1, 0, "HEALTHY", "a searcher was lost: 0 of 1 are left, and Ray Serve starts another"),
    ],
)
def test_numbers_of_searchers(before: int, now: int, status: str, line: str) -> None:
    assert change(before, now, status) == line


def test_events_come_once_and_in_order() -> None:
    events = Events()
    for line in ("first", "second"):
        events.put(line)
    assert events.take() == ["first", "second"]
    assert events.take() == []


def test_outside_of_a_replica_an_event_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ray.serve.zerogr"):
        tell("version b answers, a before")
    assert [record.getMessage() for record in caplog.records] == ["version b answers, a before"]
    assert caplog.records[0].event is True  # type: ignore[attr-defined]
