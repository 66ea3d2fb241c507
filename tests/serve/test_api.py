"""The HTTP contract of the API alone, in this process: no Ray, no model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import httpx
import pytest

from serve.api import MAX_BODY_BYTES, Answered, Unavailable, create_api
from serve.metrics import Metrics, Spent
from serve.requests import ExplainRequest, FieldName, SearchRequest
from serve.searcher import summarise
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.search.contents import FIELDS

SECRET = "a secret that only the log may hold"
MANIFEST = {
    "format": 2,
    "config": {"instruction": "Find it.", "corpus": {"source": "s3://private/corpus"}},
    "stages": {
        "corpus": {"fingerprint": "f", "inputs": {"prompt": SECRET}, "counts": {"rows": 9}, "files": 1},
        "docids": {"fingerprint": "d", "inputs": {"prompt": SECRET}, "counts": {"rows": 8}, "files": 1},
        "trie": {"fingerprint": "t", "inputs": {"serving.filter_keys": ["year"], "prompt": SECRET}},
    },
}


class Backend:
    """Answers with k numbered documents, or fails on demand."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.ready = True
        self.log_queries = False
        self.observed: list[tuple[int, int]] = []
        self.refusals: list[str] = []
        self.restrictions: dict[str, Any] = {}

    async def search(self, request: SearchRequest) -> Answered:
        if self.failure:
            raise self.failure
        self.restrictions = request.restrictions
        hits = [
            [
                {
                    "doc_id": f"{text} {request.instruction} {request.strategy}",
                    "docid": "x",
                    "rank": rank,
                    "score": -rank,
                }
                for rank in range(1, (request.k or 2) + 1)
            ]
            for text in request.texts
        ]
        return Answered(hits, "version-1")

    async def explain(self, request: ExplainRequest) -> Answered:
        [hits], version, _ = await self.search(request)
        return Answered([{"hits": hits, "tree": {"strategy": request.strategy}}], version)

    async def describe(self) -> dict[str, Any]:
        if self.failure:
            raise self.failure
        return summarise(MANIFEST, "version-1")

    async def is_ready(self) -> bool:
        if self.failure:
            raise self.failure
        return self.ready

    async def roll_back(self) -> dict[str, Any]:
        if self.failure:
            raise self.failure
        return {"index_version": "version-0", "left": "version-1", "within_s": 30}

    def observe(self, status: int, num_queries: int, took_ms: float, spent: Spent | None) -> None:
        self.observed.append((status, num_queries))

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def metrics(self) -> bytes:
        return Metrics().text()


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def call(backend: Backend) -> Callable[..., httpx.Response]:
    def send(
        method: str, path: str, *, token: str | None = None, behind_proxy: bool = False, **arguments: Any
    ) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(create_api(backend, token=token, behind_proxy=behind_proxy))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(request())

    return send


