"""Which versions of an index a searcher has loaded: the one that answers, and the one before, for going back.

    versions = Versions(arguments, loader, tell)     the index's current version, checked
    versions.current.answers.ask(...)
    versions.look()                                  takes another one, if the index has another

A version is checked before it answers: the files that it is loaded from have the hashes that were published, and it answers its
stored query as it did then (`zerogr.search.check`). One that fails is not served. It is said once, the old version goes on, and
it is tried again after 1, 2, 4, ... looks, because storage may have been the cause.

Going back is a change of the index, not of a process: `roll_back` makes the version before it current again, by one write of
index.json, and every searcher follows that as it follows any version, those that start later and those of other services. So
there is nothing to broadcast, and nothing that a restart forgets. A searcher that still has the version loaded swaps at once.
Cost: two models in memory from the first update on, never three.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from zerogr.errors import UserError
from zerogr.index.driver import lease_of
from zerogr.index.index import Index
from zerogr.index.versions import Version, manifest_of, name_of, number_before, publish

if TYPE_CHECKING:
    from concurrent.futures import Future

    from serve.settings import ServeArguments
    from zerogr.search.answer import Hit
    from zerogr.search.record import Explained
    from zerogr.search.request import Work

_LONGEST_PAUSE = 64
"""Looks between two tries of a version that fails; half an hour with the default `follow_s`."""

logger = logging.getLogger("ray.serve.zerogr")


class Asked(Protocol):
    """A request that is being answered."""

    found: Future[Any]

    @property
    def work(self) -> Work: ...

    def drop(self) -> None: ...


class Answers(Protocol):
    """The part of `zerogr.search.answering.Answering` that serving uses."""

    @property
    def num_slots(self) -> int: ...

    def ask(self, queries: list[str], *, timeout_s: float, **how: Any) -> Asked: ...

    def hits(self, request: Any) -> list[list[Hit]]: ...

    def explained(self, request: Any) -> list[Explained]: ...

    def check(self) -> None: ...

    def close(self) -> None: ...

    def join(self) -> None: ...


class LoadedRetriever(Protocol):
    """The part of `zerogr.retriever.Retriever` that serving uses."""

    @property
    def manifest(self) -> dict[str, Any]: ...

    @property
    def index_version(self) -> str: ...

    def search(self, queries: list[str], *, instruction: str | None, k: int) -> list[list[Hit]]: ...

    def answering(self, *, most_queries: int) -> Answers: ...


Loader = Callable[["ServeArguments"], LoadedRetriever]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version in memory."""

    name: str
    """As the index's manifest says it."""
    retriever: LoadedRetriever
    answers: Answers


@dataclass(slots=True)
class Refused:
    """A version that failed."""

    name: str
    """"" where the index could not be asked for it."""
    reason: str
    pause: int = 1
    """Looks between this try and the next."""
    num_left: int = 1


