"""An update is killed at any of its writes: the old version answers, the rerun finishes, nothing is doubled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.jobs.updating import LENIENT, find_all
from zerogr.index.index import Index
from zerogr.index.versions import Live, Version

pytestmark = pytest.mark.slow

MORTAL = """
import os, sys
import pyarrow.parquet, ray, torch, transformers
from jobs.cli import main
import jobs.update, zerogr.editing.certify, zerogr.retriever
from zerogr.store import storage
left = 0
def counting(function):
    def call(uri, *arguments, **options):
        global left
        if "/index" in str(uri) and (left := left - 1) < 0:
            os.kill(os.getpid(), 9)
        return function(uri, *arguments, **options)
    return call
storage.write_bytes = counting(storage.write_bytes)
storage.create_json = counting(storage.create_json)
copy = storage._copy_local
storage._copy_local = lambda source, target: counting(lambda uri: copy(source, target))(target)
for line in sys.stdin:
    if not (child := os.fork()):
        left = int(line)
        os._exit(main(sys.argv[1:]))
    print("exit status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Reads numbers, and for each runs the command in a process that is killed before it writes more files than that."""


@contextmanager
def mortal(command: list[str], log: Path) -> Iterator[Callable[[int], int]]:
    """Yields a function that runs a command for so many writes and returns its exit status.

    One process imports what a command needs, once, and forks.
    """
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", MORTAL, *command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None and process.stdout is not None

        def run(num_writes: int) -> int:
            print(num_writes, file=process.stdin, flush=True)
            for line in process.stdout:  # the command has said something before
                if line.startswith("exit status "):
                    return int(line.split()[-1])
            raise AssertionError(log.read_text(errors="replace"))

        yield run
        process.stdin.close()


@pytest.mark.parametrize(("method", "stride"), [("none", 3), ("memit", 6)])
def test_at_any_write_the_old_version_answers_and_the_rerun_finishes(
    place: Path, method: str, stride: int, tmp_path: Path
) -> None:
    """Writes of the index are places to die: at the first, then a few further each time, from where the last run died."""
    command = ["update", str(place / "index"), "--add", str(place / "new.jsonl"), "--method", method]
    command += ["--set", LENIENT[0]]
    (tmp_path / "remove.txt").write_text("chess-0\n")
    command += ["--remove", str(tmp_path / "remove.txt")]
    before, deaths, num_writes = find_all(place), 0, 1
    with mortal(command, tmp_path / "log") as run:
        while (status := run(num_writes)) != 0:
            assert status == -9, (tmp_path / "log").read_text(errors="replace")
            deaths += 1
            num_writes += stride
            if Version.of(Index(str(place / "index")).manifest()).number == 0:
                assert find_all(place) == before
            assert deaths < 40
    assert deaths > 3
    now = find_all(place)
    assert sorted(now) == sorted(set(before) - {"chess-0"} | {f"bicycles-{i}" for i in range(8)})
    rows = [
        doc_id
        for table in Live(Index(str(place / "index"))).tables("docids", ["doc_id"])
        for doc_id in table.column(0).to_pylist()
    ]
    assert len(rows) == len(set(rows)) == 39
