"""Who is let in: the right token opens everything, a wrong one only what probes and the page need."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve.tokens import Guard, read_token
from zerogr.errors import UserError

TOKEN = "s3cret-token"
CLOSED = ["/search", "/index", "/metrics", "/openapi.json", "/admin/rollback", "/nothing", "/healthz/"]


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"path": scope["path"]})(scope, receive, send)


refused: list[str] = []


def call(path: str, token: str | None, root_path: str = "", **headers: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(behind, token, refused.append), root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(request())


class TestReading:
    def test_white_space_around_it_is_no_part_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(f"  {TOKEN}\r\n")
        assert read_token(str(tmp_path / "token")) == TOKEN

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read .No such file or directory.; write the token into it"),
            (b"", "is empty; write the token into it, or leave it out"),
            (b" \n\t\n", "is empty"),
            (b"two words", "has a space or a character that is not ASCII"),
            ("schlüssel".encode(), "not ASCII; make one with `openssl rand -hex 32`"),
            (b"\xff\xfe", "cannot be read .it is not UTF-8."),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        file = tmp_path / "token"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_token(str(file))

    def test_a_folder_is_no_token(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Is a directory"):
            read_token(str(tmp_path))


class TestGuard:
    @pytest.mark.parametrize("path", CLOSED)
    def test_the_right_token_opens_everything(self, path: str) -> None:
        for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "):
            assert call(path, TOKEN, authorization=header).json() == {"path": path}

    @pytest.mark.parametrize("path", CLOSED)
    @pytest.mark.parametrize(
        "header",
        [
            None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer \u00fc",
            f"Bearer {TOKEN.upper()}",
        ],
    )  # fmt: skip
    def test_anything_else_is_told_how(self, path: str, header: str | None) -> None:
        response = call(path, TOKEN, **({} if header is None else {"authorization": header.encode("utf-8")}))
        assert response.status_code == 401 and refused[-1] == "token"
        assert response.headers["www-authenticate"] == 'Bearer realm="zerogr"'
        assert response.json() == {
            "error": "the token is missing or wrong; send it in the header 'Authorization: Bearer TOKEN'"
        }

    @pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
    def test_probes_and_the_page_need_none(self, path: str) -> None:
        assert call(path, TOKEN).json() == call(path, None).json() == {"path": path}
        assert call(f"/below{path}", TOKEN, root_path="/below").status_code == 200

    def test_a_prefix_opens_nothing(self) -> None:
        assert call("/below/search", TOKEN, root_path="/below").status_code == 401
        assert call("/below/admin/rollback", None, root_path="/below").status_code == 403

    def test_without_a_token_only_admin_routes_are_closed(self) -> None:
        assert call("/search", None).status_code == 200
        response = call("/admin/rollback", None, authorization=f"Bearer {TOKEN}")
        assert response.status_code == 403
        assert "name a file with one as token_file" in response.json()["error"]
