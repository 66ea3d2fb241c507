"""The HTTP API: what a request may look like, what answers look like, and every error as JSON. Knows nothing of Ray.

    POST /search   {"query" | "queries", "instruction"?, "k"?, "strategy"?, "fields"?, "snippet_characters"?, "allow"?, "deny"?,
                   "filter"?} -> {"hits", "index_version", "took_ms"}
    GET  /index    summary of the manifest        GET /   the search page
    GET  /healthz  the process answers            GET /readyz   a model is loaded, and has decoded
    GET  /metrics  for Prometheus                 POST /admin/rollback   the version before is served again
    GET  /openapi.json   the same for programs, with bounds

`query` gives one list of hits, `queries` a list of such lists. Every error is {"error": one sentence}: 400 no JSON,
413 body too large, 422 a wrong field, 404 and 405 as usual, 401 and 403 without the token, 409 nothing to go back to, 503 with
Retry-After when overloaded or still loading, 504 too slow, 500 anything else (the traceback goes to the log, never to the
client). Texts of queries are logged where the backend's `log_queries` asks for it, and never else.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator
from starlette.exceptions import HTTPException

from serve.logs import RequestIds, logger
from serve.metrics import Spent
from serve.page import add_page
from serve.schemas import AT_ANY_TIME, ERRORS, FILTER, ONE_OR_SEVERAL, IndexAnswer, SearchAnswer, query_text
from serve.tokens import Guard
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.search.contents import FIELDS
from zerogr.trie.conditions import conditions_of

FieldName = Literal["title", "text", "kind", "metadata"]
MAX_QUERIES = 64
MAX_QUERY_CHARACTERS = 4096
MAX_K = 1000
MAX_SNIPPET_CHARACTERS = 2000
MAX_DOC_IDS = 10_000
"""In each of the lists `allow` and `deny`."""
MAX_FILTER_VALUES = 1000
"""In all conditions of a filter together."""
MAX_BODY_BYTES = 4 * 2**20
"""More than MAX_QUERIES of the longest queries take, escaped as JSON."""


class Unavailable(Exception):
    """The request was not served, and may be sent again: too many are waiting (`busy`), or the searcher is gone (`lost`)."""

    def __init__(self, message: str, reason: str = "busy") -> None:
        super().__init__(message)
        self.reason = reason


class SearchRequest(BaseModel):
    """The body of POST /search. Strict: unknown fields and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=ONE_OR_SEVERAL)

    query: Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))] | None = Field(
        None, max_length=MAX_QUERY_CHARACTERS, description="What is looked for; answered by a list of hits."
    )
    queries: list[Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))]] | None = Field(
        None, min_length=1, max_length=MAX_QUERIES, description="Several at once; answered by a list of such lists."
    )
    instruction: str | None = Field(
        None, max_length=MAX_QUERY_CHARACTERS, description="The retrieval task in one sentence; null = the index's own."
    )
    k: int | None = Field(None, ge=1, le=MAX_K, description="Documents per query; null = the service's default.")
    strategy: str | None = Field(
        None,
        description="Decoding strategy; null = the service's default.",
        json_schema_extra={"enum": [*STRATEGIES, None]},
    )
    rerank: bool | None = Field(
        None,
        description="Order what is found by the score that training.loss ranknet teaches; null = the service's default.",
    )
    fields: list[FieldName] | None = Field(
        None,
        max_length=len(FIELDS),
        description="What hits say of their documents besides doc_id, docid, rank and score; null = the service's default.",
    )
    snippet_characters: int | None = Field(
        None,
        ge=0,
        le=MAX_SNIPPET_CHARACTERS,
        description="Of the field text, at most: the part that has most of the query's words. 0 = no text; null = the "
        "service's default.",
    )
    allow: list[str] | None = Field(
        None,
        max_length=MAX_DOC_IDS,
        description="The doc_ids that may be found; unknown ones are passed over. null = all.",
    )
    deny: list[str] | None = Field(None, max_length=MAX_DOC_IDS, description="The doc_ids that may not be found.")
    filter: Annotated[dict[str, Any], WithJsonSchema({"type": "object", **FILTER})] | None = Field(
        None,
        description='{key: value, list of values, or {"gte": x, "lte": y}}: what documents\' metadata must be. All conditions '
        "must hold. GET /index names the keys.",
    )

    @field_validator("k", "snippet_characters", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one kind of numbers

    @field_validator("query", "queries")
    @classmethod
    def _texts(cls, value: str | list[str] | None) -> str | list[str] | None:
        for text in [value] if isinstance(value, str) else value or []:
            if not text.strip():
                raise ValueError("a query must not be empty")
            if len(text) > MAX_QUERY_CHARACTERS:
                raise ValueError(f"a query has {len(text)} characters; at most {MAX_QUERY_CHARACTERS} are allowed")
        return value

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, value: str | None) -> str | None:
        if value is not None and value not in STRATEGIES:
            raise ValueError(f"unknown strategy; allowed: {', '.join(STRATEGIES)}")
        return value

    @model_validator(mode="after")
    def _one_of_query_and_queries(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either 'query' (a string) or 'queries' (a list of strings)")
        return self

    @model_validator(mode="after")
    def _is_a_filter(self) -> SearchRequest:
        try:
            num_values = sum(len(condition.scalars) for condition in conditions_of(self.filter or {}))
        except UserError as error:
            raise ValueError(str(error)) from None
        if num_values > MAX_FILTER_VALUES:
            raise ValueError(f"filter has {num_values} values; at most {MAX_FILTER_VALUES} are allowed")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        return [self.query] if self.query is not None else self.queries or []

    @property
    def restrictions(self) -> dict[str, Any]:
        """What says which documents may be found; empty if all may."""
        return {name: value for name in ("allow", "deny", "filter") if (value := getattr(self, name)) is not None}


class Answered(NamedTuple):
    """The answer to a search."""

    hits: list[list[dict[str, Any]]]
    """Of every query."""
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


def create_api(backend: SearchBackend, *, token: str | None = None, behind_proxy: bool = False) -> FastAPI:
    """Returns the ASGI application in front of `backend`.

    Args:
        backend: What answers.
        token: That clients must send; None = none, and the admin routes are closed.
        behind_proxy: Whether Ray Serve's proxy stands before it, which gives request ids back by itself.
    """
    # FastAPI's own documentation pages load scripts from elsewhere; the description that they would show does not.
    api = FastAPI(title="ZeroGR", docs_url=None, redoc_url=None)
    api.add_middleware(Guard, token=token, refused=backend.refused)
    api.add_middleware(RequestIds, behind_proxy=behind_proxy)  # the one added last comes first
    add_page(api)
    _add_operations(api, backend)
    _add_search(api, backend)

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

    body = {"content": {"application/json": {"schema": SearchRequest.model_json_schema()}}, "required": True}

    @api.post("/search", response_model=SearchAnswer, responses=ERRORS, openapi_extra={"requestBody": body})
    async def search(request: Request) -> Response:
        start = time.perf_counter()
        texts: list[str] = []
        spent = None
        try:
            wanted = _parse(await _read_body(request))
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


def _failed(backend: SearchBackend, error: Exception) -> Response:
    """Returns the answer to a request that failed, and counts it."""
    response, reason = _failure(error)
    backend.refused(reason)
    return response


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes; send fewer queries or doc_ids at once")
    return bytes(body)


def _parse(body: bytes) -> SearchRequest:
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise _Refused(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise _Refused(422, f"there is no field '{path}'; allowed: {', '.join(SearchRequest.model_fields)}")
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
