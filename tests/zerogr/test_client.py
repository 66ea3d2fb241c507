"""The client against the API: what it asks, what it makes of answers, and what it says when it gets none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from serve.api import Unavailable
from tests.serve.toy import ToyBackend, served
from tests.zerogr.test_isolation import modules_after
from zerogr.client import Client, ServiceError
from zerogr.decoding import STRATEGIES
from zerogr.search.answer import Hit

URL = "http://service.test"


def replying(*replies: httpx.Response | Exception, **options: Any) -> tuple[Client, list[httpx.Request]]:
    """Returns a client that gets these replies, the last one again and again, and the requests that it makes."""
    asked: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = replies[min(len(asked), len(replies)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    return Client(URL, transport=httpx.MockTransport(reply), **options), asked


def busy(retry_after: str = "0") -> httpx.Response:
    return httpx.Response(503, json={"error": "too many searches are waiting"}, headers={"Retry-After": retry_after})


def answer(**more: Any) -> httpx.Response:
    return httpx.Response(200, json={"hits": [], "index_version": "v", "took_ms": 1.5, **more})


class TestService:
    """Over a real connection, so that paths, fields and types are those of the API."""

    @pytest.fixture
    def backend(self) -> ToyBackend:
        return ToyBackend()

    @pytest.fixture
    def client(self, backend: ToyBackend) -> Iterator[Client]:
        with served(backend) as url, Client(url) as client:
            yield client

    def test_search(self, client: Client, backend: ToyBackend) -> None:
        found = client.search("wing lift", k=2, strategy="beam", fields=["title"], filter={"year": 2020}, allow=None)
        assert [hit.rank for hit in found.hits] == [1, 2] and all(isinstance(hit, Hit) for hit in found.hits)
        assert found.index_version == "toy-1" and found.took_ms > 0
        [(_, request)] = backend.requests
        assert request.model_dump(exclude_none=True) == {
            "query": "wing lift", "k": 2, "strategy": "beam", "fields": ["title"], "filter": {"year": 2020}
        }  # fmt: skip

    def test_many_queries(self, client: Client) -> None:
        found = client.search_many(["wing lift", "nothing"], k=3)
        assert [len(hits) for hits in found.hits] == [3, 0]
        assert found.hits[0] == client.search("wing lift", k=3).hits

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_explain(self, client: Client, strategy: str) -> None:
        explained = client.explain("wing slip stream", k=3, strategy=strategy)
        assert explained.hits == client.search("wing slip stream", k=3, strategy=strategy).hits
        assert explained.tree is not None and explained.parts is None
        assert explained.tree.strategy == strategy and explained.tree.root.num_hits == 3
        branch = explained.tree.root
        while branch.children:
            branch = next(child for child in branch.children if child.best_rank == 1)
        assert branch.docid == explained.hits[0].docid
        assert branch.path_log_prob == pytest.approx(explained.hits[0].score)

    def test_explain_sums_and_nothing(self, client: Client) -> None:
        explained = client.explain("sums", k=2)
        assert explained.tree is None and explained.parts is not None
        assert [[part.score for part in parts] for parts in explained.parts] == [[1.5, 0.25]] * 2
        assert client.explain("nothing").hits == []

    def test_index_and_ready(self, client: Client, backend: ToyBackend) -> None:
        index = client.index()
        assert (index.index_version, index.strategies, index.k) == ("toy-1", list(STRATEGIES), 5)
        assert client.ready()
        backend.failures.append(Unavailable("not yet"))
        assert not client.ready()

    def test_a_mistake_has_the_service_s_sentence(self, client: Client) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: client.search("a mistake"),
            lambda: client.explain("a mistake"),
            lambda: client.search_many(["wing", "a mistake"]),
        ]
        for call in calls:
            with pytest.raises(ServiceError, match="^the index knows no such instruction$") as raised:
                call()
            assert raised.value.status == 422

    def test_it_comes_again_when_the_service_is_busy(self, client: Client, backend: ToyBackend) -> None:
        backend.failures += [Unavailable("too many"), Unavailable("too many")]
        begun = time.monotonic()
        assert client.search("wing", k=1).hits
        assert time.monotonic() - begun >= 2, "each answer of 503 says to wait a second"


class TestRetries:
    def test_only_so_often(self) -> None:
        client, asked = replying(busy(), max_retries=2)
        with pytest.raises(ServiceError, match="too many searches are waiting") as raised:
            client.search("wing")
        assert (raised.value.status, len(asked)) == (503, 3)

    def test_until_it_is_served(self) -> None:
        client, asked = replying(busy(), busy(), answer())
        assert client.search("wing").took_ms == 1.5
        assert len(asked) == 3 and len({request.content for request in asked}) == 1

    @pytest.mark.parametrize("retry_after", ["3600", "inf"])
    def test_not_beyond_the_time_that_a_call_has(self, retry_after: str) -> None:
        client, asked = replying(busy(retry_after), timeout_s=30)
        begun = time.monotonic()
        with pytest.raises(ServiceError, match="too many searches"):
            client.search("wing")
        assert len(asked) == 1 and time.monotonic() - begun < 25

    @pytest.mark.parametrize("status", [400, 401, 422, 500, 504])
    def test_nothing_else_is_sent_again(self, status: int) -> None:
        client, asked = replying(httpx.Response(status, json={"error": "a sentence"}))
        with pytest.raises(ServiceError, match="^a sentence$") as raised:
            client.search("wing")
        assert (raised.value.status, len(asked)) == (status, 1)

    def test_a_date_is_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        client, _ = replying(busy("Wed, 21 Oct 2026 07:28:00 GMT"), busy("-5"), answer())
        client.search("wing")
        assert waited == [1.0, 0.0]

    def test_readiness_is_asked_once(self) -> None:
        client, asked = replying(busy())
        assert not client.ready() and len(asked) == 1


class TestFailures:
    @pytest.mark.parametrize(
        ("reply", "sentence", "status"),
        [
            (httpx.ConnectError("refused"), f"{URL} cannot be reached (refused); is the service running?", None),
            (httpx.ReadTimeout("slow"), f"{URL} did not answer within 60 s", None),
            (httpx.Response(502, text="<html>"), f"{URL} answered with status 502, and not as zerogr serve does", 502),
            (httpx.Response(404, json=["x"]), f"{URL} answered with status 404, and not as zerogr serve does", 404),
            (httpx.Response(200, text="<html>"), f"{URL} answers, but not as zerogr serve does; check the URL", 200),
            (httpx.Response(302, headers={"location": "/"}), f"{URL} answered with status 302, and not as", 302),
        ],
    )
    def test_one_sentence(self, reply: Any, sentence: str, status: int | None) -> None:
        client, _ = replying(reply)
        with pytest.raises(ServiceError) as raised:
            client.search("wing")
        assert str(raised.value).startswith(sentence) and raised.value.status == status

    @pytest.mark.parametrize("value", [{}, {"hits": [{"title": "x"}], "index_version": "v", "took_ms": 1}, {"hits": 3}])
    def test_another_service(self, value: dict[str, Any]) -> None:
        client, _ = replying(httpx.Response(200, json=value))
        for call in (client.search, client.explain):
            with pytest.raises(ServiceError, match="of which this version can make nothing"):
                call("wing")

    def test_what_is_no_json(self) -> None:
        client, asked = replying(answer())
        with pytest.raises(ServiceError, match="cannot be written as JSON"):
            client.search("wing", filter={"year": float("nan")})
        assert not asked

    @pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://[::1"])
    def test_urls(self, url: str) -> None:
        with pytest.raises(ServiceError, match="give one such as http://127.0.0.1:8000"):
            Client(url)

    @pytest.mark.parametrize("token", ["", " x", "x\n", "schlüssel", "a\tb"])
    def test_tokens(self, token: str) -> None:
        with pytest.raises(ServiceError, match="the token is empty, or has") as raised:
            Client(URL, token)
        assert not token.strip() or token.strip() not in str(raised.value)


def test_the_token_goes_into_the_header() -> None:
    client, asked = replying(answer(), token="s3cret")
    client.search("wing")
    assert asked[0].headers["authorization"] == "Bearer s3cret"
    client, asked = replying(answer())
    client.search("wing")
    assert "authorization" not in asked[0].headers


def test_a_route_prefix_stays() -> None:
    asked: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return answer(newer=1)

    for url in (f"{URL}/papers", f"{URL}/papers/"):
        Client(url, transport=httpx.MockTransport(reply)).search("wing")
    assert asked == [f"{URL}/papers/search"] * 2


def test_fields_of_a_newer_service_are_passed_over() -> None:
    hit = {"doc_id": "d", "docid": "x", "rank": 1, "score": -1.0, "newer": 1}
    client, _ = replying(answer(hits=[hit]))
    assert client.search("wing").hits == [Hit("d", "x", 1, -1.0)]
    assert json.loads(json.dumps(client.search("wing").hits[0].as_json())) == {k: hit[k] for k in hit if k != "newer"}


def test_importing_it_is_light() -> None:
    assert not modules_after("import zerogr.client") & {"torch", "transformers", "ray", "vllm", "fastapi"}
