"""What does a search service carry, beside the bare decoder? `python -m benchmarks.serving INDEX`

An index is served on this machine, and searches arrive at random times (a Poisson process), whether those before are answered
or not: an open loop, as real traffic is. Latency counts from the time at which a search was to be sent, so a queue that grows
is seen. The same queries go through `Retriever.search` in batches in one process: the bare decoder. The last line printed is
one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np

from benchmarks.report import report
from zerogr.index.index import Index
from zerogr.machine import num_cores
from zerogr.queries.source import pseudo_examples
from zerogr.retriever import Retriever

RATES = (0.25, 0.5, 0.75, 0.85, 1.0, 1.5)
"""Arrivals, as shares of what the bare decoder does. The last rate is twice the most that any of them got answered."""
CALM = 0.5
"""The rate at which a service that was overloaded is looked at."""
MOST_SEARCHERS = 4
NUM_QUERIES = 64
ROUNDS = 3
"""Of the bare decoder through all queries."""
STARTS_WITHIN_S = 300.0
NOTES = """
- `bare_per_s`: queries a second of `Retriever.search` in batches of 16, in one process, nothing else running: the mean of a
  measurement before the service runs, which the rates are shares of, and one after it.
- Served: a searcher of one thread per core, at most four, with the default limits, and the titles and snippets of all hits. The
  load comes from this machine as well, and takes part of its cores.
- `knee_per_s`: the most searches a second that any rate got answered; `ratio_vs_bare_decoder` is its share of `bare_per_s`.
- `overhead_ms`: median latency of one search at a time, less what its searcher spent decoding: HTTP, the hop between
  processes, and reading what ten documents say. `single_ms` and `bare_single_ms` are the whole of it, and `Retriever.search` of
  one query with all cores.
