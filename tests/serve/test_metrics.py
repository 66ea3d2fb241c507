"""The counts that Prometheus reads, and where the seconds of a request have gone."""

from __future__ import annotations

import re

import pytest

import serve.metrics
from serve.metrics import Metrics, Spent

SPENT = Spent(
    searcher="a", version="t-r+1", queue_s=0.02, prompt_s=0.001, decoding_s=0.3, reading_s=0.05, total_s=0.4, num_slots=900,
    costs=[(4, 6, 91), (2, None, None)],
)  # fmt: skip


def value(metrics: Metrics, sample: str) -> float:
    """Returns the value of a sample, named as it stands in the text."""
    [found] = re.findall(rf"^{re.escape(sample)} (\S+)$", metrics.text().decode(), re.MULTILINE)
    return float(found)


def test_seconds_go_to_their_phases() -> None:
    metrics = Metrics()
    metrics.observe(200, 2, 0.45, SPENT)
    seconds = {
        "queue": 0.02, "prompt": 0.001, "decoding": 0.3, "reading": 0.05, "searcher": 0.4, "total": 0.45, "overhead": 0.05
    }  # fmt: skip
    for phase, expected in seconds.items():
        assert value(metrics, f'zerogr_search_seconds_sum{{phase="{phase}"}}') == pytest.approx(expected)
        assert value(metrics, f'zerogr_search_seconds_count{{phase="{phase}"}}') == 1
    assert value(metrics, 'zerogr_search_seconds_bucket{le="0.25",phase="decoding"}') == 0
    assert value(metrics, 'zerogr_search_seconds_bucket{le="0.5",phase="decoding"}') == 1


def test_what_queries_cost() -> None:
    metrics = Metrics()
    metrics.observe(200, 2, 0.45, SPENT)
    assert value(metrics, "zerogr_queries_total") == 2
    assert (value(metrics, "zerogr_queries_together_count"), value(metrics, "zerogr_queries_together_sum")) == (2, 6)
    assert (value(metrics, "zerogr_query_rounds_count"), value(metrics, "zerogr_query_rounds_sum")) == (1, 6)
    assert value(metrics, "zerogr_query_prefixes_sum") == 91


def test_what_was_refused_has_no_seconds() -> None:
    metrics = Metrics()
    metrics.observe(503, 1, 0.01, None)
    for reason in ("busy", "busy", "token"):
        metrics.refused(reason)
    assert value(metrics, 'zerogr_searches_total{status="503"}') == 1
    assert value(metrics, 'zerogr_refusals_total{reason="busy"}') == 2
    assert value(metrics, "zerogr_queries_total") == 0
    assert "zerogr_search_seconds_sum" not in metrics.text().decode()


def test_a_searcher_is_known_by_its_last_answer_until_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(serve.metrics.time, "monotonic", lambda: now)
    metrics = Metrics()
    metrics.observe(200, 1, 0.45, SPENT)
    metrics.observe(200, 1, 0.45, SPENT._replace(num_slots=950, version="t-r+2"))
    metrics.observe(200, 1, 0.45, SPENT._replace(searcher="b"))
    assert value(metrics, 'zerogr_cache_slots{searcher="a"}') == 950
    assert value(metrics, 'zerogr_version_info{searcher="a",version="t-r+2"}') == 1
    assert "t-r+1" in metrics.text().decode(), "of the other one"
    now += 301
    assert 'searcher="' not in metrics.text().decode()
