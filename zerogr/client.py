"""A client of the service that `zerogr serve` starts.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search("wing slipstream", k=3).hits: ...
        client.explain("wing slipstream").tree

A call takes at most `timeout_s`, all its tries together. A service that is overloaded or still loading answers 503 and says
when to come again: that is obeyed, up to `max_retries` times. Every failure is a `ServiceError`, with its sentence.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx

from zerogr.errors import ZeroGRError
from zerogr.ranking.ranker import Part
from zerogr.search.answer import Hit
from zerogr.search.record import Explained, Record

TIMEOUT_S = 60.0
MAX_RETRIES = 3
BUSY = 503
T = TypeVar("T")


class ServiceError(ZeroGRError):
    """A call that failed. The message is the service's sentence, or says why there is none."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP; None where nothing answered."""


class Wanted(TypedDict, total=False):
    """What a search may say besides its query; what it leaves out is the service's default."""

    instruction: str | None
    """The retrieval task in one sentence."""
    k: int | None
    """Documents per query."""
    strategy: str | None
    """One of those that `index` names."""
    rerank: bool | None
    """Whether they are ordered by the score that training.loss ranknet teaches."""
    fields: Sequence[str] | None
    """What hits say of their documents: some of title, text, kind and metadata."""
    snippet_characters: int | None
    """Of the text, at most; 0 = none."""
    allow: Sequence[str] | None
    """The doc_ids that may be found; None = all."""
    deny: Sequence[str] | None
    """The doc_ids that may not be found."""
    filter: Mapping[str, Any] | None
    """{key: value, list of values or {"gte": x, "lte": y}} on the metadata."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To one query."""

    hits: list[Hit]
    index_version: str
    """That gave them."""
    took_ms: float
    """In the service."""


@dataclass(frozen=True, slots=True)
class Answers:
    """To several queries."""

    hits: list[list[Hit]]
    """Of each query."""
    index_version: str
    took_ms: float


@dataclass(frozen=True, slots=True)
class Explanation(Explained):
    """An answer, and how it came about."""

    index_version: str
    took_ms: float


@dataclass(frozen=True, slots=True)
class Served:
    """What a service says of its index."""

    index_version: str
    instruction: str | None = None
    """Of searches that give none."""
    strategies: list[str] = field(default_factory=list)
    filter_keys: list[str] = field(default_factory=list)
    """Of the metadata."""
    k: int | None = None
    """By default; None = the index's own."""
    strategy: str | None = None
    """By default; None = the index's own."""
    num_documents: int = 0
    """Of the version that is searched."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Name -> counts, fingerprint and more, of the version that the index began with."""


class Client:
    """Calls a service. May be used by several threads."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connects with the first call.

        Args:
            url: Of the service, with its route prefix if it has one, such as http://127.0.0.1:8000.
            token: That the service wants, if it wants one.
            timeout_s: For a call, the waiting between tries included.
            max_retries: After answers of 503.
            transport: Of httpx; None = the network, and a proxy if the environment names one and the host is not this machine.

        Raises:
            ServiceError: It is no http:// or https:// URL, or the token holds what no header can carry.
        """
        try:
            parsed = httpx.URL(url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise ServiceError(f"'{url}' is no URL ({error}); give one such as http://127.0.0.1:8000") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ServiceError(f"'{url}' is no http:// or https:// URL; give one such as http://127.0.0.1:8000")
        if token is not None and not (token.isascii() and token.isprintable() and token == token.strip() != ""):
            raise ServiceError(
                "the token is empty, or has spaces around it or a character that no HTTP header can carry"
            )
        self._url, self._timeout_s, self._max_retries = url, timeout_s, max_retries
        self._http = httpx.Client(
            base_url=parsed,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
            trust_env=not _is_this_machine(parsed.host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def search(self, query: str, **wanted: Unpack[Wanted]) -> Answer:
        """Returns the hits of a query, best first. Raises ServiceError."""
        value = self._call("POST", "search", {"query": query, **wanted})
        return self._read(value, lambda: Answer(_hits(value["hits"]), value["index_version"], value["took_ms"]))

    def search_many(self, queries: Sequence[str], **wanted: Unpack[Wanted]) -> Answers:
        """Returns the hits of each query, in one request. Raises ServiceError."""
        value = self._call("POST", "search", {"queries": list(queries), **wanted})
        return self._read(
            value, lambda: Answers([_hits(each) for each in value["hits"]], value["index_version"], value["took_ms"])
        )

    def explain(self, query: str, **wanted: Unpack[Wanted]) -> Explanation:
        """Returns the hits of a query, and the tree or the sums by which they were found. Raises ServiceError."""
        value = self._call("POST", "explain", {"query": query, **wanted})

        def read() -> Explanation:
            tree = None if value["tree"] is None else Record.of(value["tree"])
            has_parts = bool(value["hits"]) and "parts" in value["hits"][0]
            parts = [[Part(**part) for part in hit["parts"]] for hit in value["hits"]] if has_parts else None
            return Explanation(_hits(value["hits"]), tree, parts, value["index_version"], value["took_ms"])

        return self._read(value, read)

    def index(self) -> Served:
        """Returns what is served. Raises ServiceError."""
        value = self._call("GET", "index")
        return self._read(value, lambda: Served(**_known(Served, value)))

    def ready(self) -> bool:
        """Returns whether a model is loaded; asks once. Raises ServiceError if nothing of the kind answers."""
        try:
            self._call("GET", "readyz", max_retries=0)
        except ServiceError as error:
            if error.status == BUSY:
                return False
            raise
        return True

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, max_retries: int | None = None
    ) -> dict[str, Any]:
        """Returns the JSON object that the service answers."""
        deadline = time.monotonic() + self._timeout_s
        sent = None if body is None else {name: value for name, value in body.items() if value is not None}
        left = self._max_retries if max_retries is None else max_retries
        while True:
            response = self._send(method, path, sent, deadline - time.monotonic())
            if response.is_success:
                return self._object(response)
            wait_s = _retry_after_s(response)
            if response.status_code != BUSY or left <= 0 or time.monotonic() + wait_s >= deadline:
                raise ServiceError(self._sentence(response), response.status_code)
            left -= 1
            time.sleep(wait_s)

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body, timeout=max(timeout_s, 1e-3))
        except httpx.TimeoutException:
            raise ServiceError(f"{self._url} did not answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._url} cannot be reached ({error}); is the service running?") from None
        except ValueError as error:  # NaN or a lone surrogate is no JSON
            raise ServiceError(f"the request cannot be written as JSON: {error}") from None

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ServiceError(
                f"{self._url} answers, but not as zerogr serve does; check the URL", response.status_code
            )
        return value

    def _sentence(self, response: httpx.Response) -> str:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            error = f"{self._url} answered with status {response.status_code}, and not as zerogr serve does"
        return str(error)

    def _read(self, value: dict[str, Any], read: Callable[[], T]) -> T:
        try:
            return read()
        except (KeyError, TypeError) as error:
            raise ServiceError(
                f"{self._url} answered {sorted(value)}, of which this version can make nothing ({error})"
            ) from None


def _hits(values: Sequence[dict[str, Any]]) -> list[Hit]:
    return [Hit(**_known(Hit, value)) for value in values]


def _known(type_: Any, value: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries that a dataclass has fields for; a newer service may say more."""
    return {each.name: value[each.name] for each in fields(type_) if each.name in value}


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(float(response.headers.get("Retry-After", "1")), 0.0)
    except ValueError:  # a date, which the service does not send
        return 1.0


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
