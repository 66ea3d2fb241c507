"""The Ray Serve application: an ingress that speaks HTTP, and searchers that hold the model.

    HTTP proxy -> Ingress (validation, page, probes; no model) -> Searcher (one model; autoscaled)

A searcher decodes all requests that it has together, in a thread of its own: one that comes joins at the next round, and its
answer does not wait for the others (`zerogr.search.answering`). Its event loop always answers health checks; the contents of
hits are read in a third thread. Requests beyond `max_ongoing_requests` wait in the ingress up to `max_queued_requests`, and
are refused beyond it: the refusal reaches the ingress as BackPressureError and the client as JSON. When a client leaves, Serve
cancels its request, and its place is free at the next round.

A searcher looks every `follow_s` seconds whether the index has another version (`zerogr update`), loads it beside the old one
and asks it whatever comes from then on, while the old one finishes what it has; every answer says which version gave it.

`serve/config.yaml` holds the deployments' options (replicas, limits) and the defaults of a search, which may change
while the application runs. Cost beyond decoding: two hops between processes, about 13 ms on two shared cores.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.metrics import Counter, Histogram

from serve.api import (
    MAX_K,
    MAX_SNIPPET_CHARACTERS,
    ExplainRequest,
    FieldName,
    SearchRequest,
    Unavailable,
    create_api,
)
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import name_of
from zerogr.search.contents import SNIPPET_CHARACTERS
from zerogr.trie.metadata import keys_of

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ray.serve import Application

    from zerogr.search.answer import Hit
    from zerogr.search.record import Explained

LATENCY_BOUNDARIES_MS = [10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4]


class ServeArguments(BaseModel):
    """What a searcher loads; `args` in the config file."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(min_length=1, description="URI of a finished index; every node must reach it.")
    device: str | None = Field(None, description="cuda, cpu, ...; null = the GPU where there is one.")
    dtype: str | None = Field(None, description="Of the weights, such as bfloat16; null = the retriever's choice.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads of one searcher; null = one per reserved CPU.")
    most_queries: int = Field(32, ge=1, le=4096, description="Queries that a searcher decodes together.")
    follow_s: float | None = Field(
        30,
        gt=0,
        description="Seconds between two looks whether the index has another version; null = it is never loaded.",
    )


class SearchDefaults(BaseModel):
    """What a search does unless its request says otherwise; `user_config` of Ingress, changeable while running."""

    model_config = ConfigDict(extra="forbid")

    k: int | None = Field(None, ge=1, le=MAX_K, description="Documents per query; null = the index's own.")
    strategy: str | None = Field(None, description="Decoding strategy; null = the index's own.")
    rerank: bool = Field(False, description="Order what is found by the score that training.loss ranknet teaches.")
    fields: list[FieldName] = Field(
        default_factory=lambda: list[FieldName](["title", "text"]),
        description="What hits say of their documents besides; [] reads nothing of the corpus.",
    )
    snippet_characters: int = Field(
        SNIPPET_CHARACTERS, ge=0, le=MAX_SNIPPET_CHARACTERS, description="Of the field text, at most; 0 = no text."
    )
    timeout_s: float = Field(60, gt=0, description="A search, waiting included, is cancelled after this long.")


class Asked(Protocol):
    """A request that is being answered."""

    found: Future[Any]

    def drop(self) -> None: ...


class Answers(Protocol):
    """The part of `zerogr.search.answering.Answering` that serving uses."""

    def ask(self, queries: list[str], *, timeout_s: float, **how: Any) -> Asked: ...

    def hits(self, request: Any) -> list[list[Hit]]: ...

    def explained(self, request: Any) -> list[Explained]: ...

    def close(self) -> None: ...


class LoadedRetriever(Protocol):
    """The part of `zerogr.retriever.Retriever` that serving uses."""

    @property
    def manifest(self) -> dict[str, Any]: ...

    @property
    def index_version(self) -> str: ...

    def search(self, queries: list[str], *, k: int) -> list[list[Hit]]: ...

    def answering(self, *, most_queries: int) -> Answers: ...


