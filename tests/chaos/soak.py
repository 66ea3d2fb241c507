"""A service under everything at once: versions that change, a replica that is killed, storage that fails, requests that are
nonsense, clients that hang up. Every valid request is held against what its version answers in this process.

    python -m tests.chaos.soak --minutes 10          # `make soak`

Requests arrive at random times, half as many a second as the service was seen to answer. Times are shares of the whole:

    .2  .6  .8      another version of the index is published
    .3 to .4        every request to S3 is answered with 503
    .5              one of the two searchers is killed
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from jobs import update as update_job
from jobs.cli import main as zerogr
from serve.run import serve_index
from tests import tiny
from tests.chaos.faulty_s3 import FaultyS3, faulty_s3
from tests.processes import command_line, descendants
from tests.servers import free_port, s3
from zerogr.editing.update import Request
from zerogr.index.index import Index
from zerogr.index.versions import publish
from zerogr.retriever import Retriever

VERSIONS = 3
REPLICAS = 2
MALFORMED, HANGING_UP = 0.05, 0.02
"""Shares of the requests."""
TOLERANCE = 1e-3
"""Of scores: batches move them by rounding, and documents that are nearer to each other may change places."""
AT_ONCE = 16
"""Requests underway while the service's rate is measured."""
WAIT_S = 120.0

Body = dict[str, Any]
Answers = dict[tuple[str, str], list[tuple[str, float]]]
"""(Version, request) -> doc_ids and scores, best first."""


