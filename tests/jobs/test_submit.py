"""`zerogr submit` against a cluster of its own on this machine, with a job server, as `ray up` would start it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs.submit
from jobs.cli import main
from jobs.parser import build_parser, spelt
from jobs.submit import STOP_WAIT_S, _follow, _taken, job_of, packed, submit
from jobs.train import PATIENCE_S
from tests import tiny
from tests.processes import kill_with_descendants
from tests.published import contents
from zerogr.errors import Fault, UserError
from zerogr.index.index import Index
from zerogr.store import storage


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
            deadline = time.monotonic() + 600
            while not _answers(f"{address}/api/version"):
                assert head.poll() is None and time.monotonic() < deadline, "the cluster did not start"
                time.sleep(0.2)
            yield address
        finally:
            kill_with_descendants(head.pid)  # to end politely takes it half a minute
            head.wait()


@pytest.mark.integration
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


@pytest.mark.integration
def test_measures_and_updates(
    job_server: str, tmp_path: Path, tiny_index: str, collection: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What is measured lands where it was wanted, not in the job's own folder; a local list of documents travels along."""
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_index, "index")
    send = ["submit", "--address", job_server, "--"]
    assert (
        main(
            [
                *send,
                "evaluate",
                "index",
                "--dataset",
                str(collection),
                "--strategy",
                "greedy",
                "--baseline",
                "--out",
                "out",
            ]
        )
        == 0
    )
    assert "zerogr-greedy" in capsys.readouterr().err
    assert f"stop it:   ray job stop --address {job_server} raysubmit_" in caplog.text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())
    (tmp_path / "gone.txt").write_text("coffee-3\n")
    assert main([*send, "update", "index", "--remove", "gone.txt"]) == 0
    assert Index("index").manifest()["version"]["number"] == 1