def load_retriever(arguments: ServeArguments) -> LoadedRetriever:
    """Returns the retriever of an index, loaded onto its device."""
    import torch

    from zerogr.retriever import Retriever

    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    return Retriever.load(arguments.index, device=arguments.device, dtype=arguments.dtype)


@serve.deployment(name="Searcher")
class Searcher:
    """Holds one model and answers with it."""

    def __init__(self, arguments: ServeArguments, loader: Callable[[ServeArguments], LoadedRetriever]) -> None:
        self._most_queries = arguments.most_queries
        retriever = loader(arguments)
        self._served = (retriever, retriever.answering(most_queries=self._most_queries))
        if arguments.follow_s is not None:
            threading.Thread(target=self._follow, args=(arguments, loader), name="follow", daemon=True).start()
        self._reading_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")

    async def search(
        self, queries: list[str], *, timeout_s: float, **how: Any
    ) -> tuple[list[list[dict[str, Any]]], str] | UserError:
        """Returns the hits of every query and the index's version, or the mistake in the request.

        The mistake is returned, not raised: an exception crosses the process boundary with its traceback as its text.

        Args:
            queries: Of one request.
            timeout_s: It is given up after so long.
            how: Arguments of the retriever's `search` and `restricted`.
        """
        return await self._answer(_hits, queries, timeout_s=timeout_s, **how)

    async def explain(
        self, queries: list[str], *, timeout_s: float, **how: Any
    ) -> tuple[list[dict[str, Any]], str] | UserError:
        """Returns the hits of every query and how they were found, decoded among the searches; otherwise as `search`."""
        return await self._answer(_explained, queries, timeout_s=timeout_s, is_recorded=True, **how)

    async def _answer(
        self, read: Callable[[Answers, Any], list[Any]], queries: list[str], *, timeout_s: float, **how: Any
    ) -> tuple[list[Any], str] | UserError:
        from zerogr.search.answering import ClosedError  # with torch, which the ingress does without

        while True:
            retriever, answers = self._served
            try:
                request = answers.ask(queries, timeout_s=timeout_s, **how)
                break
            except ClosedError:  # another version has taken its place this moment
                continue
        try:
            await asyncio.wrap_future(request.found)
            results = await asyncio.get_running_loop().run_in_executor(self._reading_thread, read, answers, request)
        except UserError as error:
            return UserError(str(error))
        except asyncio.CancelledError:
            request.drop()
            raise
        return results, retriever.index_version

    async def describe(self) -> dict[str, Any]:
        """Returns the summary of the index it serves."""
        retriever, _ = self._served
        return summarise(retriever.manifest, retriever.index_version)

    def _follow(self, arguments: ServeArguments, loader: Callable[[ServeArguments], LoadedRetriever]) -> None:
        """Loads every new version beside the old one, searches once, and lets it answer what comes; never returns."""
        index, seen = Index(arguments.index), self._served[0].index_version
        assert arguments.follow_s is not None
        while True:
            time.sleep(arguments.follow_s)
            try:
                if (current := name_of(index.manifest())) == seen:
                    continue
                retriever = loader(arguments)
                retriever.search(["what is it about?"], k=1)
            except Exception:
                # Whatever keeps the new version from being served, the old one goes on.
                logger.exception("another version of %s cannot be loaded; it is tried again", arguments.index)
                continue
            logger.info("version %s of %s takes the place of %s", current, arguments.index, seen)
            _, before = self._served
            self._served, seen = (retriever, retriever.answering(most_queries=self._most_queries)), current
            before.close()


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """Speaks HTTP for the searchers; `serve.api` says how."""

    def __init__(self, searcher: DeploymentHandle) -> None:
        self._searcher = searcher
        self._defaults = SearchDefaults()
        self._requests = Counter(
            "zerogr_search_requests", description="Searches answered, by HTTP status.", tag_keys=("status",)
        )
        self._queries = Counter("zerogr_search_queries", description="Queries in the searches that succeeded.")
        self._latency = Histogram(
            "zerogr_search_latency_ms",
            description="Milliseconds of a search inside the ingress, by HTTP status.",
            boundaries=LATENCY_BOUNDARIES_MS,
            tag_keys=("status",),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes over new defaults without a restart; Ray Serve calls it."""
        self._defaults = SearchDefaults.model_validate(user_config)

    async def search(self, request: SearchRequest) -> tuple[list[list[dict[str, Any]]], str]:
        return await self._answer(self._searcher.search, request)

    async def explain(self, request: ExplainRequest) -> tuple[dict[str, Any], str]:
        [explained], index_version = await self._answer(self._searcher.explain, request)
        return explained, index_version

    async def _answer(self, method: Any, request: SearchRequest) -> tuple[list[Any], str]:
        """Returns what a method of a searcher says to a request, with the defaults of the service."""

        def asked(name: str) -> Any:
            value = getattr(request, name)
            return value if value is not None else getattr(self._defaults, name)

        answer = await self._ask(
            method.remote(
                request.texts,
                timeout_s=self._defaults.timeout_s,
                instruction=request.instruction,
                **request.restrictions,
                **{name: asked(name) for name in ("k", "strategy", "fields", "snippet_characters")},
                **({"rerank": True} if asked("rerank") else {}),
            )
        )
        if isinstance(answer, UserError):
            raise answer
        return answer

    async def describe(self) -> dict[str, Any]:
        summary = await self._ask(self._searcher.describe.remote())
        return {**summary, "strategies": list(STRATEGIES), "k": self._defaults.k, "strategy": self._defaults.strategy}

    async def is_ready(self) -> bool:
        # The controller's view: a probe that asked a searcher would wait behind the searches.
        application = (await asyncio.to_thread(serve.status)).applications[serve.get_replica_context().app_name]
        return application.deployments["Searcher"].replica_states.get("RUNNING", 0) > 0

    def observe(self, status: int, num_queries: int, took_ms: float) -> None:
        self._requests.inc(tags={"status": str(status)})
        self._latency.observe(took_ms, tags={"status": str(status)})
        if status == 200:
            self._queries.inc(num_queries)

    async def _ask(self, response: DeploymentResponse) -> Any:
        """Returns a searcher's answer.

        Raises:
            Unavailable: The queue is full, or the searcher was lost on the way (a pre-empted node).
            TimeoutError: No answer within `timeout_s`.
        """
        try:
            async with asyncio.timeout(self._defaults.timeout_s):
                return await response
        except BackPressureError:
            raise Unavailable("too many searches are waiting; try again soon") from None
        except (DeploymentUnavailableError, RayActorError):
            raise Unavailable("the searcher was lost; try again soon") from None
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise


def _hits(answers: Answers, request: Any) -> list[list[dict[str, Any]]]:
    return [[hit.as_json() for hit in hits] for hits in answers.hits(request)]


def _explained(answers: Answers, request: Any) -> list[dict[str, Any]]:
    return [each.as_json() for each in answers.explained(request)]


def summarise(manifest: dict[str, Any], index_version: str) -> dict[str, Any]:
    """Returns what anybody may know of an index: its task, models and stages, but no URIs and no prompts."""
    config = manifest.get("config", {})
    stages = manifest.get("stages", {})
    return {
        "index_version": index_version,
        "format": manifest.get("format"),
        "instruction": config.get("instruction"),
        "filter_keys": keys_of(manifest),
        "stages": {
            name: {key: stage.get(key) for key in ("fingerprint", "counts", "files", "seconds")}
            for name, stage in stages.items()
        },
    }


def build(arguments: ServeArguments) -> Application:
    """Returns the application for `arguments`; what `import_path: serve.app:build` in the config file calls."""
    return application(arguments)


def application(
    arguments: ServeArguments,
    *,
    loader: Callable[[ServeArguments], LoadedRetriever] = load_retriever,
    options: dict[str, dict[str, Any]] | None = None,
) -> Application:
    """Returns the application.

    Args:
        arguments: What the searchers load.
        loader: Makes a searcher's retriever; runs in the searcher's process.
        options: Deployment name -> options of Ray Serve's `Deployment.options`, for `Ingress` and `Searcher`.
    """
    options = options or {}
    searcher = Searcher.options(**options.get("Searcher", {})).bind(arguments, loader)
    return Ingress.options(**options.get("Ingress", {})).bind(searcher)
