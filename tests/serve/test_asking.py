"""What the ingress does with a search that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from serve.ingress import Front


class Response:
    """Is never answered, and lets whoever cancels it wait, as Ray Serve does while its router is at work."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_end, self.is_cancelled, self._error = threading.Event(), threading.Event(), error

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.may_end.wait()
        self.is_cancelled.set()
        if self._error:
            raise self._error


def ask(response: Response, timeout_s: float) -> Any:
    ingress = SimpleNamespace(_defaults=SimpleNamespace(timeout_s=timeout_s))
    return Front._ask(ingress, response)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [None, RuntimeError("it failed by itself")])
@pytest.mark.parametrize("is_timeout", [True, False], ids=["timeout", "client left"])
def test_others_are_answered_while_it_is_cancelled(is_timeout: bool, error: Exception | None) -> None:
    async def main() -> None:
        response = Response(error)
        task = asyncio.ensure_future(ask(response, 0.05 if is_timeout else 60))
        await asyncio.sleep(0)
        if not is_timeout:
            task.cancel()
        with pytest.raises(TimeoutError if is_timeout else asyncio.CancelledError):
            await task
        assert not response.is_cancelled.is_set()  # and still this loop goes on
        response.may_end.set()
        await asyncio.to_thread(response.is_cancelled.wait)

    asyncio.run(main())
