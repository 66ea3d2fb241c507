"""Who may ask: a bearer token, read once from a file."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from zerogr.errors import UserError

OPEN = frozenset({"", "/", "/healthz", "/readyz"})
"""Paths that nobody needs a token for: the page holds nothing of the index, and probes have no secrets."""
ADMIN = "/admin/"
"""Begins the paths that change what is served; without a token they are closed."""
_SAYABLE = re.compile(r"[!-~]+")
"""What a header can carry without quoting: printable ASCII without spaces."""


def read_token(file: str) -> str:
    """Returns the token that a file holds, without the white space around it.

    Raises:
        UserError: There is no such file, it is empty, or no HTTP header can carry what it holds.
    """
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"token_file '{file}' cannot be read ({reason}); write the token into it, or leave it out"
        ) from None
    if not token:
        raise UserError(f"token_file '{file}' is empty; write the token into it, or leave it out")
    if not _SAYABLE.fullmatch(token):
        raise UserError(
            f"the token in token_file '{file}' has a space or a character that is not ASCII; make one with "
            "`openssl rand -hex 32`"
        )
    return token


class Guard:
    """The application behind it, for those who have the token."""

    def __init__(self, app: ASGIApp, token: str | None, refused: Callable[[str], None]) -> None:
        """Stands in front of `app`.

        Args:
            app: What is guarded.
            token: None leaves everything but the admin routes open.
            refused: Is told of every request that does not come in, and why in a word.
        """
        self._app, self._token, self._refused = app, token, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is None:
            if not path.startswith(ADMIN):
                return None
            reason = "admin routes are closed, because the service has no token; name a file with one as token_file"
            self._refused("admin")
            return JSONResponse({"error": reason}, 403)
        if path in OPEN or self._is_right(Headers(scope=scope).get("authorization", "")):
            return None
        reason = "the token is missing or wrong; send it in the header 'Authorization: Bearer TOKEN'"
        self._refused("token")
        return JSONResponse({"error": reason}, 401, headers={"WWW-Authenticate": 'Bearer realm="zerogr"'})

    def _is_right(self, header: str) -> bool:
        kind, _, given = header.partition(" ")
        assert self._token is not None
        # The comparison takes as long wherever the first wrong character stands.
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8"), self._token.encode())
