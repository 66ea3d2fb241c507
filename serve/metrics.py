"""What a service measures, as Prometheus reads it: times by phase, what searches cost, refusals, versions.

A searcher sends what it spent with every answer, and the ingress that gives the answer counts it. So the figures are those of
one ingress replica. Whoever scrapes through the proxy gets another one each time, unless there is only one (`max_replicas: 1`);
Ray's own endpoint, on every node, has the counts of all. Cost: a few additions per search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
POWERS_OF_TWO = tuple(float(2**power) for power in range(13))
_FORGOTTEN_AFTER_S = 300.0
"""A searcher that has answered nothing for so long is left out."""


class Spent(NamedTuple):
    """What a searcher has spent on a request."""

    searcher: str
    """The replica's name."""
    version: str
    """Of the index."""
    queue_s: float
    """Until the request was taken up."""
    prompt_s: float
    """Plan and tokens of the prompts."""
    decoding_s: float
    """Rounds and ranking."""
    reading_s: float
    """What hits say of their documents."""
    total_s: float
    """In the searcher."""
    num_slots: int
    """Of the cache, that hold keys and values."""
    costs: list[tuple[int, int | None, int | None]]
    """Of the queries: how many were decoded together, rounds and prefixes; `zerogr.search.answering.Cost` as plain numbers."""


class Metrics:
    """The counts of one ingress replica."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._seconds = Histogram(
            "zerogr_search_seconds",
            "Seconds of answered searches: queue, prompt, decoding and reading in the searcher; searcher = all of it; "
            "total = the whole request in the ingress; overhead = total less searcher.",
            ["phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._together = Histogram(
            "zerogr_queries_together",
            "Queries that were decoded together when a query was done.",
            buckets=POWERS_OF_TWO[:8],
            registry=registry,
        )
        self._rounds = Histogram(
            "zerogr_query_rounds",
            "Calls of the model that a query took part in; the reference decoder alone counts them.",
            buckets=POWERS_OF_TWO[:10],
            registry=registry,
        )
        self._prefixes = Histogram(
            "zerogr_query_prefixes",
            "Prefixes that the model scored for a query; the reference decoder alone counts them.",
            buckets=POWERS_OF_TWO,
            registry=registry,
        )
        self._searches = Counter("zerogr_searches", "Searches, by HTTP status.", ["status"], registry=registry)
        self._queries = Counter("zerogr_queries", "Queries of the searches that were answered.", registry=registry)
        self._refusals = Counter(
            "zerogr_refusals",
            "Requests that were not served: busy, lost, timeout, invalid, token, admin, error.",
            ["reason"],
            registry=registry,
        )
        self._searchers = Searchers()
        registry.register(self._searchers)

    def observe(self, status: int, num_queries: int, took_s: float, spent: Spent | None) -> None:
        """Counts a search; `spent` is None where no searcher has answered."""
        self._searches.labels(str(status)).inc()
        if spent is None:
            return
        self._queries.inc(num_queries)
        for phase, seconds in (
            ("queue", spent.queue_s),
            ("prompt", spent.prompt_s),
            ("decoding", spent.decoding_s),
            ("reading", spent.reading_s),
            ("searcher", spent.total_s),
            ("total", took_s),
            ("overhead", max(0.0, took_s - spent.total_s)),
        ):
            self._seconds.labels(phase).observe(seconds)
        for num_together, num_rounds, num_prefixes in spent.costs:
            self._together.observe(num_together)
            if num_rounds is not None and num_prefixes is not None:
                self._rounds.observe(num_rounds)
                self._prefixes.observe(num_prefixes)
        self._searchers.heard(spent)

    def refused(self, reason: str) -> None:
        """Counts a request that was not served."""
        self._refusals.labels(reason).inc()

    def text(self) -> bytes:
        """Returns all counts in Prometheus' text format."""
        return generate_latest(self._registry)


class Searchers(Collector):
    """What each searcher said last, in labels that go when it has gone."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Spent]] = {}

    def heard(self, spent: Spent) -> None:
        """Takes note of an answer."""
        self._last[spent.searcher] = (time.monotonic(), spent)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges."""
        oldest = time.monotonic() - _FORGOTTEN_AFTER_S
        self._last = {name: (at, spent) for name, (at, spent) in self._last.items() if at >= oldest}
        slots = GaugeMetricFamily(
            "zerogr_cache_slots", "Slots of a searcher's cache in use, at its last answer.", labels=["searcher"]
        )
        versions = GaugeMetricFamily(
            "zerogr_version_info", "1 for the version of the index that gave a searcher's last answer.",
            labels=["searcher", "version"],
        )  # fmt: skip
        for name, (_, spent) in self._last.items():
            slots.add_metric([name], spent.num_slots)
            versions.add_metric([name, spent.version], 1)
        yield slots
        yield versions
