"""The whole application on a local Ray Serve, with a double in the retriever's place.

No model is needed, and a test decides how long a search takes. The API's own contract is in `test_api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve.api import Unavailable
from serve.app import Searcher
from serve.run import serve_index
from serve.settings import ServeArguments
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Version, name_of
from zerogr.ranking.ranker import Part
from zerogr.retriever import Retriever
from zerogr.search.answer import Hit
from zerogr.search.answering import ClosedError, LostError
from zerogr.search.record import Explained
from zerogr.search.request import Cost, Work
from zerogr.store import storage

HTML_DOCID = "<img src=x onerror=alert(1)>"
SECRET = "a secret that only the log may hold"
TOKEN = "0123456789abcdef"


class RetrieverDouble:
    """Answers with k numbered documents; some queries wait for a file, or fail."""

    restrictions = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index_version = folder, "f-f"
        self.manifest: dict[str, Any] = {"format": 2, "config": {"instruction": "Find it."}, "stages": {}}

    def restricted(self, **restrictions: Any) -> RetrieverDouble:
        if "unknown" in restrictions.get("filter", {}):
            raise UserError("filter has the key 'unknown'")
        double = RetrieverDouble(self.folder)
        double.restrictions = repr(restrictions)
        return double

    def answering(self, *, most_queries: int) -> AnswersDouble:
        return AnswersDouble(self)

    def search(
        self,
        queries: list[str],
        *,
        instruction: str | None = None,
        k: int = 10,
        strategy: str | None = None,
        fields: Sequence[str] = (),
        snippet_characters: int = 0,
    ) -> list[list[Hit]]:
        if "wait" in queries:
            while not (self.folder / "release").exists():
                time.sleep(0.02)
        if "a mistake" in queries:
            raise UserError("the index knows no such instruction")
        if "a bug" in queries:
            raise RuntimeError(SECRET)
        said: dict[str, Any] = {
            "title": f"a title {self.restrictions}", "text": f"{snippet_characters} characters", "kind": "text", "metadata": {}
        }  # fmt: skip
        said = {name: said[name] for name in fields}
        return [
            [
                Hit(f"{query} {instruction} {strategy}", HTML_DOCID, rank, -0.5 * rank, **said)
                for rank in range(1, k + 1)
            ]
            for query in queries
        ]


class AskedDouble:
    """A request to the double."""

    work = Work(0.5, 0.25, 1.0, [Cost(2, 3, 7)])

    def __init__(self, found: Future[Any]) -> None:
        self.found = found

    def drop(self) -> None:
        self.found.cancel()


class AnswersDouble:
    """Lets the double search for one request after the other."""

    def __init__(self, retriever: RetrieverDouble) -> None:
        self._retriever, self._thread, self._is_closed = retriever, ThreadPoolExecutor(1), False
        self.num_slots, self.loss = 11, ""

    def ask(self, queries: list[str], *, timeout_s: float, is_recorded: bool = False, **how: Any) -> AskedDouble:
        if "the end of the thread" in queries:
            self.loss = "the answering thread has ended by MemoryError: "
        self.check()
        if self._is_closed:
            raise ClosedError
        restrictions = {name: how.pop(name) for name in ("allow", "deny", "filter") if name in how}

        def search() -> list[list[Hit]]:
            searched = self._retriever.restricted(**restrictions) if restrictions else self._retriever
            return searched.search(queries, **how)

        return AskedDouble(self._thread.submit(search))

    def hits(self, request: AskedDouble) -> list[list[Hit]]:
        found: list[list[Hit]] = request.found.result()
        return found

    def check(self) -> None:
        if self.loss:
            raise LostError(self.loss)

    def explained(self, request: AskedDouble) -> list[Explained]:
        return [Explained(hits, None, [[Part("terms", "wing", 0.5, 1.0)] for _ in hits]) for hits in self.hits(request)]

    def close(self) -> None:
        self._is_closed = True

    def join(self) -> None:
        self._thread.shutdown()


def load_double(_arguments: ServeArguments, folder: str) -> RetrieverDouble:
    return RetrieverDouble(Path(folder))


def _unreadable(_request: Any) -> Any:
    raise OSError("SlowDown: please reduce your request rate")


class TestSearcher:
    """Nothing is decoded for a client that has left."""

    def test_a_cancelled_request_that_waits_never_starts(self) -> None:
        started: list[str] = []
        running, release = threading.Event(), threading.Event()

        class Blocking(RetrieverDouble):
            def search(self, queries: list[str], **_options: Any) -> list[list[Hit]]:
                if queries[0] == "what is it about?":  # when it was loaded
                    return [[]]
                started.append(queries[0])
                running.set()
                assert release.wait(10)
                return [[]]

        async def scenario() -> None:
            arguments = ServeArguments(index="index", follow_s=None)
            searcher = Searcher.func_or_class(arguments, lambda _arguments: Blocking(Path()))
            options: dict[str, Any] = {"timeout_s": 60, "instruction": None, "k": 1, "strategy": None}
            first = asyncio.create_task(searcher.search(["first"], **options))
            await asyncio.to_thread(running.wait, 10)
            second = asyncio.create_task(searcher.search(["second"], **options))
            third = asyncio.create_task(searcher.search(["third"], **options))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.sleep(0)
            release.set()
            assert (await first)[:2] == (await third)[:2] == ([[]], "f-f")
            assert second.cancelled()

        asyncio.run(scenario())
        assert started == ["first", "third"]

    def test_it_says_what_it_has_spent(self) -> None:
        searcher = Searcher.func_or_class(
            ServeArguments(index="index", follow_s=None), lambda _arguments: RetrieverDouble(Path())
        )
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        spent = answer.spent
        assert (spent.version, spent.num_slots, spent.costs) == ("f-f", 11, [(2, 3, 7)])
        assert (spent.queue_s, spent.prompt_s, spent.decoding_s) == (0.5, 0.25, 1.0)
        assert 0 <= spent.reading_s <= spent.total_s

    def test_a_dead_thread_is_unhealthy_and_refuses(self) -> None:
        """Otherwise the replica would stay, and every request would wait until its time is over."""
        retriever = RetrieverDouble(Path())
        answers = AnswersDouble(retriever)
        retriever.answering = lambda **_: answers  # type: ignore[method-assign]
        searcher = Searcher.func_or_class(ServeArguments(index="index", follow_s=None), lambda _arguments: retriever)
        searcher.check_health()
        answers.loss = "the answering thread has ended by MemoryError: "
        with pytest.raises(LostError, match="has ended by MemoryError"):
            searcher.check_health()
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        assert isinstance(answer, Unavailable) and answer.reason == "lost"

    def test_a_corpus_that_cannot_be_read_is_said(self) -> None:
        """Otherwise a passing fault of object storage would be an internal error."""
        retriever = RetrieverDouble(Path())
        answers = AnswersDouble(retriever)
        retriever.answering = lambda **_: answers  # type: ignore[method-assign]
        searcher = Searcher.func_or_class(ServeArguments(index="index", follow_s=None), lambda _arguments: retriever)
        answers.hits = _unreadable  # type: ignore[method-assign]
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        assert isinstance(answer, Unavailable) and answer.reason == "storage"
        assert str(answer).startswith("what the documents say cannot be read from storage now; try again soon")

    def test_nothing_counts_as_loaded_that_cannot_decode(self) -> None:
        class Broken(RetrieverDouble):
            def search(self, queries: list[str], **_options: Any) -> list[list[Hit]]:
                raise RuntimeError("no kernel for this device")

        arguments = ServeArguments(index="index", follow_s=None)
        with pytest.raises(RuntimeError, match="no kernel for this device"):
            Searcher.func_or_class(arguments, lambda _arguments: Broken(Path()))


class TestFollowing:
    """A new version takes over between two searches, and what cannot be loaded changes nothing."""

    def test_another_version_takes_the_place_of_the_old_one(self, tmp_path: Path) -> None:
        uri = finished_index(tmp_path)
        loaded: list[str] = []

        class Versioned(RetrieverDouble):
            def __init__(self) -> None:
                super().__init__(tmp_path)
                self.index_version = name_of(Index(uri).manifest())
                loaded.append(self.index_version)

            def search(self, queries: list[str], **options: Any) -> list[list[Hit]]:
                if self.index_version.endswith("+1") and len(loaded) == 2:
                    raise RuntimeError("the first try of version 1 fails")
                return super().search(queries, **{**options, "k": 1})

        def publish(number: int) -> None:
            manifest = storage.read_json(f"{uri}/index.json")
            version = Version.of({**manifest, "version": {"number": number, "last": number, "layers": []}})
            storage.write_json(f"{uri}/index.json", {**manifest, "version": version.as_json()})

        async def version_of(searcher: Any) -> str:
            answer = await searcher.search(["a query"], timeout_s=60, instruction=None, k=1, strategy=None)
            return str(answer.index_version)

        async def scenario() -> None:
            arguments = ServeArguments(index=uri, follow_s=0.02)
            searcher = Searcher.func_or_class(arguments, lambda _arguments: Versioned())
            assert await version_of(searcher) == "f-f"
            for number in (1, 2, 1):
                publish(number)
                while not (await version_of(searcher)).endswith(f"+{number}"):
                    await asyncio.sleep(0.02)

        asyncio.run(asyncio.wait_for(scenario(), 60))
        assert loaded == ["f-f", "f-f+1", "f-f+1", "f-f+2"], "the version before is still there"


def finished_index(folder: Path) -> str:
    record = {"fingerprint": "f", "inputs": {}, "counts": {}, "files": 0, "seconds": 0.0}
    manifest = {"format": 2, "config": {}, "stages": {"trie": record, "retriever": record}}
    storage.write_json(str(folder / "index.json"), manifest)
    return str(folder)


@dataclass
class Service:
    client: httpx.Client
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def service(local_ray: None, serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The application with a token, a queue of one and a default k of 3."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a replica cannot import a test module by name
    folder = tmp_path_factory.mktemp("service")
    config = {
        "applications": [
            {
                "name": "zerogr",
                "import_path": "serve.app:build",
                "args": {"token_file": str(folder / "token"), "follow_s": 0.5},
                "deployments": [
                    {
                        "name": "Ingress",
                        "ray_actor_options": {"num_cpus": 0.1},
                        "user_config": {"k": 3, "strategy": "beam"},
                    },
                    {
                        "name": "Searcher",
                        "max_ongoing_requests": 1,
                        "max_queued_requests": 1,
                        "health_check_period_s": 0.5,
                    },
                ],
            }
        ]
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    (folder / "token").write_text(f"{TOKEN}\n")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        stop = serve_index(
            finished_index(folder),
            port=serve_port,
            config_file=str(folder / "serve.yaml"),
            blocking=False,
            loader=partial(load_double, folder=str(folder)),
        )
    sent = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{serve_port}", timeout=30, headers=sent) as client:
        yield Service(client, folder, printed.getvalue())
    stop()


class TestService:
    def test_prints_one_line_with_the_url(self, service: Service) -> None:
        assert service.printed == f"Serving {service.folder} at {service.client.base_url}/\n"

    def test_search(self, service: Service) -> None:
        answer = service.client.post("/search", json={"query": "wing", "instruction": "Find it.", "k": 2}).json()
        assert answer.keys() == {"hits", "index_version", "took_ms"}
        said = {"title": "a title ", "text": "200 characters"}
        assert answer["hits"] == [
            {"doc_id": "wing Find it. beam", "docid": HTML_DOCID, "rank": 1, "score": -0.5, **said},
            {"doc_id": "wing Find it. beam", "docid": HTML_DOCID, "rank": 2, "score": -1.0, **said},
        ]

    def test_hits_say_what_is_asked_for(self, service: Service) -> None:
        body = {"query": "wing", "k": 1, "fields": ["text", "metadata"], "snippet_characters": 50}
        [hit] = service.client.post("/search", json=body).json()["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score", "text", "metadata"}
        assert (hit["text"], hit["metadata"]) == ("50 characters", {})
        [hit] = service.client.post("/search", json={"query": "wing", "k": 1, "fields": []}).json()["hits"]
        assert hit.keys() == {"doc_id", "docid", "rank", "score"}

    def test_restrictions_reach_the_searcher(self, service: Service) -> None:
        wanted = {"allow": ["d1"], "filter": {"year": {"gte": 2020}, "draft": True}}
        [hit] = service.client.post("/search", json={"query": "wing", "k": 1, **wanted}).json()["hits"]
        assert hit["title"] == f"a title {wanted}"
        response = service.client.post("/search", json={"query": "wing", "filter": {"unknown": 1}})
        assert (response.status_code, response.json()) == (422, {"error": "filter has the key 'unknown'"})

    def test_defaults_come_from_the_config_file(self, service: Service) -> None:
        hits = service.client.post("/search", json={"queries": ["wing", "lift"], "strategy": "greedy"}).json()["hits"]
        assert [len(each) for each in hits] == [3, 3]
        assert {hit["doc_id"] for hit in hits[1]} == {"lift None greedy"}

    def test_an_explanation(self, service: Service) -> None:
        answer = service.client.post("/explain", json={"query": "wing", "filter": {"year": 1}}).json()
        assert answer.keys() == {"hits", "tree", "index_version", "took_ms"}
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3] and answer["index_version"] == "f-f"
        assert answer["hits"][0]["parts"] == [{"ranker": "terms", "text": "wing", "probability": 0.5, "score": 1.0}]
        response = service.client.post("/explain", json={"query": "a mistake"})
        assert (response.status_code, response.json()) == (422, {"error": "the index knows no such instruction"})

    def test_bad_input(self, service: Service) -> None:
        for body, status in (({"query": "wing", "k": 0}, 422), ({"query": "a mistake"}, 422), ("{", 400)):
            response = service.client.post(
                "/search", **({"content": body} if isinstance(body, str) else {"json": body})
            )
            assert response.status_code == status
            assert response.json().keys() == {"error"}
        assert service.client.post("/search", json={"query": "a mistake"}).json() == {
            "error": "the index knows no such instruction"
        }

    def test_a_bug_shows_no_traceback(self, service: Service) -> None:
        response = service.client.post("/search", json={"query": "a bug"})
        assert (response.status_code, response.json()) == (500, {"error": "internal error; the server's log says more"})

    def test_page_probes_and_index(self, service: Service) -> None:
        assert service.client.get("/").text.startswith("<!doctype html>")
        assert service.client.get("/healthz").json() == {"status": "alive"}
        assert service.client.get("/readyz").json() == {"status": "ready"}
        summary = service.client.get("/index").json()
        assert summary["index_version"] == summary["versions"]["current"] == "f-f"
        assert (summary["versions"]["previous"], summary["versions"]["refused"]) == (None, None)
        assert summary["strategies"] == list(STRATEGIES)
        assert (summary["k"], summary["strategy"]) == (3, "beam")

    def test_probes_answer_while_a_search_runs_and_a_full_queue_sheds(self, service: Service) -> None:
        def search(_number: int) -> httpx.Response:
            response = service.client.post("/search", json={"query": "wait"})
            if response.status_code == 503:
                (service.folder / "release").touch()
            return response

        # One decodes, one waits; of the others at least one must be refused, and the first refusal lets the rest end.
        with ThreadPoolExecutor(6) as threads:
            pending = [threads.submit(search, number) for number in range(6)]
            assert service.client.get("/healthz").status_code == 200
            assert service.client.get("/readyz").status_code == 200
            responses = [each.result(timeout=30) for each in pending]
        statuses = sorted(response.status_code for response in responses)
        assert set(statuses) == {200, 503}
        refused = next(response for response in responses if response.status_code == 503)
        assert refused.json() == {"error": "too many searches are waiting; try again soon"}
        assert refused.headers["retry-after"] == "1"
        assert service.client.post("/search", json={"query": "wait"}).status_code == 200

    def test_only_the_token_opens_it(self, service: Service) -> None:
        for path, status in (("/index", 401), ("/metrics", 401), ("/healthz", 200), ("/readyz", 200), ("/", 200)):
            assert httpx.get(service.client.base_url.join(path)).status_code == status, path
        assert httpx.post(service.client.base_url.join("/admin/rollback")).status_code == 401

    def test_there_is_nothing_to_go_back_to(self, service: Service) -> None:
        response = service.client.post("/admin/rollback")
        assert response.status_code == 409 and "has no version before this one" in response.json()["error"]

    def test_a_request_can_be_followed_through_log_and_metrics(self, service: Service) -> None:
        import ray

        answer = service.client.post("/search", json={"query": "private wing"}, headers={"x-request-id": "followed-1"})
        assert answer.headers["x-request-id"] == "followed-1", "once, and not by the proxy as well"
        metrics = service.client.get("/metrics").text
        assert 'zerogr_search_seconds_count{phase="overhead"}' in metrics and "zerogr_cache_slots{searcher=" in metrics
        folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "serve"
        text = "".join(file.read_text() for file in folder.glob("replica_zerogr_*.log"))
        lines = [json.loads(line) for line in text.splitlines()]
        [line] = [line for line in lines if line.get("request_id") == "followed-1"]
        assert (line["status"], line["num_queries"], line["deployment"]) == (200, 1, "zerogr_Ingress")
        assert "private wing" not in text

    def test_a_searcher_whose_thread_is_dead_is_replaced(self, service: Service) -> None:
        response = service.client.post("/search", json={"query": "the end of the thread"})
        assert (response.status_code, response.json()) == (503, {"error": "the searcher was lost; try again soon"})
        deadline = time.monotonic() + 120
        while (status := service.client.post("/search", json={"query": "wing"}).status_code) != 200:
            assert status == 503 and time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.parametrize("place", ["tiny_index", "remote_index"])
def test_a_real_index(place: str, tiny_index: str, service: Service, request: pytest.FixtureRequest) -> None:
    """The real retriever answers over HTTP what it answers in this process, from a disk and from S3."""
    config = {"applications": [{"name": "real", "route_prefix": "/real", "import_path": "serve.app:build"}]}
    (service.folder / "real.yaml").write_text(yaml.safe_dump(config))
    port = service.client.base_url.port
    stop = serve_index(
        request.getfixturevalue(place), port=port, config_file=str(service.folder / "real.yaml"), blocking=False
    )
    body = {"query": "open a file", "k": 3, "deny": ["coffee-1"], "snippet_characters": 40}
    answer = service.client.post("/real/search", json=body).json()
    explained = service.client.post("/real/explain", json=body).json()
    refused = service.client.post("/real/search", json={**body, "filter": {"year": 2020}})
    stop()
    tenant = Retriever.load(tiny_index).restricted(deny=["coffee-1"])
    [expected] = tenant.search(["open a file"], k=3, fields=["title", "text"], snippet_characters=40)
    for hit, other in zip(answer["hits"], expected, strict=True):
        assert hit == {**other.as_json(), "score": pytest.approx(other.score, abs=1e-4)}
        assert 0 < len(hit["text"]) <= 42
    assert [hit["doc_id"] for hit in explained["hits"]] == [hit.doc_id for hit in expected]
    assert explained["tree"]["num_docids"] == 39 and explained["tree"]["root"]["best_rank"] == 1
    assert refused.status_code == 422 and "has no keys to filter by" in refused.json()["error"]