@dataclass
class Tally:
    """What became of the requests."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    """What was answered, and what should have been."""
    refused: Counter[str] = field(default_factory=Counter)
    """Valid requests without an answer, by status and sentence."""
    refused_at: list[float] = field(default_factory=list)
    """Share of the time that had passed."""
    malformed: Counter[int] = field(default_factory=Counter)
    """By status."""
    hung_up: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    """Bytes of all searchers, at a tenth of the time and at the end."""
    killed_at: float = 1.0
    s3_faults: int = 0
    rate: float = 0.0
    """Requests a second."""


def soak(
    folder: Path, seconds: float, *, endpoint: str, port: int, seed: int = 0, in_process: bool | None = None
) -> Tally:
    """Returns what became of all requests in so many seconds.

    Args:
        folder: For what is made on the way.
        seconds: Of traffic.
        endpoint: Of a sound S3 server with a bucket `zerogr`; Ray, if it runs already, was started with its credentials.
        port: Of the service.
        seed: Of the traffic.
        in_process: As for `serve.run.serve_index`.
    """
    with ExitStack() as stack:
        uri, answers = build(folder)
        proxy = stack.enter_context(faulty_s3(endpoint))
        config = str(_config_file(folder, proxy.endpoint))
        stack.callback(serve_index(uri, port=port, config_file=config, blocking=False, in_process=in_process))
        return asyncio.run(_traffic(f"http://127.0.0.1:{port}", uri, answers, proxy, seconds, seed))


def build(folder: Path) -> tuple[str, Answers]:
    """Makes an index with four versions on S3, and leaves the first one current; returns what each answers."""
    uri = f"s3://zerogr/soak-{folder.name}"
    model, collection = tiny.save_model(folder / "model"), tiny.write_collection(folder / "collection")
    (folder / "index.yaml").write_text(yaml.safe_dump(tiny.settings(uri, collection, model)))
    assert zerogr(["index", str(folder / "index.yaml")]) == 0
    answers: Answers = {}
    for number in range(1, VERSIONS + 1):
        row = {
            "_id": f"added-{number}",
            "title": f"tides {number}",
            "text": f"The tide of day {number} lifts {number} boats.",
        }
        added = folder / f"{number}.jsonl"
        added.write_text(json.dumps(row) + "\n")
        removed = (f"coffee-{number}",)
        update_job.run(uri, Request(source=str(added), remove=removed), ["update.max_forgetting=1"])
        answers |= _answers(uri)
    publish(Index(uri), 0)
    return uri, answers | _answers(uri)


def requests() -> Iterator[Body]:
    """Yields every valid request."""
    for row in tiny.documents()[::3]:
        topic = row["text"].split(":")[0].removeprefix("About the ")
        for k, strategy in ((3, "beam"), (10, "greedy"), (5, "best_first")):
            yield {"query": f"what about {topic}", "k": k, "strategy": strategy, "fields": []}


NONSENSE: tuple[tuple[bytes, int], ...] = (
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe{}", 400),
    (b'{"query": "caf\xe9"}', 400),
    (b"[" * 50_000, 400),
    (b"[]", 422),
    (b"null", 422),
    (b'{"query": 5}', 422),
    (b'{"query": "  "}', 422),
    (b'{"query": "a", "k": 1000000000}', 422),
    (b'{"query": "a", "k": -1}', 422),
    (b'{"query": "a", "k": "ten"}', 422),
    (b'{"query": "a", "k": 1e400}', 422),
    (b'{"query": "a", "queries": ["b"]}', 422),
    (b'{"queries": []}', 422),
    (b'{"query": "a", "strategy": "best"}', 422),
    (b'{"query": "a", "colour": "red"}', 422),
    (b'{"query": "a", "filter": {"no such key": 1}}', 422),
    (b'{"query": "a", "fields": ["secrets"]}', 422),
    (json.dumps({"query": "a" * 5000}).encode(), 422),
    (json.dumps({"queries": ["a"] * 65}).encode(), 422),
    (json.dumps({"query": "a", "deny": ["d"] * 10_001}).encode(), 422),
    (b'{"query": "' + b"a" * 5_000_000 + b'"}', 413),
)
"""Bodies, and the status that is right for each."""


def _answers(uri: str) -> Answers:
    retriever = Retriever.load(uri, device="cpu")
    found: Answers = {}
    for body in requests():
        [hits] = retriever.search([body["query"]], k=body["k"], strategy=body["strategy"])
        found[retriever.index_version, _key(body)] = [(hit.doc_id, hit.score) for hit in hits]
    return found


def _key(body: Body) -> str:
    return json.dumps(body, sort_keys=True)


def _config_file(folder: Path, endpoint: str) -> Path:
    """Returns a config file of Serve: two searchers, which read from an S3, and look for another version twice a second."""
    environment = {"env_vars": {"AWS_ENDPOINT_URL": endpoint}}
    actor = {"num_cpus": 0.5, "runtime_env": environment}
    searcher = {"name": "Searcher", "num_replicas": REPLICAS, "ray_actor_options": actor}
    application = {
        "name": "soak", "route_prefix": "/", "import_path": "serve.app:build", "args": {"follow_s": 0.5},
        "deployments": [{"name": "Ingress", "ray_actor_options": {"num_cpus": 0.1}}, searcher],
    }  # fmt: skip
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


async def _traffic(url: str, uri: str, answers: Answers, proxy: FaultyS3, seconds: float, seed: int) -> Tally:
    """Sends the requests, and does to the service what the module says."""
    draw, bodies, tally = np.random.default_rng(seed), list(requests()), Tally()
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=httpx.Limits(max_connections=None)) as client:
        tally.rate = await _rate(client, bodies) / 2
        start = time.monotonic()

        def passed() -> float:
            return (time.monotonic() - start) / seconds

        async def send(kind: float) -> None:
            if kind < MALFORMED:
                await _malformed(client, NONSENSE[int(draw.integers(len(NONSENSE)))], tally)
            elif kind < MALFORMED + HANGING_UP:
                await _hang_up(url, bodies[int(draw.integers(len(bodies)))], float(draw.uniform(0, 0.05)), tally)
            else:
                await _valid(client, bodies[int(draw.integers(len(bodies)))], answers, tally, passed)

        waiting: set[asyncio.Task[None]] = set()
        disturbing = asyncio.create_task(_disturb(Index(uri), proxy, seconds, start, tally))
        while passed() < 1:
            await asyncio.sleep(float(draw.exponential(1 / tally.rate)))
            waiting.add(task := asyncio.create_task(send(float(draw.random()))))
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)
        await disturbing
        await _until_served(client, VERSIONS)
    tally.memory.append(_memory())
    return tally


async def _rate(client: httpx.AsyncClient, bodies: list[Body]) -> float:
    """Returns how many valid requests a second are answered, some of them always underway."""
    turn = iter(bodies * 4)

    async def one_after_the_other() -> None:
        for body in turn:
            (await client.post("/search", json=body)).raise_for_status()

    start = time.monotonic()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return 4 * len(bodies) / (time.monotonic() - start)


async def _disturb(index: Index, proxy: FaultyS3, seconds: float, start: float, tally: Tally) -> None:
    async def at(share: float) -> None:
        await asyncio.sleep(max(0.0, start + share * seconds - time.monotonic()))

    await at(0.1)
    tally.memory.append(_memory())
    await at(0.2)
    await asyncio.to_thread(publish, index, 1)
    await at(0.3)
    proxy.fault = lambda method, before: "503"
    await at(0.4)
    proxy.fault = lambda method, before: None
    tally.s3_faults = sum(fault is not None for _, _, fault in proxy.requests)
    await at(0.5)
    tally.killed_at = (time.monotonic() - start) / seconds
    os.kill(_searchers()[0], signal.SIGKILL)
    for share, number in ((0.6, 2), (0.8, 3)):
        await at(share)
        await asyncio.to_thread(publish, index, number)


async def _valid(
    client: httpx.AsyncClient, body: Body, answers: Answers, tally: Tally, passed: Callable[[], float]
) -> None:
    try:
        response = await client.post("/search", json=body)
    except httpx.HTTPError as error:
        tally.refused[f"no answer: {type(error).__name__}"] += 1
        tally.refused_at.append(passed())
        return
    if response.status_code != 200:
        tally.refused[f"{response.status_code} {response.json()['error']}"] += 1
        tally.refused_at.append(passed())
        return
    answer = response.json()
    tally.versions[answer["index_version"]] += 1
    expected = answers.get((answer["index_version"], _key(body)))
    found = [(hit["doc_id"], hit["score"]) for hit in answer["hits"]]
    if expected is not None and same(found, expected):
        tally.right += 1
    else:
        tally.wrong.append(f"{answer['index_version']} {body}: {found}, not {expected}")


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    """Whether two rankings differ by rounding at most: the same scores, and the same document wherever no other is as near."""
    if len(found) != len(expected):
        return False
    scores = dict(expected)
    for (doc_id, score), (_, other) in zip(found, expected, strict=True):
        if abs(score - other) > TOLERANCE:
            return False
        if doc_id in scores and abs(scores[doc_id] - score) > TOLERANCE:
            return False
        if (
            doc_id not in scores and abs(score - expected[-1][1]) > TOLERANCE
        ):  # one that is as good as the last may take its place
            return False
    return True


async def _malformed(client: httpx.AsyncClient, nonsense: tuple[bytes, int], tally: Tally) -> None:
    content, status = nonsense
    response = await client.post("/search", content=content)
    tally.malformed[response.status_code] += 1
    if response.status_code != status or response.json().keys() != {"error"}:
        tally.wrong.append(f"{content[:80]!r}: {response.status_code} {response.text[:200]}, not {status}")


async def _hang_up(url: str, body: Body, patience_s: float, tally: Tally) -> None:
    """Sends a request, and leaves before it is answered."""
    address = httpx.URL(url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    content = json.dumps(body).encode()
    writer.write(b"POST /search HTTP/1.1\r\nHost: soak\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
    await writer.drain()
    await asyncio.sleep(patience_s)
    writer.transport.abort()
    tally.hung_up += 1


async def _until_served(client: httpx.AsyncClient, number: int) -> None:
    """Returns when the searcher that answers has a version; a searcher that stays behind is a defect that this does not end."""
    body = next(requests())
    deadline = time.monotonic() + WAIT_S
    while not (await client.post("/search", json=body)).json()["index_version"].endswith(f"+{number}"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"version {number} is not served after {WAIT_S:.0f} s")
        await asyncio.sleep(0.2)


def _searchers() -> list[int]:
    """Returns the processes of the searchers."""
    return [pid for pid in descendants(os.getpid()) if command_line(pid).startswith("ray::ServeReplica:soak:Searcher")]


def _memory() -> int:
    """Returns the resident bytes of all searchers."""
    resident = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _searchers()]
    return sum(resident) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Runs it, prints the tally, and fails if a valid request was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with s3() as endpoint, tempfile.TemporaryDirectory(prefix="zerogr-soak-") as folder:
        tally = soak(Path(folder), 60 * options.minutes, endpoint=endpoint, port=free_port(), seed=options.seed)
    for name in tally.__dataclass_fields__:
        print(f"{name:>12}  {getattr(tally, name)}")
    check(tally)


def check(tally: Tally) -> None:
    """Raises AssertionError where a valid request was answered wrongly, or lost other than to the searcher that was killed."""
    assert not tally.wrong, tally.wrong[:3]
    assert set(tally.refused) <= {"503 the searcher was lost; try again soon"}, tally.refused
    assert all(at >= tally.killed_at for at in tally.refused_at), (tally.killed_at, tally.refused_at)
    assert len(tally.versions) == VERSIONS + 1 and tally.s3_faults and tally.malformed and tally.hung_up


if __name__ == "__main__":
    main()
