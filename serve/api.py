"""The HTTP API: what a request may look like, what answers look like, and every error as JSON. Knows nothing of Ray.

    POST /search   {"query" | "queries", "instruction"?, "k"?, "strategy"?, "fields"?, "snippet_characters"?, "allow"?, "deny"?,
                   "filter"?} -> {"hits", "index_version", "took_ms"}
    POST /explain  the same with one "query" -> {"hits", "tree", "index_version", "took_ms"}: how the hits were found
    GET  /index    summary of the manifest        GET /   the search page
    GET  /healthz  the process answers            GET /readyz   a model is loaded
    GET  /openapi.json   the same for programs, with bounds

`query` gives one list of hits, `queries` a list of such lists. Every error is {"error": one sentence}: 400 no JSON,
413 body too large, 422 a wrong field, 404 and 405 as usual, 503 with Retry-After when overloaded or still loading, 504
too slow, 500 anything else (the traceback goes to the log, never to the client). Texts of queries are never logged.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import time
from importlib import resources
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException

from serve.schemas import (
    AT_ANY_TIME,
    ERRORS,
    FILTER,
    ONE_OR_SEVERAL,
    ExplainAnswer,
    IndexAnswer,
    SearchAnswer,
    query_text,
)
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.search.contents import FIELDS
from zerogr.trie.conditions import conditions_of

Body = TypeVar("Body", bound=BaseModel)
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

# A child of Serve's own logger, so that the lines reach the replica's log file.
logger = logging.getLogger("ray.serve.zerogr")


class Unavailable(Exception):
    """The request was not served, and may be sent again: too many are waiting, or no model is loaded."""


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


class ExplainRequest(SearchRequest):
    """The body of POST /explain: that of a search for one query."""

    model_config = ConfigDict(json_schema_extra=None)

    query: Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))] = Field(
        max_length=MAX_QUERY_CHARACTERS, description="What is looked for."
    )
    queries: SkipJsonSchema[None] = None

    @field_validator("queries", mode="before")
    @classmethod
    def _are_none(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("one search at a time is explained; give one 'query'")


class SearchBackend(Protocol):
    """What the API needs behind it. `search`, `explain` and `describe` raise Unavailable, TimeoutError or UserError."""

    async def search(self, request: SearchRequest) -> tuple[list[list[dict[str, Any]]], str]:
        """Returns the hits of every query, and the version of the index that gave them."""

    async def explain(self, request: ExplainRequest) -> tuple[dict[str, Any], str]:
        """Returns the hits and the tree of a search (`zerogr.search.record`), and the version of the index."""

    async def describe(self) -> dict[str, Any]:
        """Returns the answer to GET /index."""

    async def is_ready(self) -> bool:
        """Whether a model is loaded."""

    def observe(self, status: int, num_queries: int, took_ms: float) -> None:
        """Counts a finished POST /search."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def create_api(backend: SearchBackend) -> FastAPI:
    """Returns the ASGI application in front of `backend`."""
    # FastAPI's own documentation pages load scripts from elsewhere; the description that they would show does not.
    api = FastAPI(title="ZeroGR", docs_url=None, redoc_url=None)
    page, page_headers = _load_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page, headers=page_headers)

    @api.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    @api.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    async def readyz() -> Response:
        try:
            ready = await backend.is_ready()
        except Exception as error:
            return _failure(error)
        return JSONResponse({"status": "ready"}) if ready else _error(503, "no model is loaded yet; try again soon")

    @api.get("/index", response_model=IndexAnswer, responses=AT_ANY_TIME)
    async def describe_index() -> Response:
        try:
            return JSONResponse(await backend.describe())
        except Exception as error:
            return _failure(error)

    @api.post("/search", response_model=SearchAnswer, responses=ERRORS, openapi_extra=_described(SearchRequest))
    async def search(request: Request) -> Response:
        start = time.perf_counter()
        num_queries = 0
        try:
            wanted = _parse(await _read_body(request), SearchRequest)
            num_queries = len(wanted.texts)
            hits, index_version = await backend.search(wanted)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
            answer = {
                "hits": hits if wanted.query is None else hits[0],
                "index_version": index_version,
                "took_ms": took_ms,
            }
            response: Response = JSONResponse(answer)
        except Exception as error:
            response = _failure(error)
            took_ms = round((time.perf_counter() - start) * 1000, 1)
        backend.observe(response.status_code, num_queries, took_ms)
        logger.info("search status=%d queries=%d ms=%.1f", response.status_code, num_queries, took_ms)
        return response

    _add_explain(api, backend)

    @api.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    return api


def _add_explain(api: FastAPI, backend: SearchBackend) -> None:
    """Adds POST /explain."""

    @api.post("/explain", response_model=ExplainAnswer, responses=ERRORS, openapi_extra=_described(ExplainRequest))
    async def explain(request: Request) -> Response:
        start = time.perf_counter()
        try:
            answer, index_version = await backend.explain(_parse(await _read_body(request), ExplainRequest))
            took_ms = round((time.perf_counter() - start) * 1000, 1)
            response: Response = JSONResponse({**answer, "index_version": index_version, "took_ms": took_ms})
        except Exception as error:
            response = _failure(error)
        logger.info("explain status=%d ms=%.1f", response.status_code, (time.perf_counter() - start) * 1000)
        return response


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """Returns what /openapi.json says of a body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"content": content, "required": True}}


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes; send fewer queries or doc_ids at once")
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


def _failure(error: Exception) -> JSONResponse:
    """Returns the answer to a request that failed; what nobody foresaw is logged with its traceback."""
    if isinstance(error, _Refused):
        return _error(error.status, str(error))
    if isinstance(error, UserError):
        return _error(422, str(error))
    if isinstance(error, Unavailable):
        return _error(503, str(error))
    if isinstance(error, TimeoutError):
        return _error(504, "the search took too long and was cancelled; ask for fewer queries or a smaller k")
    logger.error("a request failed", exc_info=error)
    return _error(500, "internal error; the server's log says more")


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers={"Retry-After": "1"} if status == 503 else None)


def _load_page() -> tuple[str, dict[str, str]]:
    """Returns the search page and headers that allow its own inline script and style, by hash, and nothing else."""
    page = resources.files("serve").joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
