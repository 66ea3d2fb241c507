"""Who is let in: a search that would wait too long is refused at once, while there is still time to ask elsewhere.

How long the next one would wait follows from what is underway and how fast queries have been answered lately (Little's law:
underway = rate x time). So the limit fits any k and strategy, any machine and any number of searchers; limits by count, which
Ray Serve has as well, fit one of each. As many as the searchers decode together are let in whatever the wait: fewer in hand
would make each of them dearer, and the pace slower still.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

FADE_S = 5.0
"""What was answered so many busy seconds ago counts 1/e."""
SEEN_S = 30.0
"""A searcher that has answered within so many seconds is there."""


class Admission:
    """Counts the queries that are underway, and how fast they are answered. For one thread."""

    def __init__(self, most_queries: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the number of queries that a searcher decodes together."""
        self._most_queries, self._clock = most_queries, clock
        self._searchers: dict[str, float] = {}
        self._underway = 0
        self._busy_s, self._answered, self._seen_at = 0.0, 0.0, clock()

    @property
    def expected_s(self) -> float:
        """Seconds that a query would take from now; infinite if none was answered while some were underway."""
        self._look()
        if not self._underway:
            return 0.0
        return self._underway * self._busy_s / self._answered if self._answered else math.inf

    def has_room(self, most_s: float) -> bool:
        """Whether another query would be answered within so many seconds."""
        return self._underway < self._most_queries * self._num_searchers or self.expected_s <= most_s

    def answered_by(self, searcher: str) -> None:
        """Takes notice of a searcher, by its name."""
        self._searchers[searcher] = self._clock()

    @property
    def _num_searchers(self) -> int:
        """At least one: the first search comes before any answer."""
        long_ago = self._clock() - SEEN_S
        self._searchers = {name: at for name, at in self._searchers.items() if at > long_ago}
        return max(1, len(self._searchers))

    @contextmanager
    def underway(self, num_queries: int) -> Iterator[None]:
        """Counts queries while they are asked; what ends with an exception was not answered."""
        self._look()
        self._underway += num_queries
        try:
            yield
            self._look()
            self._answered += num_queries
        finally:
            self._look()
            self._underway -= num_queries

    def _look(self) -> None:
        """Counts the time since the last look, if there was anything to do."""
        now = self._clock()
        if self._underway:
            passed = now - self._seen_at
            faded = math.exp(-passed / FADE_S)
            self._busy_s, self._answered = self._busy_s * faded + passed, self._answered * faded
        self._seen_at = now


class Bounded:
    """The application behind it, for so many requests at a time; the body of each takes memory while it is read."""

    def __init__(self, app: ASGIApp, most_requests: int, refusal: Callable[[], ASGIApp]) -> None:
        """Stands in front of `app`.

        Args:
            app: What is bounded; what is only looked at (GET, HEAD) is not.
            most_requests: At a time.
            refusal: Answers the others.
        """
        self._app, self._most_requests, self._refusal = app, most_requests, refusal
        self._underway = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if self._underway >= self._most_requests:
            await self._refusal()(scope, receive, send)
            return
        self._underway += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._underway -= 1