class Versions:
    """The loaded versions of an index. `look` may be called by any thread."""

    def __init__(self, arguments: ServeArguments, loader: Loader, tell: Callable[[str], None]) -> None:
        """Loads the version that is to be served; where that fails its check, the newest before it that passes.

        Args:
            arguments: What is loaded.
            loader: Loads it.
            tell: Is told, in a line for a person, when another version answers and when one is refused.

        Raises:
            UserError: There is no such index, or no version of it passes.
        """
        self._arguments, self._loader, self._tell = arguments, loader, tell
        self._index = Index(arguments.index)
        self._lock = threading.Lock()
        self.previous: Loaded | None = None
        self.refused: Refused | None = None
        self.current = self._first()

    def follow(self, every_s: float) -> None:
        """Looks every so many seconds, in a thread of its own."""

        def run() -> None:
            while True:
                time.sleep(every_s)
                self.look()

        threading.Thread(target=run, name="follow", daemon=True).start()

    def look(self) -> None:
        """Lets the index's current version answer, if it is another one than that which does."""
        with self._lock:
            try:
                manifest = self._index.manifest()
            except Exception as error:  # the version that answers goes on, whatever is wrong with the storage
                self._refuse("", error)
                return
            name = name_of(manifest)
            if name == self.current.name:
                self.refused = None
            elif self.previous is not None and name == self.previous.name:
                self.previous.answers.join()  # it may still have had something to finish, and a model has one thread
                self._take(Loaded(name, self.previous.retriever, self._answering(self.previous.retriever)))
            elif self._is_due(name):
                self._load_beside(manifest, name)

    def describe(self) -> dict[str, Any]:
        """Returns the names of what is loaded, and of what was refused."""
        previous, refused = self.previous, self.refused
        return {
            "current": self.current.retriever.index_version,
            "previous": previous.retriever.index_version if previous else None,
            "refused": refused.name if refused and refused.name else None,
        }

    def _first(self) -> Loaded:
        number = self._arguments.version
        while True:
            manifest = manifest_of(self._index, number)
            try:
                return self._load(manifest)
            except UserError as error:
                version = Version.of(manifest)
                before = number_before(self._index, version.number) if self._arguments.version is None else None
                if before is None:
                    raise
                self._refuse(name_of(manifest), error)
                number = before

    def _load(self, manifest: dict[str, Any]) -> Loaded:
        """Returns a version that has passed its check and has searched once."""
        from zerogr.search.check import (
            check_answer,
            check_files,
            read_check,
        )  # with torch, which the ingress does without

        check = read_check(self._index, manifest)
        if check is not None:
            check_files(self._index, manifest, check)
        number = Version.of(manifest).number if "version" in manifest else None
        retriever = self._loader(self._arguments.model_copy(update={"version": number}))
        check_answer(retriever, check)
        return Loaded(name_of(manifest), retriever, self._answering(retriever))

    def _load_beside(self, manifest: dict[str, Any], name: str) -> None:
        self.previous = None
        gc.collect()  # a model is part of reference cycles, and a third one may find no room
        try:
            loaded = self._load(manifest)
        except Exception as error:  # whatever keeps the new version from being served, the old one goes on
            self._refuse(name, error)
            return
        self._take(loaded)

    def _take(self, loaded: Loaded) -> None:
        before, self.current, self.refused = self.current, loaded, None
        self.previous = before
        before.answers.close()  # what it has is answered
        self._tell(f"version {loaded.name} answers, {before.name} before")

    def _answering(self, retriever: LoadedRetriever) -> Answers:
        return retriever.answering(most_queries=self._arguments.most_queries)

    def _refuse(self, name: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        known = self.refused
        if known is not None and (known.name, known.reason) == (name, reason):
            known.pause = known.num_left = min(2 * known.pause, _LONGEST_PAUSE)
            return
        self.refused = Refused(name, reason)
        logger.error("version %s of %s is refused", name or "(unknown)", self._index.uri, exc_info=error)
        self._tell(f"version {name} is refused: {reason}" if name else f"the index cannot be read: {reason}")

    def _is_due(self, name: str) -> bool:
        """Whether a version is tried at this look."""
        if self.refused is None or self.refused.name != name:
            return True
        self.refused.num_left -= 1
        return self.refused.num_left <= 0


def roll_back(uri: str) -> tuple[str, str]:
    """Makes the version before the current one of an index current again; returns the names of that and of the one left.

    Raises:
        UserError: There is none, the index was rolled back already, or another driver is changing it.
        Fault: Storage does not let it be written.
    """
    index = Index(uri)
    with lease_of(index):
        left = index.manifest()
        version = Version.of(left)
        if version.number < version.last:
            raise UserError(
                f"version {version.number} of '{uri}' is what it was rolled back to, from {version.last}; "
                f"`zerogr update {uri} --rollback VERSION` goes to any other"
            )
        before = number_before(index, version.number)
        if before is None:
            raise UserError(f"'{uri}' has no version before this one; only updates make versions to go back from")
        publish(index, before)
        return name_of(index.manifest()), name_of(left)