- `rate`: arrivals, as a share of what the bare decoder did before; the last is twice the knee that the others show.
- Latency of a rate: milliseconds from the intended start to the answer, of the searches that were answered.
- `recovery_s`: seconds from the last arrival at the highest rate until a search, at half the bare decoder's rate, was answered
  within the p99 of that rate.
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one search."""

    status: int
    """0 = no answer."""
    intended: float
    """Seconds from the first of all to the intended start."""
    seconds: float
    """From the intended start."""
    ended: float
    """Seconds from the first of all to the answer."""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", help="a finished index, such as the demo's")
    parser.add_argument("-k", type=int, default=10, help="documents per query (default: 10)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each rate (default: 30)")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    queries = some_queries(arguments.index)
    before_per_s, bare_single_ms = bare(arguments.index, queries, arguments.k)
    with served(arguments.index) as url:
        single_ms, overhead_ms = alone(url, queries, arguments.k)
        rows: list[dict[str, Any]] = []
        for share in (*RATES, None):
            if share is None:
                share = round(2 * max(row["served_per_s"] for row in rows) / before_per_s, 2)
            gaps = arrivals(share * before_per_s, arguments.seconds)
            rows.append({"rate": share, **summary(asyncio.run(load(url, queries, arguments.k, gaps)))})
        usual_ms = next(row["p99_ms"] for row in rows if row["rate"] == CALM)
        recovery_s = asyncio.run(recovery(url, queries, arguments.k, before_per_s, arguments.seconds, usual_ms / 1000))
    after_per_s, _ = bare(arguments.index, queries, arguments.k)
    bare_per_s = (before_per_s + after_per_s) / 2
    knee = max(row["served_per_s"] for row in rows)
    figures = {
        "k": arguments.k,
        "bare_per_s": round(bare_per_s, 2),
        "bare_before_and_after": [round(before_per_s, 2), round(after_per_s, 2)],
        "knee_per_s": knee,
        "ratio_vs_bare_decoder": round(knee / bare_per_s, 3),
        "overhead_ms": round(overhead_ms, 1),
        "single_ms": round(single_ms, 1),
        "bare_single_ms": round(bare_single_ms, 1),
        "recovery_s": recovery_s,
    }
    report(f"Serving {Path(arguments.index).name}, k = {arguments.k}", {**figures, "rates": rows}, arguments.out, NOTES)


def some_queries(uri: str) -> list[str]:
    """Returns pseudo-queries of an index."""
    examples = pseudo_examples(Index(uri), 0, range(10**9))
    return [example.query for example, _ in zip(examples, range(NUM_QUERIES), strict=False)]


def bare(uri: str, queries: list[str], k: int) -> tuple[float, float]:
    """Returns queries a second in batches of 16, and milliseconds of a query alone."""
    retriever = Retriever.load(uri)
    retriever.search(queries[:16], k=k)
    start = time.monotonic()
    for _ in range(ROUNDS):
        retriever.search(queries, k=k, batch_size=16)
    per_s = ROUNDS * len(queries) / (time.monotonic() - start)
    singles = []
    for query in queries[:20]:
        start = time.monotonic()
        retriever.search([query], k=k)
        singles.append(time.monotonic() - start)
    return per_s, 1000 * float(np.median(singles))


@contextmanager
def served(uri: str) -> Iterator[str]:
    """Serves an index by as many searchers as there are cores, at most four, and yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    searchers = min(num_cores(), MOST_SEARCHERS)
    command = [sys.executable, "-m", "jobs.cli", "serve", uri, "--port", str(port), "--replicas", str(searchers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not answer; run it by itself to see why")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_ready(url: str) -> bool:
    """Whether a service answers searches."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


async def load(url: str, queries: list[str], k: int, gaps: list[float]) -> list[Answered]:
    """Returns what became of searches that are to be sent one after the other, with some seconds between.

    Args:
        url: Of the service.
        queries: Are taken in turn.
        k: Documents per query.
        gaps: Seconds before each.
    """
    # The clients share the service's cores: httpx takes 5 ms of one for a request, aiohttp .4.
    timeout, connector = aiohttp.ClientTimeout(total=120), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as client:

        async def search(number: int, intended: float) -> Answered:
            try:
                async with client.post("/search", json={"query": queries[number % len(queries)], "k": k}) as response:
                    await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            now = time.monotonic()
            return Answered(status, intended - start, now - intended, now - start)

        tasks: list[asyncio.Task[Answered]] = []
        start = intended = time.monotonic()
        for number, gap in enumerate(gaps):
            intended += gap
            await asyncio.sleep(max(0.0, intended - time.monotonic()))
            tasks.append(asyncio.create_task(search(number, intended)))
        return list(await asyncio.gather(*tasks))


def alone(url: str, queries: list[str], k: int) -> tuple[float, float]:
    """Returns the median milliseconds of a search while no other is underway, and those that were not spent decoding."""
    whole, rest = [], []
    with httpx.Client(base_url=url, timeout=120) as client:
        before = decoding_s(client)
        for query in queries[:20]:
            start = time.monotonic()
            client.post("/search", json={"query": query, "k": k}).raise_for_status()
            took, after = time.monotonic() - start, decoding_s(client)
            whole.append(1000 * took)
            rest.append(1000 * (took - (after - before)))
            before = after
    return float(np.median(whole)), float(np.median(rest))


def decoding_s(client: httpx.Client) -> float:
    """Returns the seconds that all searches so far were decoded for."""
    wanted = [f'zerogr_search_seconds_sum{{phase="{phase}"}}' for phase in ("prompt", "decoding")]
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
    return sum(float(value) for name, _, value in lines if name in wanted)


def arrivals(per_s: float, seconds: float) -> list[float]:
    """Returns seconds between arrivals at random, at a rate and for so long."""
    draw = np.random.default_rng(int(100 * per_s))
    return draw.exponential(1 / per_s, int(seconds * per_s) + 1).tolist()


async def recovery(
    url: str, queries: list[str], k: int, bare_per_s: float, seconds: float, usual_s: float
) -> float | None:
    """Returns seconds from the end of an overload until a search takes no longer than usual; None = none did."""
    many = arrivals(max(RATES) * bare_per_s, seconds / 3)
    few = arrivals(CALM * bare_per_s, seconds)
    answered = await load(url, queries, k, many + few)
    over = answered[len(many) - 1].intended
    calm = [each.intended - over for each in answered[len(many) :] if each.status == 200 and each.seconds <= usual_s]
    return round(calm[0], 2) if calm else None


def summary(answered: list[Answered]) -> dict[str, Any]:
    """Returns the figures of one rate."""
    good = [1000 * each.seconds for each in answered if each.status == 200]
    refused = [1000 * each.seconds for each in answered if each.status == 503]
    percentiles = {
        f"p{share}_ms": round(float(np.percentile(good, share)), 1) if good else None for share in (50, 95, 99)
    }
    return {
        "searches": len(answered),
        "served_per_s": round(len(good) / max(each.ended for each in answered), 2),
        **percentiles,
        "refused": len(refused),
        "refused_p99_ms": round(float(np.percentile(refused, 99)), 1) if refused else None,
        "lost": sum(each.status not in (200, 503) for each in answered),
    }


if __name__ == "__main__":
    main()
