"""One searcher without Ray, with a double in the retriever's place: who is answered, and which version answers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from serve.api import Unavailable
from serve.searcher import Searcher
from serve.settings import ServeArguments
from tests.serve.doubles import AnswersDouble, RetrieverDouble, finished_index
from zerogr.index.index import Index
from zerogr.index.versions import Version, name_of
from zerogr.search.answer import Hit
from zerogr.search.answering import LostError
from zerogr.store import storage


def _unreadable(_request: Any) -> Any:
    raise OSError("SlowDown: please reduce your request rate")


class TestSearcher:
    """Nothing is decoded for a client that has left."""

    def test_a_cancelled_request_that_waits_never_starts(self) -> None:
        started: list[str] = []
        running, release = threading.Event(), threading.Event()

        class Blocking(RetrieverDouble):
            def search(self, queries: list[str], **_options: Any) -> list[list[Hit]]:
                if queries[0] == "what is it about?":  # when it was loaded
                    return [[]]
                started.append(queries[0])
                running.set()
                assert release.wait(10)
                return [[]]

        async def scenario() -> None:
            arguments = ServeArguments(index="index", follow_s=None)
            searcher = Searcher.func_or_class(arguments, lambda _arguments: Blocking(Path()))
            options: dict[str, Any] = {"timeout_s": 60, "instruction": None, "k": 1, "strategy": None}
            first = asyncio.create_task(searcher.search(["first"], **options))
            await asyncio.to_thread(running.wait, 10)
            second = asyncio.create_task(searcher.search(["second"], **options))
            third = asyncio.create_task(searcher.search(["third"], **options))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.sleep(0)
            release.set()
            assert (await first)[:2] == (await third)[:2] == ([[]], "f-f")
            assert second.cancelled()

        asyncio.run(scenario())
        assert started == ["first", "third"]

    def test_it_says_what_it_has_spent(self) -> None:
        searcher = Searcher.func_or_class(
            ServeArguments(index="index", follow_s=None), lambda _arguments: RetrieverDouble(Path())
        )
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        spent = answer.spent
        assert (spent.version, spent.num_slots, spent.costs) == ("f-f", 11, [(2, 3, 7)])
        assert (spent.queue_s, spent.prompt_s, spent.decoding_s) == (0.5, 0.25, 1.0)
        assert 0 <= spent.reading_s <= spent.total_s

    def test_a_dead_thread_is_unhealthy_and_refuses(self) -> None:
        """Otherwise the replica would stay, and every request would wait until its time is over."""
        retriever = RetrieverDouble(Path())
        answers = AnswersDouble(retriever)
        retriever.answering = lambda **_: answers  # type: ignore[method-assign]
        searcher = Searcher.func_or_class(ServeArguments(index="index", follow_s=None), lambda _arguments: retriever)
        searcher.check_health()
        answers.loss = "the answering thread has ended by MemoryError: "
        with pytest.raises(LostError, match="has ended by MemoryError"):
            searcher.check_health()
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        assert isinstance(answer, Unavailable) and answer.reason == "lost"

    def test_a_corpus_that_cannot_be_read_is_said(self) -> None:
        """Otherwise a passing fault of object storage would be an internal error."""
        retriever = RetrieverDouble(Path())
        answers = AnswersDouble(retriever)
        retriever.answering = lambda **_: answers  # type: ignore[method-assign]
        searcher = Searcher.func_or_class(ServeArguments(index="index", follow_s=None), lambda _arguments: retriever)
        answers.hits = _unreadable  # type: ignore[method-assign]
        answer = asyncio.run(searcher.search(["wing"], timeout_s=60, k=1))
        assert isinstance(answer, Unavailable) and answer.reason == "storage"
        assert str(answer).startswith("what the documents say cannot be read from storage now; try again soon")

    def test_nothing_counts_as_loaded_that_cannot_decode(self) -> None:
        class Broken(RetrieverDouble):
            def search(self, queries: list[str], **_options: Any) -> list[list[Hit]]:
                raise RuntimeError("no kernel for this device")

        arguments = ServeArguments(index="index", follow_s=None)
        with pytest.raises(RuntimeError, match="no kernel for this device"):
            Searcher.func_or_class(arguments, lambda _arguments: Broken(Path()))


class TestFollowing:
    """A new version takes over between two searches, and what cannot be loaded changes nothing."""

    def test_another_version_takes_the_place_of_the_old_one(self, tmp_path: Path) -> None:
        uri = finished_index(tmp_path)
        loaded: list[str] = []

        class Versioned(RetrieverDouble):
            def __init__(self) -> None:
                super().__init__(tmp_path)
                self.index_version = name_of(Index(uri).manifest())
                loaded.append(self.index_version)

            def search(self, queries: list[str], **options: Any) -> list[list[Hit]]:
                if self.index_version.endswith("+1") and len(loaded) == 2:
                    raise RuntimeError("the first try of version 1 fails")
                return super().search(queries, **{**options, "k": 1})

        def publish(number: int) -> None:
            manifest = storage.read_json(f"{uri}/index.json")
            version = Version.of({**manifest, "version": {"number": number, "last": number, "layers": []}})
            storage.write_json(f"{uri}/index.json", {**manifest, "version": version.as_json()})

        async def version_of(searcher: Any) -> str:
            answer = await searcher.search(["a query"], timeout_s=60, instruction=None, k=1, strategy=None)
            return str(answer.index_version)

        async def scenario() -> None:
            arguments = ServeArguments(index=uri, follow_s=0.02)
            searcher = Searcher.func_or_class(arguments, lambda _arguments: Versioned())
            assert await version_of(searcher) == "f-f"
            for number in (1, 2, 1):
                publish(number)
                while not (await version_of(searcher)).endswith(f"+{number}"):
                    await asyncio.sleep(0.02)

        asyncio.run(asyncio.wait_for(scenario(), 60))
        assert loaded == ["f-f", "f-f+1", "f-f+1", "f-f+2"], "the version before is still there"
