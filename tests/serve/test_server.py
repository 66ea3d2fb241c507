"""HTTP in the process of `zerogr serve`, with a real server and a backend that decides how long a search takes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api import Answered, create_api
from serve.logs import logger
from serve.requests import SearchRequest
from serve.server import HttpServer, listen, log_file
from zerogr.errors import UserError

PATIENT_S = 120
LOGGERS = (logger, logging.getLogger("ray.serve"), logging.getLogger("uvicorn"))


class Backend:
    """Searches for "wait" end when they are let go, or cancelled."""

    log_queries = False

    def __init__(self) -> None:
        self.may_end, self.has_begun, self.was_cancelled = threading.Event(), threading.Event(), threading.Event()
        self.reasons: list[str] = []

    async def search(self, request: SearchRequest) -> Answered:
        if "wait" in request.texts:
            self.has_begun.set()
            try:
                while not self.may_end.is_set():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise
        return Answered([[] for _ in request.texts], "v1")

    def observe(self, *_: Any) -> None:
        """Counts nothing."""

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)

    def metrics(self) -> bytes:
        return b""


class Running:
    """A server and what it answers with."""

    def __init__(self, route_prefix: str = "/", **http_options: Any) -> None:
        self.backend = Backend()
        api = create_api(self.backend, most_requests=2)  # type: ignore[arg-type]
        listening = listen({"host": "127.0.0.1", "port": 0, **http_options})
        self.port = listening.getsockname()[1]
        self.server = HttpServer(api, listening, route_prefix, http_options)
        self.server.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENT_S)

    def post(self, query: str) -> httpx.Response:
        return self.client.post("/search", json={"query": query})

    def in_thread(self, query: str) -> tuple[threading.Thread, list[httpx.Response]]:
        """Sends a search from another thread; its response is in the list when the thread has ended."""
        responses: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: responses.append(self.post(query)))
        thread.start()
        return thread, responses

    def close(self) -> None:
        self.backend.may_end.set()
        self.client.close()
        self.server.stop()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


def raw(port: int, body: bytes, length: int) -> socket.socket:
    """Returns a connection over which a search of so many bytes was begun."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"POST /search HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s" % (length, body))
    return connection


class TestHangUps:
    def test_a_search_whose_client_has_left_is_cancelled(self, running: Running) -> None:
        body = b'{"query": "wait"}'
        connection = raw(running.port, body, len(body))
        assert running.backend.has_begun.wait(PATIENT_S)
        assert not running.backend.was_cancelled.is_set()
        connection.close()
        assert running.backend.was_cancelled.wait(PATIENT_S)
        assert running.post("wing").status_code == 200, "its place is free"

    def test_one_that_leaves_in_the_middle_of_its_body_holds_no_place(
        self, running: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(4):  # twice as many as there are places
            raw(running.port, b'{"query": ', 100).close()
        deadline = time.monotonic() + PATIENT_S
        while (status := running.post("wing").status_code) != 200:
            assert status == 503 and time.monotonic() < deadline
        assert "Traceback" not in caplog.text and "failed" not in caplog.text

    def test_one_that_stays_gets_its_answer(self, running: Running) -> None:
        thread, responses = running.in_thread("wait")
        assert running.backend.has_begun.wait(PATIENT_S)
        running.backend.may_end.set()
        thread.join()
        assert responses[0].status_code == 200 and not running.backend.was_cancelled.is_set()


def test_more_than_are_allowed_at_a_time_are_refused_but_probes_are_not(running: Running) -> None:
    others = [running.in_thread("wait") for _ in range(2)]
    deadline = time.monotonic() + PATIENT_S
    while (response := running.post("wing")).status_code == 200:  # until both have come
        assert time.monotonic() < deadline
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert response.json() == {"error": "too many searches are waiting; try again soon"}
    assert set(running.backend.reasons) == {"busy"} and response.headers["x-request-id"]
    assert running.client.get("/healthz").status_code == 200
    running.backend.may_end.set()
    for thread, responses in others:
        thread.join()
        assert responses[0].status_code == 200
    assert running.post("wing").status_code == 200


def test_what_is_underway_at_the_end_is_answered(running: Running) -> None:
    thread, responses = running.in_thread("wait")
    assert running.backend.has_begun.wait(PATIENT_S)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    while True:  # the door is shut at once
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", running.port)) != 0:
                break
    assert not running.server.is_over.is_set()
    running.backend.may_end.set()
    thread.join()
    stopping.join()
    assert responses[0].status_code == 200 and running.server.is_over.is_set()
    running.server.check()


def test_an_application_under_a_prefix() -> None:
    running = Running("/wings")
    assert running.client.get("/wings/healthz").json() == {"status": "alive"}
    assert running.client.get("/wings/").text.startswith("<!doctype html>")
    assert running.client.get("/healthz").status_code == 404
    running.close()


def test_a_request_that_is_no_http_ends_nothing(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"\xff\xfe nonsense\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert running.post("wing").status_code == 200


class TestOptions:
    def test_what_is_ray_serves_alone_is_refused(self) -> None:
        message = (
            "http_options.request_timeout_s of the config file is for Ray Serve's proxies, .* keep_alive_timeout_s"
        )
        with pytest.raises(UserError, match=message):
            Running(request_timeout_s=5)

    def test_a_certificate_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="HTTP cannot be served: .*No such file"):
            Running(ssl_certfile=str(tmp_path / "absent.pem"), ssl_keyfile=str(tmp_path / "absent.key"))


class TestLogFile:
    def test_lines_go_into_it_and_nowhere_else(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        before = [(each.level, each.propagate, list(each.handlers)) for each in LOGGERS]
        with ExitStack() as stack:
            stack.enter_context(log_file(tmp_path / "serve", "wings"))
            running = Running()
            stack.callback(running.close)
            running.client.post("/search", json={"query": "private"}, headers={"x-request-id": "followed-1"})
            logging.getLogger("ray.serve").warning("a replica is slow")
            try:
                raise ValueError("a bug")
            except ValueError:
                logger.exception("a request failed")
        assert capfd.readouterr() == ("", "")
        text = (tmp_path / "serve" / "ingress_wings.log").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        [line] = [line for line in lines if line.get("request_id") == "followed-1"]
        assert (line["status"], line["num_queries"], line["application"]) == (200, 1, "wings")
        assert (line["levelname"], line["deployment"]) == ("INFO", "wings_Ingress") and "private" not in text
        assert "a replica is slow" in [line["message"] for line in lines]
        [failed] = [line for line in lines if line["levelname"] == "ERROR"]
        assert failed["message"] == "a request failed" and "ValueError: a bug" in failed["exc_text"]
        after = [(each.level, each.propagate, list(each.handlers)) for each in LOGGERS]
        assert after == before