class TestApi:
    """A malformed request must be told so, in JSON, before it costs a forward pass."""

    def test_query_and_queries(self, call: Callable[..., httpx.Response], backend: Backend) -> None:
        one = call("POST", "/search", json={"query": "wing", "instruction": "Find it.", "k": 1, "strategy": "beam"})
        assert one.status_code == 200
        answer = one.json()
        assert answer.keys() == {"hits", "index_version", "took_ms"}
        assert answer["hits"] == [{"doc_id": "wing Find it. beam", "docid": "x", "rank": 1, "score": -1}]
        assert answer["index_version"] == "version-1"
        assert answer["took_ms"] >= 0
        many = call("POST", "/search", json={"queries": ["wing", "lift"]}).json()
        assert [[hit["doc_id"] for hit in hits] for hits in many["hits"]] == [
            ["wing None None"] * 2,
            ["lift None None"] * 2,
        ]
        assert backend.observed == [(200, 1), (200, 2)]

    def test_a_list_of_one_stays_a_list(self, call: Callable[..., httpx.Response]) -> None:
        assert isinstance(call("POST", "/search", json={"queries": ["wing"]}).json()["hits"][0], list)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_strategy_is_allowed(self, call: Callable[..., httpx.Response], strategy: str) -> None:
        assert call("POST", "/search", json={"query": "wing", "strategy": strategy}).status_code == 200

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({}, "give either 'query' (a string) or 'queries' (a list of strings)"),
            ({"query": "a", "queries": ["b"]}, "give either 'query'"),
            (
                {"query": "a", "top_k": 3},
                "there is no field 'top_k'; allowed: query, queries, instruction, k, strategy, rerank, fields, snippet_",
            ),
            ({"query": " \n"}, "query: a query must not be empty"),
            ({"query": "x" * 4097}, "query: String should have at most 4096 characters"),
            ({"queries": []}, "queries: List should have at least 1 item"),
            ({"queries": ["x"] * 65}, "queries: List should have at most 64 items"),
            ({"queries": ["a", ""]}, "queries: a query must not be empty"),
            ({"queries": ["a", "x" * 4097]}, "queries: a query has 4097 characters; at most 4096 are allowed"),
            ({"queries": "a"}, "queries: Input should be a valid"),
            ({"query": 7}, "query: Input should be a valid string"),
            ({"query": "a", "instruction": "x" * 4097}, "instruction: String should have at most 4096"),
            ({"query": "a", "k": 0}, "k: Input should be greater than or equal to 1"),
            ({"query": "a", "k": 1001}, "k: Input should be less than or equal to 1000"),
            ({"query": "a", "k": "10"}, "k: Input should be a valid integer"),
            ({"query": "a", "k": True}, "k: Input should be a valid integer"),
            ({"query": "a", "strategy": "magic"}, f"strategy: unknown strategy; allowed: {', '.join(STRATEGIES)}"),
            (
                {"query": "a", "fields": ["title", "author"]},
                "fields.1: Input should be 'title', 'text', 'kind' or 'metadata'",
            ),
            ({"query": "a", "fields": ["title"] * 5}, "fields: List should have at most 4 items"),
            (
                {"query": "a", "snippet_characters": -1},
                "snippet_characters: Input should be greater than or equal to 0",
            ),
            (
                {"query": "a", "snippet_characters": 2001},
                "snippet_characters: Input should be less than or equal to 2000",
            ),
            ({"query": "a", "allow": "d1"}, "allow: Input should be a valid array"),
            ({"query": "a", "allow": [1]}, "allow.0: Input should be a valid string"),
            ({"query": "a", "allow": ["d"] * 10_001}, "allow: List should have at most 10000 items"),
            ({"query": "a", "deny": ["d"] * 10_001}, "deny: List should have at most 10000 items"),
            ({"query": "a", "filter": ["year"]}, "filter: Input should be an object"),
            (
                {"query": "a", "filter": {"year": None}},
                "filter.year is None; it must be a value, a list of values, or",
            ),
            (
                {"query": "a", "filter": {"year": {"gt": 1}}},
                "filter.year is a range with gt; it takes gte, lte or both",
            ),
            ({"query": "a", "filter": {"year": [2020] * 1001}}, "filter has 1001 values; at most 1000 are allowed"),
            (["a"], "Input should be an object"),
        ],
    )
    def test_wrong_fields(self, call: Callable[..., httpx.Response], backend: Backend, body: Any, reason: str) -> None:
        response = call("POST", "/search", json=body)
        assert response.status_code == 422
        assert response.json().keys() == {"error"}
        assert response.json()["error"].startswith(reason)
        assert backend.observed == [(422, 0)]
        assert backend.refusals == ["invalid"]

    def test_a_search_is_explained(self, call: Callable[..., httpx.Response], backend: Backend) -> None:
        body = {"query": "wing", "instruction": "Find it.", "k": 1, "strategy": "beam", "filter": {"year": 2020}}
        response = call("POST", "/explain", json=body)
        assert response.status_code == 200
        answer = response.json()
        assert answer.keys() == {"hits", "tree", "index_version", "took_ms"}
        assert answer["hits"] == [{"doc_id": "wing Find it. beam", "docid": "x", "rank": 1, "score": -1}]
        assert (answer["tree"], answer["index_version"]) == ({"strategy": "beam"}, "version-1")
        assert backend.restrictions == {"filter": {"year": 2020}}
        assert backend.observed == [], "it is no search that somebody waits for"

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({}, "query: Field required"),
            ({"query": None}, "query: Input should be a valid string"),
            ({"query": " "}, "query: a query must not be empty"),
            ({"query": "x" * 4097}, "query: String should have at most 4096 characters"),
            ({"queries": ["a"]}, "query: Field required"),
            ({"query": "a", "queries": ["b"]}, "queries: one search at a time is explained; give one 'query'"),
            ({"query": "a", "k": 1001}, "k: Input should be less than or equal to 1000"),
            ({"query": "a", "strategy": "magic"}, "strategy: unknown strategy; allowed: "),
            ({"query": "a", "filter": {"year": None}}, "filter.year is None; it must be a value"),
            ({"query": "a", "depth": 3}, "there is no field 'depth'; allowed: query, instruction, k, strategy, rerank"),
        ],
    )
    def test_wrong_fields_of_an_explanation(
        self, call: Callable[..., httpx.Response], body: dict[str, Any], reason: str
    ) -> None:
        response = call("POST", "/explain", json=body)
        assert response.status_code == 422
        assert response.json().keys() == {"error"}
        assert response.json()["error"].startswith(reason)

    def test_what_may_be_found(self, call: Callable[..., httpx.Response], backend: Backend) -> None:
        """Values keep their kinds on the way: 2020 is not "2020", and true is not 1."""
        wanted = {
            "allow": [],
            "deny": ["d"] * 10_000,
            "filter": {"a": 2020, "b": "2020", "c": [True, 1.5], "d": {"gte": "2020-01-01"}},
        }
        assert call("POST", "/search", json={"query": "wing", **wanted}).status_code == 200
        assert repr(backend.restrictions) == repr(wanted)
        assert call("POST", "/search", json={"query": "wing"}).status_code == 200
        assert backend.restrictions == {}
        response = call("POST", "/search", content=b'{"query": "wing", "filter": {"a": NaN}}')
        assert response.status_code in (400, 422) and response.json().keys() == {"error"}

    def test_the_fields_are_those_of_a_hit(self) -> None:
        assert get_args(FieldName) == FIELDS

    @pytest.mark.parametrize("path", ["/search", "/explain"])
    def test_every_field_is_documented_and_bounded(self, call: Callable[..., httpx.Response], path: str) -> None:
        described = call("GET", "/openapi.json").json()["paths"][path]["post"]["requestBody"]
        fields = described["content"]["application/json"]["schema"]["properties"]
        assert fields.keys() == SearchRequest.model_fields.keys() - ({"queries"} if path == "/explain" else set())
        for name, field in fields.items():
            assert field["description"], name
            kinds = [kind for kind in field.get("anyOf", [field]) if kind["type"] != "null"]
            limits = {"maxLength", "maxItems", "maximum"}
            assert name in ("strategy", "rerank", "filter") or all(limits & kind.keys() for kind in kinds), name

    @pytest.mark.parametrize("body", [b"", b"{", b'{"query": "\xff"}', b'{"query": NaN}', b"[" * 10_000])
    def test_bodies_that_are_no_json(self, call: Callable[..., httpx.Response], body: bytes) -> None:
        response = call("POST", "/search", content=body)
        assert response.status_code in (400, 422)
        assert response.json().keys() == {"error"}

    def test_the_largest_legal_body_and_one_too_large(self, call: Callable[..., httpx.Response]) -> None:
        largest = json.dumps({"queries": ["\U0001f50d" * 4096] * 64, "k": 1}).encode()
        assert len(largest) < MAX_BODY_BYTES
        assert call("POST", "/search", content=largest).status_code == 200
        response = call("POST", "/search", content=b" " * (MAX_BODY_BYTES + 1))
        assert response.status_code == 413
        assert "bytes; send fewer queries or doc_ids at once" in response.json()["error"]

    @pytest.mark.parametrize(
        ("is_left", "status", "error"),
        [
            (False, 408, "the body did not arrive within 0.2 s; send it at once"),
            (True, 400, "the client left before its body was over"),
        ],
    )
    def test_a_body_that_stops_coming_gives_its_place_back(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, is_left: bool, status: int, error: str
    ) -> None:
        monkeypatch.setattr("serve.api.BODY_WITHIN_S", 60.0 if is_left else 0.2)
        sent: list[Any] = []

        async def half() -> AsyncIterator[dict[str, Any]]:
            yield {"type": "http.request", "body": b'{"query": ', "more_body": True}
            if is_left:
                yield {"type": "http.disconnect"}
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http", "root_path": "",
        }  # fmt: skip
        asyncio.run(create_api(backend)(scope, half().__anext__, send))
        assert sent[0]["status"] == status
        assert json.loads(sent[1]["body"]) == {"error": error}

    @pytest.mark.parametrize(
        ("failure", "status", "reason", "counted"),
        [
            (
                Unavailable("too many searches are waiting; try again soon"),
                503,
                "too many searches are waiting",
                "busy",
            ),
            (Unavailable("the searcher was lost; try again soon", "lost"), 503, "the searcher was lost", "lost"),
            (TimeoutError(), 504, "the search took too long", "timeout"),
            (UserError("no such instruction"), 422, "no such instruction", "invalid"),
            (RuntimeError(SECRET), 500, "internal error", "error"),
        ],
    )
    def test_failures(
        self,
        call: Callable[..., httpx.Response],
        backend: Backend,
        failure: Exception,
        status: int,
        reason: str,
        counted: str,
    ) -> None:
        backend.failure = failure
        for method, path, body in (
            ("POST", "/search", {"query": "wing"}),
            ("POST", "/explain", {"query": "wing"}),
            ("GET", "/index", None),
            ("GET", "/readyz", None),
        ):
            response = call(method, path, json=body)
            assert response.status_code == status
            assert response.json()["error"].startswith(reason)
            assert SECRET not in response.text
            assert ("retry-after" in response.headers) == (status == 503)
        assert backend.refusals == [counted] * 4

    def test_queries_are_not_logged(
        self, call: Callable[..., httpx.Response], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("DEBUG", logger="ray.serve.zerogr"):
            call("POST", "/search", json={"query": "private words"})
            call("POST", "/search", json={"query": "private words", "k": 0})
            call("POST", "/explain", json={"query": "private words"})
        lines = [record.getMessage() for record in caplog.records if record.name == "ray.serve.zerogr"]
        assert [re.sub(r"ms=[\d.]+", "ms=", line) for line in lines] == [
            "search status=200 queries=1 ms=",
            "search status=422 queries=0 ms=",
            "explain status=200 ms=",
        ]
        assert "private words" not in "".join(str(record.__dict__) for record in caplog.records)

    def test_queries_are_logged_for_whoever_asks_for_it(
        self, call: Callable[..., httpx.Response], backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.log_queries = True
        with caplog.at_level("INFO", logger="ray.serve.zerogr"):
            call("POST", "/search", json={"queries": ["a wing", "lift"]}, headers={"x-request-id": "id-7"})
        [record] = [record for record in caplog.records if record.name == "ray.serve.zerogr"]
        said = {name: getattr(record, name) for name in ("texts", "request_id", "status", "num_queries")}
        assert said == {"texts": ["a wing", "lift"], "request_id": "id-7", "status": 200, "num_queries": 2}
        assert record.took_ms >= 0  # type: ignore[attr-defined]

    @pytest.mark.parametrize("given", ["a-1", "0:B_c.9", "x" * 128])
    def test_a_sane_request_id_is_given_back(self, call: Callable[..., httpx.Response], given: str) -> None:
        for path in ("/healthz", "/nothing", "/search"):
            assert call("GET", path, headers={"x-request-id": given}).headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, '"}{', "idé", "a	b"])
    def test_another_one_is_replaced(self, call: Callable[..., httpx.Response], given: str) -> None:
        made = [call("GET", "/healthz", headers={"x-request-id": given.encode()}).headers["x-request-id"] for _ in "ab"]
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)
        assert made[0] != made[1] and given not in made

    def test_behind_the_proxy_no_id_is_given_back_twice(self, call: Callable[..., httpx.Response]) -> None:
        response = call("GET", "/healthz", headers={"x-request-id": "a-1"}, behind_proxy=True)
        assert "x-request-id" not in response.headers
        assert "x-request-id" in call("GET", "/healthz", headers={"x-request-id": "a b"}, behind_proxy=True).headers

    def test_a_token_is_asked_for_before_anything_else(
        self, call: Callable[..., httpx.Response], backend: Backend
    ) -> None:
        for path in ("/search", "/index", "/metrics", "/admin/rollback", "/openapi.json", "/nothing"):
            response = call("POST", path, token="secret", json={"query": "wing"})
            assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="zerogr"')
            assert response.json().keys() == {"error"} and "x-request-id" in response.headers
        assert backend.refusals == ["token"] * 6 and not backend.observed
        right = {"authorization": "Bearer secret"}
        assert call("POST", "/search", token="secret", json={"query": "wing"}, headers=right).status_code == 200
        assert all(call("GET", path, token="secret").status_code == 200 for path in ("/", "/healthz", "/readyz"))

    def test_going_back(self, call: Callable[..., httpx.Response], backend: Backend) -> None:
        right: dict[str, Any] = {"token": "secret", "headers": {"authorization": "Bearer secret"}}
        answer = call("POST", "/admin/rollback", **right)
        assert answer.json() == {"index_version": "version-0", "left": "version-1", "within_s": 30}
        assert call("GET", "/admin/rollback", **right).status_code == 405
        backend.failure = UserError("there is no version before this one")
        refused = call("POST", "/admin/rollback", **right)
        assert (refused.status_code, refused.json()) == (409, {"error": "there is no version before this one"})
        backend.failure = RuntimeError(SECRET)
        assert call("POST", "/admin/rollback", **right).status_code == 500
        closed = call("POST", "/admin/rollback", headers=right["headers"])
        assert closed.status_code == 403 and "token_file" in closed.json()["error"]

    def test_metrics_are_what_prometheus_reads(self, call: Callable[..., httpx.Response]) -> None:
        response = call("GET", "/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        assert "# TYPE zerogr_search_seconds histogram" in response.text

    def test_probes(self, call: Callable[..., httpx.Response], backend: Backend) -> None:
        assert call("GET", "/readyz").json() == {"status": "ready"}
        backend.ready = False
        assert call("GET", "/healthz").status_code == call("HEAD", "/healthz").status_code == 200
        response = call("GET", "/readyz")
        assert (response.status_code, response.json()) == (503, {"error": "no model is loaded yet; try again soon"})

    def test_unknown_paths_and_methods(self, call: Callable[..., httpx.Response]) -> None:
        for method, path, status in (("GET", "/nothing", 404), ("GET", "/search", 405), ("POST", "/index", 405)):
            response = call(method, path)
            assert response.status_code == status
            assert response.json().keys() == {"error"}

    def test_the_page_needs_nothing_from_elsewhere(self, call: Callable[..., httpx.Response]) -> None:
        response = call("GET", "/")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert not re.search(r"(src|href|action)=\"(https?:)?//", response.text)
        # What the policy would block, and what could turn a document's text into markup.
        assert not re.search(r"\s(style|on\w+)=\"", response.text)
        assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write", response.text)
        assert all(f"hit.{name}" in response.text for name in ("title", "text", "docid", "doc_id", "rank", "score"))

    def test_the_summary_keeps_uris_and_prompts_to_itself(self, call: Callable[..., httpx.Response]) -> None:
        response = call("GET", "/index")
        assert response.json() == {
            "index_version": "version-1",
            "format": 2,
            "instruction": "Find it.",
            "num_documents": 8,
            "filter_keys": ["year"],
            "stages": {
                "corpus": {"fingerprint": "f", "counts": {"rows": 9}, "files": 1, "seconds": None},
                "docids": {"fingerprint": "d", "counts": {"rows": 8}, "files": 1, "seconds": None},
                "trie": {"fingerprint": "t", "counts": None, "files": None, "seconds": None},
            },
        }
