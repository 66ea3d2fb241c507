"""The right to change an index, for as long as a command changes it: one driver at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jobs.termination import fault_on_sigterm
from zerogr.index.driver import lease_of
from zerogr.index.index import Index


@contextlib.contextmanager
def driving(uri: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lease of the index at `uri` for the length of a block; it is given back after errors and SIGTERM, too.

    Raises:
        UserError: Another driver has it, and `wait` is False.
        Fault: It was lost while the block ran, or SIGTERM came.
    """
    with fault_on_sigterm(), lease_of(Index(uri), wait=wait):
        yield