@pytest.mark.integration
def test_a_stopped_job_keeps_a_checkpoint(
    job_server: str, tmp_path: Path, tiny_index: str, collection: Path, tiny_model: Path
) -> None:
    """Ray kills what it stops after three seconds; a checkpoint takes longer, and `submit` asks for that time."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    index = tmp_path / "index"
    shutil.copytree(tiny_index, index)
    Index(str(index)).rebuild("retriever")
    config = _write(
        tmp_path, str(index), collection, tiny_model, training__num_epochs=1000, training__checkpoint_every=10**6
    )
    job = job_of(build_parser().parse_args(["submit", config, "--address", job_server]))
    job_id, client = submit(job, job_server, wait=False), JobSubmissionClient(job_server)
    log = index / "work" / "runs" / "retriever.jsonl"
    deadline = time.monotonic() + 900
    while not log.exists():
        assert client.get_job_status(job_id) in (JobStatus.PENDING, JobStatus.RUNNING) and time.monotonic() < deadline
        time.sleep(0.2)
    client.stop_job(job_id)
    while not client.get_job_status(job_id).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.get_job_status(job_id) == JobStatus.STOPPED
    assert "told to end by SIGTERM; the checkpoint after step" in client.get_job_logs(job_id)
    assert storage.list_files(str(index / "work" / "training" / "checkpoints"))


@pytest.mark.integration
def test_mistake_comes_back_as_one_sentence(
    job_server: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere"
    config = _write(tmp_path, str(tmp_path / "index"), missing, tiny_model)
    assert main(["submit", config, "--address", job_server]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("zerogr: job raysubmit_") and "FAILED" in sentence
    assert f"corpus.source '{missing}' does not exist" in sentence


@pytest.mark.integration
def test_no_cluster(tmp_path: Path, collection: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = _free_ports(1)
    config = _write(tmp_path, str(tmp_path / "index"), collection, tiny_model)
    assert main(["submit", config, "--address", f"http://127.0.0.1:{port}"]) == 2
    assert f"no Ray cluster answers at 'http://127.0.0.1:{port}'" in capsys.readouterr().err


def test_a_missing_token_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "config.yaml").write_text("index: s3://bucket/index\n")
    with HTTPServer(("127.0.0.1", 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert main(["submit", str(tmp_path / "config.yaml"), "--address", address]) == 2
        server.shutdown()
    assert f"zerogr: the Ray cluster at '{address}' does not let us in; set RAY_AUTH_MODE" in capsys.readouterr().err


class Job:
    """A client of one job, which answers as it is told."""

    def __init__(self, *answers: str | BaseException) -> None:
        self.answers = iter(answers)
        self.sent: dict[str, Any] = {}

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        return "raysubmit_1"

    def get_job_status(self, job_id: str) -> Any:
        from ray.job_submission import JobStatus

        answer = next(self.answers)
        if not isinstance(answer, str):
            raise answer
        return JobStatus(answer)

    def get_job_logs(self, job_id: str) -> str:
        return "one line\n"


def test_a_tunnel_that_breaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(jobs.submit.time, "sleep", lambda _: None)
    with pytest.raises(
        Fault, match="'here' no longer answers .gone.; job raysubmit_1 may go on: open the tunnel again"
    ):
        _follow(Job("RUNNING", "RUNNING", ConnectionError("gone")), "here", "raysubmit_1")
    assert capsys.readouterr().err == "one line\n"  # once


class Starting(Job):
    """One whose cluster takes no job before it has been asked so often."""

    def __init__(self, refusals: int, why: str = "Request failed: No available agent to submit job") -> None:
        super().__init__()
        self.refusals, self.why = refusals, why

    def submit_job(self, **sent: Any) -> str:
        self.refusals -= 1
        if self.refusals >= 0:
            raise RuntimeError(self.why)
        return super().submit_job(**sent)


def test_a_cluster_that_has_only_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.submit.time, "sleep", lambda _: None)
    assert _taken(Starting(3), "here", entrypoint="x") == "raysubmit_1"
    with pytest.raises(Fault, match="cluster at 'here' has not taken the job: out of disk; look at `ray status`"):
        _taken(Starting(1, "out of\n disk"), "here", entrypoint="x")
    monkeypatch.setattr(jobs.submit, "STARTING_S", -1.0)
    with pytest.raises(Fault, match="No available agent"):
        _taken(Starting(1), "here", entrypoint="x")


def test_ctrl_c_leaves_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Job("RUNNING", KeyboardInterrupt())
    monkeypatch.setattr(jobs.submit, "_client", lambda address: client)
    monkeypatch.setattr(jobs.submit.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "config.yaml").write_text("index: s3://bucket/index\n")
    config, at = str(tmp_path / "config.yaml"), "http://there:8265"
    assert main(["submit", config, "--address", at, "--gpus", "1", "--env", "HF_TOKEN"]) == 1
    told = capsys.readouterr().err
    assert (
        "job raysubmit_1 goes on without being followed; `ray job stop --address http://there:8265 raysubmit_1`" in told
    )
    assert (
        client.sent["entrypoint_num_gpus"] == 1 and client.sent["entrypoint"] == "python -m jobs.cli index config.yaml"
    )
    assert client.sent["runtime_env"]["env_vars"] == {
        "HF_TOKEN": "secret",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    }


def test_there_is_time_for_a_checkpoint() -> None:
    assert STOP_WAIT_S > PATIENCE_S


def test_only_what_writes_or_measures_is_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["search", "index", "query"], ["serve", "index"], ["submit", "c.yaml"]):
        assert main(["submit", "--address", "http://127.0.0.1:1", "--", *arguments]) == 2
        assert f"zerogr: '{arguments[0]}' is nothing to submit; it may be ablate, corpus, " in capsys.readouterr().err
    assert main(["submit", "--address", "http://127.0.0.1:1", "--set", "seed=1", "--", "ablate", "c.yaml"]) == 2
    assert "give them behind it, after the --" in capsys.readouterr().err


def test_variables_go_by_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("index: s3://bucket/index\n")
    assert (
        main(["submit", str(tmp_path / "config.yaml"), "--address", "http://127.0.0.1:1", "--env", "TOKEN=secret"]) == 2
    )
    error = capsys.readouterr().err
    assert "--env takes the name of a variable that is set, and 'TOKEN' is not one" in error and "secret" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "update",
            "s3://b/i",
            "--add",
            "s3://b/x.jsonl",
            "--method=replay",
            "--set",
            "update.max_forgetting=.1",
            "--compact",
        ],
        [
            "evaluate",
            "i",
            "--dataset",
            "d",
            "--strategy",
            "beam",
            "greedy",
            "--baseline",
            "--run",
            "a",
            "b",
            "--k",
            "3",
        ],
        ["train", "c.yaml", "--recipe", "docid_generator", "--rebuild", "trie", "--rebuild", "corpus"],
        ["distil", "c.yaml", "--rebuild"],
        ["study", "dynamic", "c.yaml", "--json"],
    ],
)
def test_a_command_is_spelt_as_it_was_meant(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    again = build_parser().parse_args(spelt(options))
    assert {**vars(again), "parser": None} == {**vars(options), "parser": None}


class TestPacked:
    """A job runs elsewhere: no path of it may be relative to where it was submitted."""

    def test_a_configuration_travels_as_it_was_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("config.yaml").write_text("index: mine\n")
        Path("job").mkdir()
        assert (
            self._packed("config.yaml", "--set=seed=7", "--rebuild=trie") == "jobs.cli index config.yaml --rebuild=trie"
        )
        written = yaml.safe_load(Path("job", "config.yaml").read_text())
        assert written["index"] == str(tmp_path / "mine") and written["seed"] == 7

    def test_places_of_this_machine_are_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("job").mkdir()
        line = self._packed(
            "--", "evaluate", "s3://b/i", "--dataset=d", "--out", "o", "--run", "a b.run", "s3://b/c.run"
        )
        here = tmp_path
        assert (
            line == f"jobs.cli evaluate s3://b/i --dataset={here}/d --run '{here}/a b.run' s3://b/c.run --out={here}/o"
        )

    def test_the_list_of_documents_travels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("job").mkdir()
        with pytest.raises(UserError, match="'gone.txt' cannot be read"):
            self._packed("--", "update", "i", "--remove", "gone.txt")
        Path("gone.txt").write_text("a\n")
        assert self._packed("--", "update", "i", "--remove", "gone.txt").endswith("/i --remove=remove.txt")
        assert Path("job", "remove.txt").read_text() == "a\n"

    @staticmethod
    def _packed(*arguments: str) -> str:
        options = build_parser().parse_args(["submit", "--address=x", *arguments])
        return packed(job_of(options), Path("job")).removeprefix("python -m ")


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
