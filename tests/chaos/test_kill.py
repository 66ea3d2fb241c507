"""Processes that die without a word, at the worst moment. What a rerun makes must be what an undisturbed run makes, and
nothing that was finished may be made again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import attempts
from jobs.cli import main
from tests import tiny
from tests.chaos.settings import LANGUAGE_MODEL
from tests.processes import command_line, descendants, kill_with_descendants
from tests.published import File, contents, files
from zerogr.docids.stage import FOLDER
from zerogr.index.index import Index, shards_in
from zerogr.index.stage import RETRIEVER
from zerogr.store import storage

pytestmark = [pytest.mark.integration]

DEADLINE_S = 900
LATEST = f"{RETRIEVER.work[0]}/checkpoints/latest.json"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 80 documents: as many shards, so that a stage can be caught in the middle."""
    rows = [
        {**row, "_id": f"{row['_id']}-{edition}", "text": f"{row['text']} Edition {edition} adds notes {edition * 7}."}
        for edition in range(2)
        for row in tiny.documents()
    ]
    return tiny.write_collection(tmp_path_factory.mktemp("documents"), rows)


def test_driver_killed_in_every_stage(documents: Path, tiny_model: Path, tmp_path: Path, local_ray: None) -> None:
    changes = {
        "corpus__shard_size": 1,
        "queries__num_queries_per_document": 2,
        "queries__num_spans_per_document": 2,
        "training__checkpoint_every": 4,
        "training__num_epochs": 6,
        "training__evaluate_every": 50,
    }
    whole, whole_config = _write(tmp_path / "whole", documents, tiny_model, **changes)
    torn, torn_config = _write(tmp_path / "torn", documents, tiny_model, **changes)
    assert main(["index", whole_config]) == 0

    _kill_driver(torn_config, when=lambda: len(shards_in(f"{torn}/{FOLDER}")) >= 2)
    in_docids = files(torn)
    assert 2 <= len(shards_in(f"{torn}/{FOLDER}")) < 80
    assert Index(torn).begun() == ["docids"]

    _kill_driver(torn_config, when=lambda: len(shards_in(f"{torn}/queries")) >= 2)
    in_queries = files(torn)
    assert 2 <= len(shards_in(f"{torn}/queries")) < 80
    _assert_not_made_again(in_docids, in_queries)

    _kill_driver(torn_config, when=lambda: storage.exists(storage.join(torn, LATEST)))
    in_training = files(torn)
    first_checkpoint = storage.read_json(storage.join(torn, LATEST))["step"]
    assert Index(torn).begun() == ["retriever"] and not storage.exists(f"{torn}/retriever")
    _assert_not_made_again(in_queries, in_training)

    assert 0 < first_checkpoint < Index(whole).require("retriever").counts["steps"]
    assert main(["index", torn_config]) == 0
    finished = files(torn)
    _assert_not_made_again(in_training, finished)

    folders = ("corpus", "docids", "queries", "trie", "retriever", "rejected")
    assert contents(torn, *folders) == contents(whole, *folders)
    for stage in ("corpus", "docids", "queries", "trie", "retriever"):
        one, other = Index(whole).require(stage), Index(torn).require(stage)
        assert (one.fingerprint, one.files) == (other.fingerprint, other.files)
        assert _without_times(one.counts) == _without_times(other.counts)


def test_driver_told_to_end(documents: Path, tiny_model: Path, tmp_path: Path, local_ray: None) -> None:
    index, config = _write(tmp_path / "index", documents, tiny_model, corpus__shard_size=1)
    assert main(["corpus", config]) == 0
    with _driver(config) as driver:
        _wait(lambda: len(shards_in(f"{index}/{FOLDER}")) >= 2, unless=lambda: driver.poll() is not None)
        driver.terminate()
        assert driver.wait(timeout=DEADLINE_S) == 1
    log = Path(config).with_name("driver.log").read_text()
    assert log.splitlines()[-1] == (
        "zerogr: told to end by SIGTERM; what is published is kept, and the same command goes on from there"
    )
    assert "SIGTERM received" not in log and "Traceback" not in log
    begun = files(index)
    assert 2 <= len(shards_in(f"{index}/{FOLDER}")) < 80
    assert main(["docids", config]) == 0
    _assert_not_made_again(begun, files(index))
    assert Index(index).require("docids").counts["rows"] == 80


