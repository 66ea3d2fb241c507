"""An S3 server that misbehaves: a proxy on loopback in front of a sound one."""

from __future__ import annotations

import http.client
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CODES = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "full": (507, "XMinioStorageFull"),
    "quota": (403, "QuotaExceeded"),
}
"""Status and S3 error code of the faults that are an answer."""
PASSING = ("500", "503", "reset", "lost", "cut", "slow")
"""Faults that asking again mends: `reset` breaks the connection before the request is carried out, `lost` after it, `cut` in
the middle of the answer's body; `slow` answers late."""
SLOW_S = 0.3


class FaultyS3(ThreadingHTTPServer):
    """Forwards requests to `target`, unless `fault` names a fault for (the method, the requests before it by method)."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.fault: Callable[[str, Counter[str]], str | None] = lambda method, before: None
        self.requests: list[tuple[str, str, str | None]] = []
        """(Method, path, fault) of every request so far."""
        self._lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that were killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def record(self, method: str, path: str) -> str | None:
        """Notes a request; returns the fault it meets."""
        with self._lock:
            fault = self.fault(method, Counter(earlier for earlier, _, _ in self.requests))
            self.requests.append((method, path, fault))
            return fault


@contextmanager
def faulty_s3(target: str) -> Iterator[FaultyS3]:
    """Runs the proxy for the length of a block."""
    server = FaultyS3(target)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=30)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3
    timeout = 60

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.record(self.command, self.path)
        if fault == "reset":
            self._reset()
        elif fault in CODES:
            status, code = CODES[fault]
            xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], xml.encode())
        else:
            if fault == "slow":
                time.sleep(SLOW_S)
            status, headers, content = self._forward(body)
            if fault == "lost":
                self._reset()
            elif fault == "cut" and content:
                self._answer(status, headers, content, sent=len(content) // 2)
                self._reset()
            else:
                self._answer(status, headers, content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        hop = ("connection", "transfer-encoding", "content-length")
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in hop]
        if self.command == "HEAD" and (length := response.getheader("Content-Length")):
            headers.append(("Content-Length", length))
        connection.close()
        return response.status, headers, content

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    def _reset(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        # No farewell: with a linger time of nothing, closing resets the connection.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
