"""SIGTERM, which a scheduler sends to a driver some time before it kills it: an end with one sentence, and nothing lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from zerogr.errors import Fault


def _published() -> str:
    return "what is published is kept"


@contextlib.contextmanager
def fault_on_sigterm(keep: Callable[[], str] = _published) -> Iterator[None]:
    """On SIGTERM the block ends with a Fault.

    Must be entered after Ray is connected, which installs a handler of its own, one that prints a stack trace and exits.

    Args:
        keep: Is called first, while further signals are ignored; saves what can be saved and says what is kept.
    """
    told: list[Fault] = []

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told.append(Fault(f"told to end by SIGTERM; {keep()}, and the same command goes on from there"))
        raise KeyboardInterrupt  # no Exception: Ray Data would log it as a fault of its own, with a stack trace

    if threading.current_thread() is not threading.main_thread():  # only there signals arrive
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
        if told:
            raise told[0]
    except BaseException:
        if told:  # Ray's compiled code makes a SystemError of what is raised through it
            raise told[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
