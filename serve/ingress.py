"""The ingress: what stands between HTTP and the searchers, and holds no model.

Requests beyond a searcher's `max_ongoing_requests` wait here up to `max_queued_requests`, and are refused beyond it: the
refusal comes as BackPressureError and reaches the client as JSON. Before that, what would wait longer than `wait_s` is refused
(`serve.admission`). When a client leaves, its request is cancelled, and its place is free at the next round.

`Front` runs in the process of `zerogr serve` (`serve.server`) or, on a cluster, as the deployment `Ingress`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.metrics import Counter, Histogram

from serve.admission import Admission
from serve.api import BUSY, LOST, Answered, Unavailable, create_api
from serve.logs import logger, request_id
from serve.metrics import Metrics, Spent
from serve.requests import ExplainRequest, SearchRequest
from serve.settings import SearchDefaults, ServeArguments
from serve.terminal import tell
from serve.tokens import read_token
from serve.versions import roll_back
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError

LATENCY_BOUNDARIES_MS = [10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4]
SAY_EVERY_S = 60.0
"""Between two lines that say that searches are refused."""


class Front:
    """What the HTTP API asks (`serve.api.SearchBackend`): the searchers, with the defaults of the service."""

    def __init__(
        self,
        searcher: DeploymentHandle,
        arguments: ServeArguments,
        app_name: str,
        defaults: SearchDefaults | None = None,
    ) -> None:
        """Stands before the searchers of an application."""
        self._searcher, self._arguments, self._app_name = searcher, arguments, app_name
        self._token = read_token(arguments.token_file) if arguments.token_file is not None else None
        self._defaults = defaults or SearchDefaults()
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

    def api(self, **how: Any) -> FastAPI:
        """Returns the ASGI application; `how` as `serve.api.create_api` takes it."""
        return create_api(self, token=self._token, **how)

    @property
    def log_queries(self) -> bool:
        return self._defaults.log_queries

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
        application = (await asyncio.to_thread(serve.status)).applications[self._app_name]
        return application.deployments["Searcher"].replica_states.get("RUNNING", 0) > 0

    async def roll_back(self) -> dict[str, Any]:
        if not self._arguments.follows:
            raise UserError(
                "this service follows no other version (args.version, args.follow_s); change its config file"
            )
        version, left = await asyncio.to_thread(roll_back, self._arguments.index)
        self._searcher.look.remote()  # one of them need not wait for its next look
        tell(
            f"rolled back from version {left} to {version}; searchers follow within {self._arguments.follow_s:g} s",
            self._app_name,
        )
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
            tell(f"searches are refused: {cause}", self._app_name)

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


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress(Front):
    """A replica of it, behind Ray Serve's proxy."""

    def __init__(self, searcher: DeploymentHandle, arguments: ServeArguments) -> None:
        super().__init__(searcher, arguments, serve.get_replica_context().app_name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.api(behind_proxy=True)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes over new defaults without a restart; Ray Serve calls it."""
        self._defaults = SearchDefaults.model_validate(user_config)


def _cancel(response: DeploymentResponse) -> None:
    """Lets a searcher go that nobody waits for any more."""
    try:
        response.cancel()
    except Exception as error:  # it failed by itself meanwhile, in any way that a search can
        logger.info("a search that nobody waits for has ended: %s", type(error).__name__)
