"""Two drivers of one index, as processes: one works and the other is refused, whatever becomes of the first."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs.cli import main
from tests.chaos.race import race
from tests.chaos.settings import write_config
from tests.processes import running
from tests.published import contents
from zerogr.index.index import Index
from zerogr.index.lease import find_lease
from zerogr.store import storage

pytestmark = [pytest.mark.integration]

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(params=["disk", "object storage"])
def index(request: pytest.FixtureRequest, tmp_path: Path, s3_server: str) -> str:
    """The place of an index that is not there yet."""
    return str(tmp_path / "index") if request.param == "disk" else f"s3://zerogr/{tmp_path.name}"


@pytest.fixture
def config(index: str, collection: Path, tiny_model: Path, tmp_path: Path) -> str:
    return write_config(index, collection, tiny_model, tmp_path)


@pytest.fixture
def start(config: str, tmp_path: Path) -> Iterator[Start]:
    """Starts drivers that wait for the file `go`, each with a log of its own."""
    with ExitStack() as drivers:
        number = 0

        def start(expiry_s: float = 120) -> subprocess.Popen[bytes]:
            nonlocal number
            number += 1
            arguments = (str(tmp_path / "go"), str(expiry_s), "corpus", config)
            log = tmp_path / f"driver-{number}.log"
            return drivers.enter_context(running("tests.chaos.waiting_driver", *arguments, log=log))

        yield start


def last_line(log: Path) -> str:
    return log.read_text().splitlines()[-1]


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 900
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def corpus_of(index: str) -> dict[str, bytes]:
    return contents(index, "corpus", "rejected")


@pytest.fixture(scope="session")
def undisturbed_corpus(
    tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path
) -> dict[str, bytes]:
    index = str(tmp_path_factory.mktemp("undisturbed-corpus") / "index")
    assert main(["corpus", write_config(index, collection, tiny_model)]) == 0
    return corpus_of(index)


def test_started_together(index: str, config: str, tmp_path: Path, undisturbed_corpus: dict[str, bytes]) -> None:
    race(index, config, tmp_path / "drivers")
    assert corpus_of(index) == undisturbed_corpus
    assert Index(index).require("corpus").counts["rows"] == 40


def test_killed(
    index: str, config: str, start: Start, tmp_path: Path, undisturbed_corpus: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    driver = start()
    wait(lambda: Index(index).begun())
    assert main(["status", index]) == 0
    said = capsys.readouterr().out
    assert f"being changed by {os.uname().nodename}, process {driver.pid}, since 20" in said
    assert "waiting_driver.py" in said and "last heard of" in said
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert main(["status", index, "--json"]) == 0
    assert '"driver"' not in capsys.readouterr().out
    assert main(["corpus", config]) == 0, "the same host need not wait"
    assert corpus_of(index) == undisturbed_corpus
    assert find_lease(Index(index)).number == 2


def test_suspended(
    index: str, config: str, start: Start, tmp_path: Path, undisturbed_corpus: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    driver = start(expiry_s=10)
    wait(lambda: Index(index).begun())
    assert main(["corpus", config]) == 2
    assert f"process {driver.pid}" in capsys.readouterr().err
    os.kill(driver.pid, signal.SIGSTOP)
    assert main(["corpus", config, "--wait"]) == 0
    before = {name: storage.read_bytes(f"{index}/{name}") for name in storage.list_files(index)}
    assert corpus_of(index) == undisturbed_corpus
    (tmp_path / "go").touch()
    os.kill(driver.pid, signal.SIGCONT)
    assert driver.wait(timeout=900) == 1
    assert last_line(tmp_path / "driver-1.log").startswith(f"zerogr: the lease of '{index}' was lost after ")
    assert {name: storage.read_bytes(f"{index}/{name}") for name in storage.list_files(index)} == before


def test_told_to_end(index: str, config: str, start: Start, tmp_path: Path) -> None:
    driver = start()
    wait(lambda: Index(index).begun())
    driver.terminate()
    assert driver.wait(timeout=900) == 1
    assert last_line(tmp_path / "driver-1.log") == (
        "zerogr: told to end by SIGTERM; what is published is kept, and the same command goes on from there"
    )
    lease = find_lease(Index(index)).lease
    assert lease is not None and lease.released
    assert main(["corpus", config]) == 0