@pytest.mark.parametrize(
    "changes", [{"corpus__shard_size": 1}, {"corpus__shard_size": 4, **LANGUAGE_MODEL}], ids=["fake", "transformers"]
)
def test_engine_actor_killed(
    changes: dict[str, Any], documents: Path, tiny_model: Path, tmp_path: Path, local_ray: None
) -> None:
    num_shards_of_all = 80 // changes["corpus__shard_size"]
    whole, whole_config = _write(tmp_path / "whole", documents, tiny_model, **changes)
    torn, torn_config = _write(tmp_path / "torn", documents, tiny_model, **changes)
    for command in ("corpus", "docids"):
        assert main([command, whole_config]) == 0
    assert main(["corpus", torn_config]) == 0

    killed: list[str] = []

    def kill_actors() -> None:  # the stage's counter too, as Ray does where memory is short
        _wait(lambda: len(shards_in(f"{torn}/{FOLDER}")) >= 2)
        killed.extend(_kill_actors("ray::MapWorker", "ray::Attempts"))
        killed.append(str(len(shards_in(f"{torn}/{FOLDER}"))))

    killer = threading.Thread(target=kill_actors)
    killer.start()
    assert main(["docids", torn_config]) == 0
    killer.join()
    *names, num_shards = killed
    assert {"ray::MapWorker", "ray::Attempts"} == {re.match(r"\w+::\w+", name)[0] for name in names}
    assert 2 <= int(num_shards) < num_shards_of_all
    assert contents(torn, "docids", FOLDER) == contents(whole, "docids", FOLDER)


def test_error_of_ray_itself(
    documents: Path,
    tiny_model: Path,
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(attempts, "MAX_RESTARTS", 0)
    index, config = _write(tmp_path / "index", documents, tiny_model, corpus__shard_size=1)
    assert main(["corpus", config]) == 0

    def kill_counter() -> None:
        _wait(lambda: len(shards_in(f"{index}/{FOLDER}")) >= 2)
        _kill_actors("ray::Attempts")

    killer = threading.Thread(target=kill_counter)
    killer.start()
    assert main(["docids", config]) == 1
    killer.join()
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("zerogr: stage 'docids' gave up: Ray ended with ") and len(last_line) < 500
    assert last_line.endswith("; what is published is kept, and the same command goes on from there")
    monkeypatch.undo()
    assert main(["docids", config]) == 0
    assert Index(index).require("docids").counts["rows"] == 80


def _kill_actors(*names: str) -> list[str]:
    """Kills the actors of this process's Ray whose command lines begin so; returns these."""
    killed = []
    for pid in descendants(os.getpid()):
        if (name := command_line(pid)).startswith(names):
            os.kill(pid, signal.SIGKILL)
            killed.append(name)
    return killed


def _write(folder: Path, documents: Path, model: Path, **changes: Any) -> tuple[str, str]:
    folder.mkdir()
    index = str(folder / "index")
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny.settings(index, documents, model, **changes)))
    return index, str(folder / "config.yaml")


def _without_times(counts: dict[str, Any]) -> dict[str, Any]:
    # The loss in the report is the mean over the steps of the run that finished.
    return {key: value for key, value in counts.items() if key not in ("useful_tokens_per_s", "loss")}


def _assert_not_made_again(before: dict[str, File], after: dict[str, File]) -> None:
    shards = {name: file for name, file in before.items() if name.endswith(".parquet")}
    assert shards
    assert {name: after[name] for name in shards} == shards


def _kill_driver(config: str, *, when: Callable[[], bool]) -> None:
    """Starts `python -m jobs.index`, kills it as soon as `when` holds, and then whatever it had started."""
    with _driver(config) as driver:
        _wait(when, unless=lambda: driver.poll() is not None)
        kill_with_descendants(driver.pid)
        assert driver.wait() == -signal.SIGKILL


@contextmanager
def _driver(config: str) -> Iterator[subprocess.Popen[bytes]]:
    log = Path(config).with_name("driver.log")
    with log.open("ab") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.index", config], stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield driver
        except BaseException:
            print(log.read_text(errors="replace"))
            raise
        finally:
            if driver.poll() is None:
                kill_with_descendants(driver.pid)
            driver.wait()


def _wait(until: Callable[[], bool], *, unless: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert not unless(), "the driver ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
