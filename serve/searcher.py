"""The searcher: holds one model, and decodes all requests that it has together.

It decodes in a thread of its own: a request that comes joins at the next round, and its answer does not wait for the others
(`zerogr.search.answering`). Its event loop always answers health checks; the contents of hits are read in a third thread.

It looks every `follow_s` seconds whether the index has another version (`zerogr update`), loads it beside the old one, checks
it and asks it whatever comes from then on, while the old one finishes what it has (`serve.versions`); every answer says which
version gave it. It counts as running once it has decoded. When its answering thread ends by a fault, its requests are refused
and its health check fails, so that Serve starts another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from serve.api import LOST, Answered, Unavailable
from serve.logs import answer_as, logger
from serve.metrics import Spent
from serve.settings import ServeArguments
from serve.terminal import replica_name, tell
from serve.versions import Answers, LoadedRetriever, Loader, Versions
from zerogr.errors import Fault, UserError
from zerogr.index.versions import Version
from zerogr.trie.metadata import keys_of

UNREADABLE = "what the documents say cannot be read from storage now; try again soon, or ask for no fields"


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
        "num_documents": Version.of(manifest).num_documents,
        "filter_keys": keys_of(manifest),
        "stages": {
            name: {key: stage.get(key) for key in ("fingerprint", "counts", "files", "seconds")}
            for name, stage in stages.items()
        },
    }
