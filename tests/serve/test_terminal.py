"""What a person is shown while a service runs."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.serve
from ray.exceptions import GetTimeoutError

import serve.terminal
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


def test_nobody_waits_for_a_head_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingress tells that a searcher was lost from its event loop, and Ray may have lost more than that."""
    events, answers = Events(), threading.Event()
    has_come, failures = threading.Event(), [GetTimeoutError(), ValueError()]

    def get_actor(name: str, *, namespace: str) -> Any:
        assert (name, namespace) == ("zerogr-events-search", "serve")
        answers.wait()
        if failures:
            raise failures.pop()
        return SimpleNamespace(put=SimpleNamespace(remote=put))

    def put(line: str) -> None:
        events.put(line)
        if line == "fourth":
            has_come.set()

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(ray.serve, "get_replica_context", lambda: SimpleNamespace(app_name="search"))
    serve.terminal._teller.cache_clear()
    for line in ("first", "second", "third", "fourth"):
        tell(line)  # returns although nobody answers
    assert events.take() == []
    answers.set()
    assert has_come.wait(60)
    assert events.take() == ["third", "fourth"]
    serve.terminal._teller.cache_clear()
