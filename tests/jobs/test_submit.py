"""`zerogr submit` against a cluster of its own on this machine, with a job server, as `ray up` would start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from tests import tiny
from tests.processes import kill_with_descendants
from tests.published import contents
from zerogr.index.index import Index

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """The address of the job server of a cluster that shares nothing with the other tests' Ray."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    bin_folder = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # socket paths must stay short
        head = subprocess.Popen(
            [
                str(bin_folder / "ray"), "start", "--head", "--block", "--include-dashboard=true", "--num-cpus=6",
                "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
                f"--object-store-memory={200 * 2**20}", *[f"--{name}={port}" for name, port in ports.items()],
            ],
            env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        try:
            deadline = time.monotonic() + 120
            while not _answers(f"{address}/api/version"):
                assert head.poll() is None and time.monotonic() < deadline, "the cluster did not start"
                time.sleep(0.2)
            yield address
        finally:
            kill_with_descendants(head.pid)  # to end politely takes it half a minute
            head.wait()


def test_runs_the_whole_job(
    job_server: str,
    tmp_path: Path,
    collection: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # the paths of a config are relative to where it is submitted
    config = _write(tmp_path, "index", collection, tiny_model, training__num_epochs=1)
    assert main(["submit", config, "--address", job_server]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("raysubmit_") and len(printed.out.splitlines()) == 1
    assert "docids: done in" in printed.err and "retriever: done in" in printed.err
    index = Index(str(tmp_path / "index"))
    assert index.require("retriever").counts["steps"] > 0
    assert index.require("trie").counts["rows"] == 40

    before = contents(index.uri, "docids", "queries", "trie", "retriever")
    assert main(["submit", config, "--address", job_server]) == 0
    assert "retriever: done before" in capsys.readouterr().err
    assert contents(index.uri, "docids", "queries", "trie", "retriever") == before


def test_mistake_comes_back_as_one_sentence(
    job_server: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    config = _write(tmp_path, str(tmp_path / "index"), missing, tiny_model)
    assert main(["submit", config, "--address", job_server]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("zerogr: job raysubmit_") and "FAILED" in sentence
    assert f"corpus.source '{missing}' does not exist" in sentence


def test_no_cluster(tmp_path: Path, collection: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = _free_ports(1)
    config = _write(tmp_path, str(tmp_path / "index"), collection, tiny_model)
    assert main(["submit", config, "--address", f"http://127.0.0.1:{port}"]) == 2
    assert f"no Ray cluster answers at 'http://127.0.0.1:{port}'" in capsys.readouterr().err


def _write(folder: Path, index: str, collection: Path, model: Path, **changes: Any) -> str:
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny.settings(index, collection, model, **changes)))
    return str(folder / "config.yaml")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
