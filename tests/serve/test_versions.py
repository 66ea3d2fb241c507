"""Which version answers: a new one after its check, the old one when that fails, the one before after a rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zerogr.search.check
from serve.settings import ServeArguments
from serve.versions import Versions, roll_back
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Version, manifest_of, name_of
from zerogr.search.answer import Hit
from zerogr.store import storage


class Answers:
    """Knows whether it was closed."""

    num_slots = 0

    def __init__(self) -> None:
        self.is_closed = self.is_joined = False

    def close(self) -> None:
        self.is_closed = True

    def join(self) -> None:
        assert self.is_closed
        self.is_joined = True


class Retriever:
    """Of a version, whose only document is named after it."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest, self.index_version = manifest, name_of(manifest)

    def search(self, queries: list[str], **_how: Any) -> list[list[Hit]]:
        return [[Hit(f"of {self.index_version}", "", 1, -1.0)] for _ in queries]

    def answering(self, *, most_queries: int) -> Any:
        return Answers()


class Service:
    """An index with versions, and a searcher of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        record = {"fingerprint": "f", "inputs": {}, "counts": {}, "files": 0, "seconds": 0.0}
        self.manifest = {"format": 2, "config": {}, "stages": {"trie": record, "retriever": record}}
        self.index = Index(str(folder / "index"))
        storage.write_json(self.index.path("index.json"), self.manifest)
        self.loaded: list[str] = []
        self.told: list[str] = []
        self.faults: dict[str, Exception] = {}
        monkeypatch.setattr(zerogr.search.check, "_files", lambda index, manifest: {})

    def load(self, arguments: ServeArguments) -> Any:
        manifest = manifest_of(self.index, arguments.version)
        name = name_of(manifest)
        self.loaded.append(name)
        if name in self.faults:
            raise self.faults[name]
        return Retriever(manifest)

    def start(self, **arguments: Any) -> Versions:
        return Versions(ServeArguments(index=self.index.uri, **arguments), self.load, self.told.append)

    def publish(self, number: int, before: int, expects: str | None = None) -> None:
        """Publishes a version, with a check if it is known what it should find."""
        version = Version(number=number, last=number)
        manifest = {**self.manifest, "version": version.as_json()}
        folder = f"versions/{number:06d}"
        storage.write_json(self.index.path(folder, "version.json"), manifest)
        storage.write_json(
            self.index.path("versions/000000/version.json"), {**manifest, "version": Version().as_json()}
        )
        storage.write_json(self.index.path(folder, "update.json"), {"before": before})
        if expects is not None:
            check = {
                "version": name_of(manifest), "files": {}, "query": "a query", "instruction": None, "k": 10,
                "best": {"doc_id": expects, "score": -1.0},
            }  # fmt: skip
            storage.write_json(self.index.path(folder, "check.json"), check)
        storage.write_json(self.index.path("index.json"), manifest)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(tmp_path, monkeypatch)


def names(versions: Versions) -> tuple[str, str | None, str | None]:
    found = versions.describe()
    return found["current"], found["previous"], found["refused"]


class TestLooking:
    def test_a_new_version_takes_over_and_the_old_one_stays_loaded(self, service: Service) -> None:
        versions = service.start()
        old: Any = versions.current.answers
        versions.look()
        assert names(versions) == ("f-f", None, None) and service.told == []
        service.publish(1, before=0, expects="of f-f+1")
        versions.look()
        versions.look()
        assert names(versions) == ("f-f+1", "f-f", None)
        assert service.loaded == ["f-f", "f-f+1"]
        assert service.told == ["version f-f+1 answers, f-f before"]
        assert old.is_closed

    def test_a_version_that_fails_its_check_is_refused_once(self, service: Service) -> None:
        versions = service.start()
        service.publish(1, before=0, expects="what was published")
        for _ in range(8):
            versions.look()
        assert names(versions) == ("f-f", None, "f-f+1")
        [line] = service.told
        assert line.startswith(
            "version f-f+1 is refused: version f-f+1 finds of f-f+1 for its stored query where 'what"
        )
        assert service.loaded == ["f-f", *["f-f+1"] * 4], "at the looks 1, 2, 4 and 8"
        service.publish(2, before=1, expects="of f-f+2")
        versions.look()
        assert names(versions) == ("f-f+2", "f-f", None)

    def test_another_reason_is_said_again(self, service: Service) -> None:
        versions = service.start()
        service.publish(1, before=0)
        service.faults["f-f+1"] = OSError("the disk is gone")
        versions.look()
        service.faults["f-f+1"] = RuntimeError("out of memory")
        versions.look()
        del service.faults["f-f+1"]
        versions.look()
        assert service.told == [
            "version f-f+1 is refused: OSError: the disk is gone",
            "version f-f+1 is refused: RuntimeError: out of memory",
            "version f-f+1 answers, f-f before",
        ]

    def test_storage_that_is_away_changes_nothing(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        versions = service.start()

        def away(_index: Index) -> None:
            raise ConnectionError("no route")

        with monkeypatch.context() as patched:
            patched.setattr(Index, "manifest", away)
            versions.look()
            versions.look()
        assert service.told == ["the index cannot be read: ConnectionError: no route"]
        assert names(versions) == ("f-f", None, None)
        versions.look()
        assert versions.refused is None

    def test_never_more_than_two_are_loaded(self, service: Service) -> None:
        versions = service.start()
        service.publish(1, before=0)
        versions.look()
        service.publish(2, before=1)
        before = {}

        def load(arguments: ServeArguments) -> Any:
            before["previous"] = versions.previous
            return Retriever(manifest_of(service.index, arguments.version))

        versions._loader = load
        versions.look()
        assert before == {"previous": None}, "the oldest goes before the newest comes"
        assert names(versions) == ("f-f+2", "f-f+1", None)


class TestStarting:
    def test_the_newest_that_passes_is_served(self, service: Service) -> None:
        """Otherwise a replica that is replaced would not come back, and the others would go one by one."""
        service.publish(1, before=0, expects="of f-f+1")
        service.publish(2, before=1, expects="something else")
        service.publish(3, before=2, expects="something else")
        versions = service.start()
        assert names(versions)[0] == "f-f+1"
        assert [line.partition(":")[0] for line in service.told] == [
            "version f-f+3 is refused",
            "version f-f+2 is refused",
        ]

    def test_a_chosen_version_is_served_or_nothing(self, service: Service) -> None:
        service.publish(1, before=0, expects="something else")
        service.publish(2, before=1, expects="of f-f+2")
        assert names(service.start(version=2))[0] == "f-f+2"
        assert not ServeArguments(index="index", version=2).follows
        with pytest.raises(UserError, match="'something else' was the best when it was published"):
            service.start(version=1)

    def test_nothing_passes(self, service: Service) -> None:
        service.faults["f-f"] = UserError("its model is not supported")
        with pytest.raises(UserError, match="its model is not supported"):
            service.start()


class TestGoingBack:
    def test_every_searcher_follows_and_stays_until_something_newer_comes(self, service: Service) -> None:
        versions, late = service.start(), None
        service.publish(1, before=0)
        versions.look()
        service.publish(2, before=1)
        versions.look()
        assert roll_back(service.index.uri) == ("f-f+1", "f-f+2")
        for _ in range(3):
            versions.look()
        assert names(versions) == ("f-f+1", "f-f+2", None)
        assert service.loaded == ["f-f", "f-f+1", "f-f+2"], "it was still loaded"
        late = service.start()
        late.look()
        assert names(late) == ("f-f+1", None, None), "a searcher that starts later goes back, too"
        service.publish(3, before=1)
        for each in (versions, late):
            each.look()
            assert names(each) == ("f-f+3", "f-f+1", None)

    def test_what_it_still_had_to_finish_is_finished_first(self, service: Service) -> None:
        versions = service.start()
        first: Any = versions.current.answers
        service.publish(1, before=0)
        versions.look()
        roll_back(service.index.uri)
        versions.look()
        assert first.is_joined and names(versions) == ("f-f", "f-f+1", None)

    def test_going_back_twice_is_no_way_to_go_back_further(self, service: Service) -> None:
        """A request that is sent again must not do more than the first."""
        service.publish(1, before=0)
        service.publish(2, before=1)
        roll_back(service.index.uri)
        with pytest.raises(UserError, match="version 1 of .* is what it was rolled back to, from 2; `zerogr update"):
            roll_back(service.index.uri)

    def test_there_is_nothing_before_the_beginning(self, service: Service) -> None:
        with pytest.raises(UserError, match="has no version before this one; only updates make versions"):
            roll_back(service.index.uri)
