"""A double of the retriever, for tests of the service that need no model and decide how long a search takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve.settings import ServeArguments
from zerogr.errors import UserError
from zerogr.ranking.ranker import Part
from zerogr.search.answer import Hit
from zerogr.search.answering import ClosedError, LostError
from zerogr.search.record import Explained
from zerogr.search.request import Cost, Work
from zerogr.store import storage

HTML_DOCID = "<img src=x onerror=alert(1)>"
SECRET = "a secret that only the log may hold"


class RetrieverDouble:
    """Answers with k numbered documents; some queries wait for a file, or fail."""

    restrictions = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index_version = folder, "f-f"
        self.manifest: dict[str, Any] = {"format": 2, "config": {"instruction": "Find it."}, "stages": {}}

    def restricted(self, **restrictions: Any) -> RetrieverDouble:
        if "unknown" in restrictions.get("filter", {}):
            raise UserError("filter has the key 'unknown'")
        double = RetrieverDouble(self.folder)
        double.restrictions = repr(restrictions)
        return double

    def answering(self, *, most_queries: int) -> AnswersDouble:
        return AnswersDouble(self)

    def search(
        self,
        queries: list[str],
        *,
        instruction: str | None = None,
        k: int = 10,
        strategy: str | None = None,
        fields: Sequence[str] = (),
        snippet_characters: int = 0,
    ) -> list[list[Hit]]:
        if "wait" in queries:
            while not (self.folder / "release").exists():
                time.sleep(0.02)
        if "a mistake" in queries:
            raise UserError("the index knows no such instruction")
        if "a bug" in queries:
            raise RuntimeError(SECRET)
        said: dict[str, Any] = {
            "title": f"a title {self.restrictions}", "text": f"{snippet_characters} characters", "kind": "text", "metadata": {}
        }  # fmt: skip
        said = {name: said[name] for name in fields}
        return [
            [
                Hit(f"{query} {instruction} {strategy}", HTML_DOCID, rank, -0.5 * rank, **said)
                for rank in range(1, k + 1)
            ]
            for query in queries
        ]


class AskedDouble:
    """A request to the double."""

    work = Work(0.5, 0.25, 1.0, [Cost(2, 3, 7)])

    def __init__(self, found: Future[Any]) -> None:
        self.found = found

    def drop(self) -> None:
        self.found.cancel()


class AnswersDouble:
    """Lets the double search for one request after the other."""

    def __init__(self, retriever: RetrieverDouble) -> None:
        self._retriever, self._thread, self._is_closed = retriever, ThreadPoolExecutor(1), False
        self.num_slots, self.loss = 11, ""

    def ask(self, queries: list[str], *, timeout_s: float, is_recorded: bool = False, **how: Any) -> AskedDouble:
        if "the end of the thread" in queries:
            self.loss = "the answering thread has ended by MemoryError: "
        self.check()
        if self._is_closed:
            raise ClosedError
        restrictions = {name: how.pop(name) for name in ("allow", "deny", "filter") if name in how}

        def search() -> list[list[Hit]]:
            searched = self._retriever.restricted(**restrictions) if restrictions else self._retriever
            return searched.search(queries, **how)

        return AskedDouble(self._thread.submit(search))

    def hits(self, request: AskedDouble) -> list[list[Hit]]:
        found: list[list[Hit]] = request.found.result()
        return found

    def check(self) -> None:
        if self.loss:
            raise LostError(self.loss)

    def explained(self, request: AskedDouble) -> list[Explained]:
        return [Explained(hits, None, [[Part("terms", "wing", 0.5, 1.0)] for _ in hits]) for hits in self.hits(request)]

    def close(self) -> None:
        self._is_closed = True

    def join(self) -> None:
        self._thread.shutdown()


def load_double(_arguments: ServeArguments, folder: str) -> RetrieverDouble:
    return RetrieverDouble(Path(folder))


def finished_index(folder: Path) -> str:
    record = {"fingerprint": "f", "inputs": {}, "counts": {}, "files": 0, "seconds": 0.0}
    manifest = {"format": 2, "config": {}, "stages": {"trie": record, "retriever": record}}
    storage.write_json(str(folder / "index.json"), manifest)
    return str(folder)
