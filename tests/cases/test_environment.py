"""Odd environments, in which a command ended with a traceback, hung, or said nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from serve.run import _wait_for_answer
from tests import tiny
from tests.processes import REPOSITORY, kill_with_descendants
from zerogr.config.file import load_config
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.store import cache


class TestSet:
    """06: a value behind ` #` is a comment to YAML, and was lost."""

    @pytest.mark.parametrize("text", ["Find C# code #1 of its kind", "#1", "a # b", "see: #3"])
    def test_text_is_whole(self, text: str) -> None:
        assert load_config(None, [f"instruction={text}"]).instruction == text

    def test_paths(self) -> None:
        assert load_config(None, ["index=runs/a #2"]).index.endswith("runs/a #2")

    def test_other_values_are_understood(self) -> None:
        changes = [
            "training.num_epochs=2",
            "corpus.max_documents=null",
            "evaluation.baselines=[bm25]",
            "queries.on_topic=false",
        ]
        config = load_config(None, [*changes, "training.learning_rate=1e-4", "instruction='quoted: #1'"])
        assert (config.training.num_epochs, config.corpus.max_documents, config.queries.on_topic) == (2, None, False)
        assert config.evaluation.baselines == ["bm25"] and config.training.learning_rate == 1e-4
        assert config.instruction == "quoted: #1"

    @pytest.mark.parametrize("text", ["2024", "yes", "2024-01-01", "1e-4", "12:30:00", "0x1F"])
    def test_text_that_yaml_reads_as_something_else(self, text: str) -> None:
        assert load_config(None, [f"instruction={text}"]).instruction == text

    @pytest.mark.parametrize("text", ["yes", "true"])
    def test_a_number_is_no_truth(self, text: str) -> None:
        with pytest.raises(UserError, match="corpus: max_documents is true; it must be a number"):
            load_config(None, [f"corpus.max_documents={text}"])

    def test_a_number_with_a_remark_is_no_number(self) -> None:
        with pytest.raises(UserError, match="training.num_epochs is '2 #twice'"):
            load_config(None, ["training.num_epochs=2 #twice"])


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("index: a\ntraining:\n  num_epochs: 2\n  num_epochs: 3\n")
    with pytest.raises(UserError, match="the key 'num_epochs' stands in line 3 and again in line 4"):
        load_config(str(tmp_path / "c.yaml"))


class TestReadOnlyFileSystems:
    """07: errno 30 is no PermissionError to Python."""

    @pytest.fixture
    def read_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refuse)

    def test_the_index(self, tmp_path: Path, read_only: None, capsys: pytest.CaptureFixture[str]) -> None:
        source = Path(__file__).parent / "inputs" / "07-read-only-file-system" / "docs.jsonl"
        index = str(tmp_path / "index")
        assert (
            main(
                [
                    "corpus",
                    str(source.parent / "config.yaml"),
                    "--set",
                    f"index={index}",
                    "--set",
                    f"corpus.source={source}",
                ]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert index in error and "cannot be written: read-only file system; choose another place" in error

    def test_the_cache(self, tmp_path: Path, read_only: None) -> None:
        with pytest.raises(UserError, match="read-only file system; choose another place .* the cache in ZEROGR_CACHE"):
            cache.cached(tmp_path / "cache" / "models" / "x", lambda folder: None)


def test_a_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "cache").write_text("x")
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    assert main(["doctor"]) == 2
    told = capsys.readouterr().out
    assert "it lies in a file; set ZEROGR_CACHE to a folder" in told and "please report it" not in told


class TestProxies:
    """08: a service asked a proxy whether it was alive itself."""

    @pytest.fixture
    def service(self) -> Iterator[str]:
        class Alive(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"status": "alive"}).encode())

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        server = HTTPServer(("127.0.0.1", 0), Alive)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        server.server_close()

    @pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
    def test_an_own_address_is_asked_directly(
        self, service: str, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
        _wait_for_answer(service, timeout_s=10)


@pytest.mark.integration
def test_a_cluster_that_is_gone_is_named(tmp_path: Path, collection: Path, tiny_model: Path) -> None:
    """13: Ray itself tries for a quarter of an hour, and then shows a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny.settings(str(tmp_path / "index"), collection, tiny_model)))
    assert main(["corpus", str(config)]) == 0
    for command in ("docids", "queries"):
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", command, str(config)],
            cwd=REPOSITORY, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"RAY_ADDRESS is '{address}', and no Ray cluster answers there" in done.stderr.splitlines()[-1]


