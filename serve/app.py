"""The Ray Serve application: an ingress that speaks HTTP, and searchers that hold the model.

    HTTP proxy -> Ingress (validation, page, probes; no model) -> Searcher (one model; autoscaled)

A searcher decodes all requests that it has together, in a thread of its own: one that comes joins at the next round, and its
answer does not wait for the others (`zerogr.search.answering`). Its event loop always answers health checks; the contents of
hits are read in a third thread. Requests beyond `max_ongoing_requests` wait in the ingress up to `max_queued_requests`, and
are refused beyond it: the refusal reaches the ingress as BackPressureError and the client as JSON. Before that the ingress
refuses what would wait longer than `wait_s` (`serve.admission`). When a client leaves, Serve cancels its request, and its
place is free at the next round.

A searcher looks every `follow_s` seconds whether the index has another version (`zerogr update`), loads it beside the old one,
checks it and asks it whatever comes from then on, while the old one finishes what it has (`serve.versions`); every answer says
which version gave it. It counts as running once it has decoded. When its answering thread ends by a fault, its requests are
refused and its health check fails, so that Serve starts another.

`serve/config.yaml` holds the deployments' options (replicas, limits) and the defaults of a search, which may change
while the application runs. Cost beyond decoding: two hops between processes, about 13 ms on two shared cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.metrics import Counter, Histogram

from serve.admission import Admission
from serve.api import Answered, Unavailable, create_api
from serve.logs import LOGGING_CONFIG, answer_as, logger, request_id
from serve.metrics import Metrics, Spent
from serve.requests import ExplainRequest, SearchRequest
from serve.settings import SearchDefaults, ServeArguments
from serve.terminal import replica_name, tell
from serve.tokens import read_token
from serve.versions import Answers, LoadedRetriever, Loader, Versions, roll_back
from zerogr.decoding import STRATEGIES
from zerogr.errors import Fault, UserError
from zerogr.trie.metadata import keys_of

if TYPE_CHECKING:
    from ray.serve import Application

LATENCY_BOUNDARIES_MS = [10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4]
BUSY = "too many searches are waiting; try again soon"
LOST = "the searcher was lost; try again soon"
UNREADABLE = "what the documents say cannot be read from storage now; try again soon, or ask for no fields"
SAY_EVERY_S = 60.0
"""Between two lines that say that searches are refused."""


def load_retriever(arguments: ServeArguments) -> LoadedRetriever:
    """Returns the retriever of an index, loaded onto its device."""
    import torch

    from zerogr.retriever import Retriever

    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    return Retriever.load(arguments.index, device=arguments.device, dtype=arguments.dtype, version=arguments.version)


@serve.deployment(name="Searcher")
class Searcher:
    """Holds one model and answers with it."""

    def __init__(self, arguments: ServeArguments, loader: Loader) -> None:
        self._name = replica_name()
        self._versions = Versions(arguments, loader, tell)
        if arguments.follows:
            assert arguments.follow_s is not None
            self._versions.follow(arguments.follow_s)
        self._reading_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reading")

    async def search(
        self, queries: list[str], *, timeout_s: float, asked_as: str | None = None, **how: Any
    ) -> Answered | UserError | Unavailable:
        """Returns the hits of every query with the index's version, or why there are none.

        That is returned, not raised: an exception crosses the process boundary with its traceback as its text.

        Args:
            queries: Of one request.
            timeout_s: It is given up after so long.
            asked_as: The request's id, for the log.
            how: Arguments of the retriever's `search` and `restricted`.
        """
        return await self._answer(_hits, queries, timeout_s=timeout_s, asked_as=asked_as, **how)

    async def explain(
        self, queries: list[str], *, timeout_s: float, asked_as: str | None = None, **how: Any
    ) -> Answered | UserError | Unavailable:
        """Returns the hits of every query and how they were found, decoded among the searches; otherwise as `search`."""
        return await self._answer(_explained, queries, timeout_s=timeout_s, asked_as=asked_as, is_recorded=True, **how)

    async def _answer(
        self,
        read: Callable[[Answers, Any], list[Any]],
        queries: list[str],
        *,
        timeout_s: float,
        asked_as: str | None,
        **how: Any,
    ) -> Answered | UserError | Unavailable:
        """Returns what `read` makes of a request that was decoded; otherwise as `search`."""
        from zerogr.search.answering import ClosedError, LostError  # with torch, which the ingress does without

        answer_as(asked_as)
        start = time.perf_counter()
        try:
            while True:
                loaded = self._versions.current
                try:
                    request = loaded.answers.ask(queries, timeout_s=timeout_s, **how)
                    break
                except ClosedError:  # another version has taken its place this moment
                    continue
            try:
                await asyncio.wrap_future(request.found)
                loop, reading = asyncio.get_running_loop(), time.perf_counter()
                try:
                    results = await loop.run_in_executor(self._reading_thread, read, loaded.answers, request)
                except (OSError, Fault) as error:
                    logger.error("the corpus cannot be read: %s", error)
                    return Unavailable(UNREADABLE, "storage")
            except asyncio.CancelledError:
                request.drop()
                raise
        except UserError as error:
            return UserError(str(error))
        except LostError as error:
            logger.error("%s", error)
            return Unavailable(LOST, "lost")
        end, version, work = time.perf_counter(), loaded.retriever.index_version, request.work
        spent = Spent(
            searcher=self._name,
            version=version,
            queue_s=work.queue_s,
            prompt_s=work.prompt_s,
            decoding_s=work.decoding_s,
            reading_s=end - reading,
            total_s=end - start,
            num_slots=loaded.answers.num_slots,
            costs=[tuple(cost) for cost in work.costs],
        )
        return Answered(results, version, spent)

    async def describe(self) -> dict[str, Any]:
        """Returns the summary of the index it serves."""
        retriever = self._versions.current.retriever
        return {**summarise(retriever.manifest, retriever.index_version), "versions": self._versions.describe()}

    async def look(self) -> None:
        """Looks now whether the index has another version."""
        await asyncio.to_thread(self._versions.look)

    def check_health(self) -> None:
        """Raises LostError if nothing is answered any more; the third time Ray Serve starts another replica."""
        self._versions.current.answers.check()


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """Speaks HTTP for the searchers; `serve.api` says how."""

    def __init__(self, searcher: DeploymentHandle, arguments: ServeArguments) -> None:
        self._searcher, self._arguments = searcher, arguments
        self._token = read_token(arguments.token_file) if arguments.token_file is not None else None
        self._defaults = SearchDefaults()
        self._admission = Admission(arguments.most_queries)
        self._metrics = Metrics()
        self._said_at = float("-inf")
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
        return create_api(self, token=self._token, behind_proxy=True)

    @property
    def log_queries(self) -> bool:
        return self._defaults.log_queries

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes over new defaults without a restart; Ray Serve calls it."""
        self._defaults = SearchDefaults.model_validate(user_config)

    async def search(self, request: SearchRequest) -> Answered:
        return await self._answer(self._searcher.search, request)

    async def explain(self, request: ExplainRequest) -> Answered:
        return await self._answer(self._searcher.explain, request)

    async def _answer(self, method: Any, request: SearchRequest) -> Answered:
        """Returns what a method of a searcher says to a request, with the defaults of the service."""

        def asked(name: str) -> Any:
            value = getattr(request, name)
            return value if value is not None else getattr(self._defaults, name)

        if not self._admission.has_room(self._defaults.wait_s):
            raise Unavailable(BUSY)
        with self._admission.underway(len(request.texts)):
            answer = await self._ask(
                method.remote(
                    request.texts,
                    timeout_s=self._defaults.timeout_s,
                    asked_as=request_id(),
                    instruction=request.instruction,
                    **request.restrictions,
                    **{name: asked(name) for name in ("k", "strategy", "fields", "snippet_characters")},
                    **({"rerank": True} if asked("rerank") else {}),
                )
            )
            if isinstance(answer, UserError | Unavailable):
                raise answer
            self._admission.answered_by(answer.spent.searcher)
            return answer

    async def describe(self) -> dict[str, Any]:
        summary = await self._ask(self._searcher.describe.remote())
        return {**summary, "strategies": list(STRATEGIES), "k": self._defaults.k, "strategy": self._defaults.strategy}

    async def is_ready(self) -> bool:
        # The controller's view: a probe that asked a searcher would wait behind the searches.
        application = (await asyncio.to_thread(serve.status)).applications[serve.get_replica_context().app_name]
        return application.deployments["Searcher"].replica_states.get("RUNNING", 0) > 0

    async def roll_back(self) -> dict[str, Any]:
        if not self._arguments.follows:
            raise UserError(
                "this service follows no other version (args.version, args.follow_s); change its config file"
            )
        version, left = await asyncio.to_thread(roll_back, self._arguments.index)
        self._searcher.look.remote()  # one of them need not wait for its next look
        tell(f"rolled back from version {left} to {version}; searchers follow within {self._arguments.follow_s:g} s")
        return {"index_version": version, "left": left, "within_s": self._arguments.follow_s}

    def observe(self, status: int, num_queries: int, took_ms: float, spent: Spent | None) -> None:
        self._requests.inc(tags={"status": str(status)})
        self._latency.observe(took_ms, tags={"status": str(status)})
        if status == 200:
            self._queries.inc(num_queries)
        self._metrics.observe(status, num_queries, took_ms / 1000, spent)

    def refused(self, reason: str) -> None:
        self._metrics.refused(reason)
        if reason in ("busy", "lost") and time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            cause = "too many are waiting" if reason == "busy" else "a searcher was lost"
            tell(f"searches are refused: {cause}")

    def metrics(self) -> bytes:
        return self._metrics.text()

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
            raise Unavailable(BUSY) from None
        except (DeploymentUnavailableError, RayActorError):
            raise Unavailable(LOST, "lost") from None
        except (TimeoutError, asyncio.CancelledError):
            # In a thread: Ray Serve waits in it for what its router is doing, and this loop has others to answer.
            asyncio.get_running_loop().run_in_executor(None, _cancel, response)
            raise


def _cancel(response: DeploymentResponse) -> None:
    """Lets a searcher go that nobody waits for any more."""
    try:
        response.cancel()
    except Exception as error:  # it failed by itself meanwhile, in any way that a search can
        logger.info("a search that nobody waits for has ended: %s", type(error).__name__)


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
    loader: Loader = load_retriever,
    options: dict[str, dict[str, Any]] | None = None,
) -> Application:
    """Returns the application.

    Args:
        arguments: What the searchers load.
        loader: Makes a searcher's retriever; runs in the searcher's process.
        options: Deployment name -> options of Ray Serve's `Deployment.options`, for `Ingress` and `Searcher`.
    """
    of = {name: {"logging_config": LOGGING_CONFIG, **(options or {}).get(name, {})} for name in ("Ingress", "Searcher")}
    searcher = Searcher.options(**of["Searcher"]).bind(arguments, loader)
    return Ingress.options(**of["Ingress"]).bind(searcher, arguments)
