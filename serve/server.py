"""HTTP in the process of `zerogr serve`: what stands in the place of Ray Serve's proxy and ingress where Ray is our own.

A search then crosses one boundary between processes, not two, and two processes less share the cores (docs/serving.md).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.logs import JsonLines, logger
from zerogr.errors import UserError

OPTIONS = {
    "root_path": "root_path",
    "keep_alive_timeout_s": "timeout_keep_alive",
    "ssl_keyfile": "ssl_keyfile",
    "ssl_certfile": "ssl_certfile",
    "ssl_keyfile_password": "ssl_keyfile_password",
    "ssl_ca_certs": "ssl_ca_certs",
}
"""Ray Serve's `http_options` that are taken over -> uvicorn's name for them."""
KEEP_ALIVE_S = 90
"""Longer than a load balancer keeps a connection that nobody uses, so that it is not the server who ends it first."""
DRAINS_WITHIN_S = 20
"""Requests that are underway at the end have so long."""
LOG_BYTES, LOG_FILES = 100 * 2**20, 5
"""As Ray Serve keeps a replica's log."""


class HangUps:
    """Cancels what is done for a client that has left, as Ray Serve's proxy does."""

    def __init__(self, app: ASGIApp) -> None:
        """Stands in front of `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watching: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            answering.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watching
            if watching is not None:  # the body is over: nothing but the end can come
                await asyncio.wait([watching])
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                answering.cancel()
                await asyncio.sleep(0)  # where it ends
            elif not message.get("more_body", False):
                watching = asyncio.create_task(watch())
            return message

        answering = asyncio.ensure_future(self._app(scope, receive_and_watch, send))
        try:
            await asyncio.wait([answering])
            if not answering.cancelled():
                answering.result()
        finally:  # a server that stops cancels this, and with it what is done
            answering.cancel()
            if watching is not None:
                watching.cancel()


class HttpServer:
    """Answers HTTP with an application, in a thread of its own."""

    def __init__(self, app: ASGIApp, listening: socket.socket, route_prefix: str, http_options: dict[str, Any]) -> None:
        """Prepares it.

        Args:
            app: Answers.
            listening: A bound socket, which it closes at its end.
            route_prefix: Where the application is mounted.
            http_options: As `listen` took them.
        """
        options = {
            OPTIONS[name]: value for name, value in http_options.items() if name in OPTIONS and value is not None
        }
        mounted = app if route_prefix == "/" else Starlette(routes=[Mount(route_prefix.rstrip("/"), app)])
        self._listening = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                HangUps(mounted),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=DRAINS_WITHIN_S,
                **{"timeout_keep_alive": KEEP_ALIVE_S, **options},
            )
        )
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._failure: BaseException | None = None
        self.is_over = threading.Event()
        """Set when it answers nobody any more, or should not."""

    def start(self) -> None:
        """Returns when it listens.

        Raises:
            UserError: It cannot, such as without the certificate that its options name.
        """
        self._thread.start()
        while not self._server.started and not self.is_over.is_set():
            time.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raises UserError if it has ended by a fault."""
        if self._failure is not None:
            raise UserError(f"HTTP cannot be served: {self._failure}") from self._failure

    def stop(self) -> None:
        """Takes no more requests, and returns when those underway are answered."""
        self._server.should_exit = True
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._listening])
        except (Exception, SystemExit) as error:
            self._failure = error
        finally:
            self.is_over.set()


def listen(http_options: dict[str, Any]) -> socket.socket:
    """Returns a socket that has the address, so that nobody else gets it meanwhile.

    Args:
        http_options: As in a config file of Ray Serve, with host and port.

    Raises:
        UserError: Somebody has the address, or an option is Ray Serve's alone.
    """
    host, port = http_options["host"], http_options["port"]
    if unknown := [name for name in http_options if name not in {"host", "port", *OPTIONS}]:
        raise UserError(
            f"http_options.{unknown[0]} of the config file is for Ray Serve's proxies, which run on clusters alone; leave "
            f"it out. Allowed here: host, port, {', '.join(OPTIONS)}"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from error
    return listening


@contextmanager
def log_file(folder: Path, application: str) -> Iterator[None]:
    """Lets the lines of an application's ingress (`serve.logs`) go into a file and not to the terminal.

    So do uvicorn's, and those of Ray Serve's router, which is in this process too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ingress_{application}.log"
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(JsonLines(application))
    levels = {
        logger: logging.INFO,
        logging.getLogger("ray.serve"): logging.WARNING,
        logging.getLogger("uvicorn"): logging.INFO,
    }
    before = [(each, each.level, each.propagate, each.handlers) for each in levels]
    for each, level in levels.items():
        each.handlers, each.propagate = [handler], False
        each.setLevel(level)
    try:
        yield
    finally:
        for each, level, propagate, handlers in before:
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
        handler.close()
