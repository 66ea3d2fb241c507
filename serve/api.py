"""The HTTP API: what a request may look like, what answers look like, and every error as JSON. Knows nothing of Ray.

    POST /search   {"query" | "queries", "instruction"?, "k"?, "strategy"?, "fields"?, "snippet_characters"?, "allow"?, "deny"?,
                   "filter"?} -> {"hits", "index_version", "took_ms"}
    POST /explain  the same with one "query" -> {"hits", "tree", "index_version", "took_ms"}: how the hits were found
    GET  /index    summary of the manifest        GET /   the search page
    GET  /healthz  the process answers            GET /readyz   a model is loaded, and has decoded
    GET  /metrics  for Prometheus                 POST /admin/rollback   the version before is served again
    GET  /openapi.json   the same for programs, with bounds

`query` gives one list of hits, `queries` a list of such lists. Every error is {"error": one sentence}: 400 no JSON,
408 a body that does not come, 413 one too large, 422 a wrong field, 404 and 405 as usual, 401 and 403 without the token,
409 nothing to go back to, 503 with Retry-After when overloaded or still loading, 504 too slow, 500 anything else (the
traceback goes to the log, never to the client). Texts of queries are logged where the backend's `log_queries` asks for it,
and never else.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve.admission import Bounded
from serve.logs import RequestIds, logger
from serve.metrics import Spent
from serve.page import add_page
from serve.requests import ExplainRequest, SearchRequest
from serve.schemas import AT_ANY_TIME, ERRORS, ExplainAnswer, IndexAnswer, SearchAnswer
from serve.tokens import Guard
from zerogr.errors import UserError

Body = TypeVar("Body", bound=BaseModel)
MAX_BODY_BYTES = 4 * 2**20
"""More than MAX_QUERIES of the longest queries take, escaped as JSON."""
BUSY = "too many searches are waiting; try again soon"
LOST = "the searcher was lost; try again soon"
BODY_WITHIN_S = 30.0
"""A body that takes longer holds a place that others need."""


class Unavailable(Exception):
    """The request was not served, and may be sent again: too many are waiting (`busy`), or the searcher is gone (`lost`)."""

    def __init__(self, message: str, reason: str = "busy") -> None:
        super().__init__(message)
        self.reason = reason


class Answered(NamedTuple):
    """The answer to a search."""

    hits: list[Any]
    """Of every query: a list of hits, or hits and how they were found."""
    index_version: str
    """That gave them."""
    spent: Spent | None = None
    """By the searcher; None where that is not known."""


class SearchBackend(Protocol):
    """What the API needs behind it. All that is awaited raises Unavailable, TimeoutError or UserError."""

    log_queries: bool
    """Whether the log may have the texts of queries."""

    async def search(self, request: SearchRequest) -> Answered:
        """Returns the hits of every query."""

    async def explain(self, request: ExplainRequest) -> Answered:
        """Returns the hits and the tree of a search (`zerogr.search.record.Explained`), as the only one of `hits`."""

    async def describe(self) -> dict[str, Any]:
        """Returns the answer to GET /index."""

    async def is_ready(self) -> bool:
        """Whether a model is loaded."""

    async def roll_back(self) -> dict[str, Any]:
        """Serves the version before the current one again; returns the answer to POST /admin/rollback."""

    def observe(self, status: int, num_queries: int, took_ms: float, spent: Spent | None) -> None:
        """Counts a finished POST /search."""

    def refused(self, reason: str) -> None:
        """Counts a request that was not served, by a reason in one word."""

    def metrics(self) -> bytes:
        """Returns what was counted, in Prometheus' text format."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def create_api(
    backend: SearchBackend, *, token: str | None = None, behind_proxy: bool = False, most_requests: int | None = None
) -> FastAPI:
    """Returns the ASGI application in front of `backend`.

    Args:
        backend: What answers.
        token: That clients must send; None = none, and the admin routes are closed.
        behind_proxy: Whether Ray Serve's proxy stands before it, which gives request ids back by itself.
        most_requests: That are answered together, page and probes aside; None = as many as come, where Ray Serve counts them.
    """
    # FastAPI's own documentation pages load scripts from elsewhere; the description that they would show does not.
    api = FastAPI(title="ZeroGR", docs_url=None, redoc_url=None)
    if most_requests is not None:
        api.add_middleware(Bounded, most_requests=most_requests, refusal=lambda: _failed(backend, Unavailable(BUSY)))
    api.add_middleware(Guard, token=token, refused=backend.refused)
    api.add_middleware(RequestIds, behind_proxy=behind_proxy)  # the one added last comes first
    add_page(api)
    _add_operations(api, backend)
    _add_search(api, backend)
    _add_explain(api, backend)

    @api.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    return api


