"""The search page, and the headers that let it run its own script and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response


def add_page(api: FastAPI) -> None:
    """Adds GET /."""
    page, headers = _load_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page, headers=headers)


def _load_page() -> tuple[str, dict[str, str]]:
    """Returns the search page and headers that allow its own inline script and style, by hash, and nothing else."""
    page = resources.files("serve").joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
