"""The log of a service: JSON lines, each with the id of the request that it is about.

They are in Ray's log folder: a replica's in `serve/replica_<application>_<deployment>_<id>.log`, those of an ingress in the
process of `zerogr serve` in `serve/ingress_<application>.log`. A client may give a request's id in the header x-request-id; the
answer carries it back. One of another form than letters, digits and `. _ : -`, 128 at most, is not written into a log, and
another is made. What was searched for is not logged unless `log_queries` is set.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
LOGGING_CONFIG: dict[str, Any] = {"encoding": "JSON", "enable_access_log": False}
"""Of Ray Serve, for both deployments: the line of a search says more than Serve's own."""
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}

_request_id: ContextVar[str | None] = ContextVar("_request_id", default=None)

# A child of Serve's own logger, so that the lines reach the replica's log file.
logger = logging.getLogger("ray.serve.zerogr")


class _WithRequestId(logging.Filter):
    """Lets every line say which request it is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (current := _request_id.get()) is not None:
            record.request_id = current
        return True


class JsonLines(logging.Formatter):
    """Formats a line as Ray Serve does for a replica: the usual fields, and what else was said with it."""

    def __init__(self, application: str) -> None:
        """Formats those of the ingress of an application."""
        super().__init__()
        self._of = {"application": application, "deployment": f"{application}_Ingress"}

    def format(self, record: logging.LogRecord) -> str:
        said = {key: value for key, value in record.__dict__.items() if key not in _USUAL}
        at = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))},{record.msecs:03.0f}"
        line = {"levelname": record.levelname, "asctime": at, "message": record.getMessage(), **self._of, **said}
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


logger.addFilter(_WithRequestId("ray.serve.zerogr"))


def request_id() -> str | None:
    """Returns the id of the request that is being answered; None outside of one."""
    return _request_id.get()


def answer_as(chosen: str | None) -> None:
    """Says which request the current task answers, for one that came from another process."""
    _request_id.set(chosen)


class RequestIds:
    """Gives every request an id while the application behind it answers."""

    def __init__(self, app: ASGIApp, *, behind_proxy: bool) -> None:
        """Stands in front of `app`; Ray Serve's proxy makes an id for requests without one, and gives it back by itself."""
        self._app, self._behind_proxy = app, behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        is_sane = _SANE.fullmatch(given) is not None
        chosen = given if is_sane else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not (is_sane and self._behind_proxy):
                MutableHeaders(scope=message)[HEADER] = chosen
            await send(message)

        token = _request_id.set(chosen)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _request_id.reset(token)