def _add_operations(api: FastAPI, backend: SearchBackend) -> None:
    """Adds what those who run a service ask for."""

    @api.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    @api.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    async def readyz() -> Response:
        try:
            ready = await backend.is_ready()
        except Exception as error:
            return _failed(backend, error)
        return JSONResponse({"status": "ready"}) if ready else _error(503, "no model is loaded yet; try again soon")

    @api.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(backend.metrics(), media_type=CONTENT_TYPE_LATEST)

    @api.post("/admin/rollback", include_in_schema=False)
    async def roll_back() -> Response:
        try:
            return JSONResponse(await backend.roll_back())
        except UserError as error:
            return _error(409, str(error))
        except Exception as error:
            return _failed(backend, error)


def _add_search(api: FastAPI, backend: SearchBackend) -> None:
    """Adds what those who search ask for."""

    @api.get("/index", response_model=IndexAnswer, responses=AT_ANY_TIME)
    async def describe_index() -> Response:
        try:
            return JSONResponse(await backend.describe())
        except Exception as error:
            return _failed(backend, error)

    @api.post("/search", response_model=SearchAnswer, responses=ERRORS, openapi_extra=_described(SearchRequest))
    async def search(request: Request) -> Response:
        start = time.perf_counter()
        texts: list[str] = []
        spent = None
        try:
            wanted = _parse(await _read_body(request), SearchRequest)
            texts = wanted.texts
            hits, index_version, spent = await backend.search(wanted)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
            answer = {
                "hits": hits if wanted.query is None else hits[0],
                "index_version": index_version,
                "took_ms": took_ms,
            }
            response: Response = JSONResponse(answer)
        except Exception as error:
            response = _failed(backend, error)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
        backend.observe(response.status_code, len(texts), took_ms, spent)
        said = {"status": response.status_code, "num_queries": len(texts), "took_ms": took_ms}
        if backend.log_queries:
            said["texts"] = texts
        logger.info("search status=%d queries=%d ms=%.1f", response.status_code, len(texts), took_ms, extra=said)
        return response


def _add_explain(api: FastAPI, backend: SearchBackend) -> None:
    """Adds POST /explain."""

    @api.post("/explain", response_model=ExplainAnswer, responses=ERRORS, openapi_extra=_described(ExplainRequest))
    async def explain(request: Request) -> Response:
        start = time.perf_counter()
        said: dict[str, Any] = {}
        try:
            wanted = _parse(await _read_body(request), ExplainRequest)
            said["texts"] = wanted.texts
            [explained], index_version, _ = await backend.explain(wanted)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
            response: Response = JSONResponse({**explained, "index_version": index_version, "took_ms": took_ms})
        except Exception as error:
            response = _failed(backend, error)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
        said = {**(said if backend.log_queries else {}), "status": response.status_code, "took_ms": took_ms}
        logger.info("explain status=%d ms=%.1f", response.status_code, took_ms, extra=said)
        return response


def _failed(backend: SearchBackend, error: Exception) -> Response:
    """Returns the answer to a request that failed, and counts it."""
    response, reason = _failure(error)
    backend.refused(reason)
    return response


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """Returns what /openapi.json says of a body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"content": content, "required": True}}


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    reason = f"the body has more than {MAX_BODY_BYTES} bytes; send fewer queries or doc_ids at once"
                    raise _Refused(413, reason)
    except TimeoutError:
        raise _Refused(408, f"the body did not arrive within {BODY_WITHIN_S:g} s; send it at once") from None
    except ClientDisconnect:  # nobody reads the answer
        raise _Refused(400, "the client left before its body was over") from None
    return bytes(body)


def _parse(body: bytes, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise _Refused(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise _Refused(
            422, f"there is no field '{path}'; allowed: {', '.join(model.model_json_schema()['properties'])}"
        )
    reason = first["msg"].removeprefix("Value error, ")
    raise _Refused(422, f"{path}: {reason}" if path else reason)


def _failure(error: Exception) -> tuple[JSONResponse, str]:
    """Returns the answer to a request that failed, and why in a word; what nobody foresaw is logged with its traceback."""
    if isinstance(error, _Refused):
        return _error(error.status, str(error)), "invalid"
    if isinstance(error, UserError):
        return _error(422, str(error)), "invalid"
    if isinstance(error, Unavailable):
        return _error(503, str(error)), error.reason
    if isinstance(error, TimeoutError):
        reason = "the search took too long and was cancelled; ask for fewer queries or a smaller k"
        return _error(504, reason), "timeout"
    logger.error("a request failed", exc_info=error)
    return _error(500, "internal error; the server's log says more"), "error"


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers={"Retry-After": "1"} if status == 503 else None)
