"""Two drivers that begin the same stage at once, with other inputs: one has it, the other one is refused."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zerogr.index.index import Index, StageRefused
from zerogr.store import storage


def begin_at_once(uri: str, drivers: int = 2) -> list[bool]:
    """Returns, of every driver, whether it has the stage."""
    together = threading.Barrier(drivers)

    def begin(driver: int) -> bool:
        together.wait()
        try:
            return Index(uri).begin("corpus", {"source": driver})
        except StageRefused:
            return False

    with ThreadPoolExecutor(drivers) as threads:
        return list(threads.map(begin, range(drivers)))


@pytest.mark.parametrize("has_links", [True, False])
def test_on_a_disk(tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    for attempt in range(100):
        uri = str(tmp_path / str(attempt))
        won = begin_at_once(uri)
        assert sum(won) == 1
        assert storage.read_json(Index(uri).path("work", "corpus.json"))["inputs"] == {"source": won.index(True)}


@pytest.mark.integration
def test_on_object_storage(s3_server: str) -> None:
    for attempt in range(20):
        uri = f"s3://zerogr/drivers/{attempt}"
        won = begin_at_once(uri)
        assert sum(won) == 1
        assert storage.read_json(Index(uri).path("work", "corpus.json"))["inputs"] == {"source": won.index(True)}


def test_with_the_same_inputs_both_go_on(tmp_path: Path) -> None:
    assert Index(str(tmp_path)).begin("corpus", {"source": 1}) and Index(str(tmp_path)).begin("corpus", {"source": 1})


def test_a_file_that_is_empty_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Without hard links a file is made empty, and then replaced; who reads it in between must not take it for damaged."""
    file = tmp_path / "claim.json"
    file.touch()
    later = threading.Timer(0.1, lambda: storage.write_json(str(file), {"source": 1}))
    later.start()
    assert storage.read_json(str(file)) == {"source": 1}
    later.join()