@pytest.mark.integration
def test_nobody_is_served_by_a_cluster_that_is_gone(tiny_index: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "serve", tiny_index],
        cwd=REPOSITORY, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "RAY_ADDRESS is '127.0.0.1:1', and no Ray cluster answers there" in done.stderr.splitlines()[-1]


@pytest.mark.integration
def test_ctrl_c_while_training_says_what_to_do(
    tmp_path: Path, tiny_index: str, collection: Path, tiny_model: Path
) -> None:
    """09: Ray Train ends the process on its own, without a word."""
    shutil.copytree(tiny_index, tmp_path / "index")
    Index(str(tmp_path / "index")).rebuild("retriever")
    settings = {"training__num_epochs": 1000, "training__checkpoint_every": 5}
    tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model, **settings)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "index", str(config)],
        cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        checkpoints = tmp_path / "index" / "work" / "training" / "checkpoints"
        deadline = time.monotonic() + 600
        while not list(checkpoints.glob("*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            kill_with_descendants(process.pid)
    own = [line for line in error.splitlines() if " pid=" not in line]  # workers of Ray's own may say what they like
    assert process.returncode == 1 and not any("Traceback" in line for line in own)
    assert own[-1] == "zerogr: interrupted; run the same command again to go on where it stopped"


class TestCommandLines:
    """What a terminal, a shell or a script may give: one sentence, and never a traceback."""

    @staticmethod
    def run(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, timeout=600,
        )  # fmt: skip

    @pytest.mark.parametrize("query", ["", "  ", b"\xff"])
    def test_queries_that_say_nothing(self, tmp_path: Path, query: str | bytes) -> None:
        done = self.run("search", str(tmp_path), query)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
        assert b"the query" in done.stderr

    @pytest.mark.parametrize("command", [["status"], ["search", "x"], ["corpus"]])
    def test_an_index_that_is_a_file(self, tmp_path: Path, command: list[str]) -> None:
        file = tmp_path / "index"
        file.write_text("x")
        source = Path(__file__).parent / "inputs" / "07-read-only-file-system" / "docs.jsonl"
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"index": str(file), "corpus": {"source": str(source)}}))
        name, *rest = command
        done = self.run(name, str(tmp_path / "config.yaml") if name == "corpus" else str(file), *rest)
        assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
        assert str(file).encode() in done.stderr

    def test_a_terminal_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("index: [ä\n", encoding="utf-8")
        done = self.run(
            "corpus", str(tmp_path / "c.yaml"), "--set", "instruction=ä", PYTHONIOENCODING="ascii", LC_ALL="C"
        )
        assert done.returncode == 2 and b"Traceback" not in done.stderr


class TestDoctor:
    def test_a_sound_configuration(self, tmp_path: Path, collection: Path, tiny_model: Path, capsys: Any) -> None:
        tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
        assert main(["doctor", str(tmp_path / "c.yaml"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["findings"]
        assert {"python", "torch", "ray", "cache", "index", "model", "corpus"} <= {each["subject"] for each in found}
        assert not [each for each in found if each["state"] == "fault"]
        assert any("of the first 40 rows 40 are documents" in each["text"] for each in found)

    def test_what_would_stop_a_run(
        self, tmp_path: Path, collection: Path, tiny_model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        monkeypatch.setattr("zerogr.network.ANSWERS_WITHIN_S", 0.1)
        (tmp_path / "c.jsonl").write_text('{"_id": "a", "text": "x"}\n{"_id": "b"}\n')
        tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
        tree["corpus"]["source"] = str(tmp_path / "c.jsonl")
        tree["retriever"]["model"] = str(tmp_path)
        tree["index"] = "/proc/index"
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
        assert main(["doctor", str(tmp_path / "c.yaml")]) == 2
        told = capsys.readouterr()
        assert "no Ray cluster answers there" in told.out and "holds no complete model" in told.out
        assert "empty_document: 1, such as b" in told.out and "'/proc/index" in told.out
        assert told.err.splitlines()[-1].endswith("would stop a run: ray, index, model")
