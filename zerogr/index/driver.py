"""Holding the lease of an index for the length of a block: taking it, heartbeats, noticing that it is lost, giving it back.

A heartbeat every sixth of the expiry. Nothing below the index is changed by this process when the last one is older than half
of it: first the lease is confirmed. So what is begun in time has the other half to end in before anybody may take over, and a
driver that was suspended, or cut off, asks before it goes on. What this cannot prevent is a single write that takes longer
than that other half.

Blocks within blocks, in one thread, are one lease. Another thread is another driver.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import NamedTuple

from zerogr.errors import Fault, UserError
from zerogr.index.index import Index
from zerogr.index.lease import (
    ACTIVE,
    FOLDER,
    Found,
    Lease,
    find_lease,
    numbers_of,
    own_lease,
    path_of,
)
from zerogr.index.versions import root_of
from zerogr.progress import duration
from zerogr.store import storage

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0
_holding: ContextVar[dict[str, Driver]] = ContextVar("_holding", default={})  # noqa: B039 (it is replaced, never changed)
"""By the path of the index."""


@contextmanager
def lease_of(index: Index, *, wait: bool = False) -> Iterator[None]:
    """Holds the lease of an index for the length of a block.

    Args:
        index: The index; for a version's folder that of its index is held.
        wait: Whether to wait until a living driver gives it back.

    Raises:
        UserError: Another driver has it, or the place cannot be written.
        Fault: The lease was lost while the block ran.
    """
    root = root_of(index)
    place = storage.filesystem(root.uri)[1]
    if place in _holding.get():
        yield
        return
    driver = _take(root, wait=wait)
    token = _holding.set({**_holding.get(), place: driver})
    try:
        try:
            with storage.guarded(root.uri, driver.check):
                yield
        finally:
            driver.stop()
    except BaseException as error:
        if driver.loss and not (isinstance(error, Fault) and str(error) == driver.loss):
            raise Fault(driver.loss) from error
        raise
    finally:
        _holding.reset(token)
        driver.release()


class Ticket(NamedTuple):
    """What a worker has to know of the lease that it works under."""

    uri: str
    """Of the index."""
    number: int
    """Of the lease."""


def ticket_of(index: Index) -> Ticket | None:
    """Returns the ticket for workers of the block that holds the lease of an index; None outside of one."""
    root = root_of(index)
    driver = _holding.get().get(storage.filesystem(root.uri)[1])
    return Ticket(root.uri, driver.number) if driver else None


@contextmanager
def working_under(ticket: Ticket | None) -> Iterator[None]:
    """For a worker, in another process than its driver: nothing below the index is changed once another driver has the lease.

    Cost: storage is asked for the newest lease before every change.
    """
    if ticket is None:
        yield
        return
    uri, number = ticket

    def check(path: str) -> None:
        if (newest := max(numbers_of(Index(uri)), default=0)) != number:
            raise Fault(
                f"'{uri}' has gone to another driver (lease {newest}, {number} before); this run publishes nothing more"
            )

    with storage.guarded(uri, check):
        yield


class Driver:
    """The owner of a lease that was taken."""

    def __init__(self, root: Index, number: int, lease: Lease, taken_at: float) -> None:
        self.loss = ""
        """Why the lease is lost, in one sentence; "" while it is not."""
        self._root, self.number, self._lease = root, number, lease
        self._confirmed_at = taken_at
        self._lock, self._is_over = threading.RLock(), threading.Event()  # a signal's handler may ask in the middle
        self._own_folder = storage.filesystem(root.path(FOLDER))[1]
        self._is_main = threading.current_thread() is threading.main_thread()
        ACTIVE.add(lease.id)
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def check(self, path: str) -> None:
        """Confirms the lease if its last heartbeat is not young. Raises Fault if it is lost."""
        if path.startswith(f"{self._own_folder}/"):
            return
        with self._lock:
            if not self.loss and clock() - self._confirmed_at > self._lease.expiry_s / 2:
                self._confirm()
            if self.loss:
                raise Fault(self.loss)

    def stop(self) -> None:
        """Ends the heartbeats."""
        self._is_over.set()
        with self._lock:
            pass  # the last one is over

    def release(self) -> None:
        """Gives the lease back, unless it is lost."""
        ACTIVE.discard(self._lease.id)
        if self.loss:
            return
        try:
            self._confirm(released=True)
            if self.number == 1 and self._holds_nothing():
                storage.delete(self._root.path("work"))
        except Exception as error:  # the work is done, or its own error is on the way: say what is left
            logger.warning(
                "the lease of '%s' could not be given back (%s); it runs out by itself", self._root.uri, error
            )

    def _beat(self) -> None:
        while not self._is_over.wait(self._lease.expiry_s / 6):
            with self._lock:
                if self._is_over.is_set():
                    return
                try:
                    self._confirm()
                except Exception as error:  # `check` asks again before anything is changed, and raises
                    logger.warning("no heartbeat for '%s': %s", self._root.uri, error)
                if self.loss:
                    logger.error("%s", self.loss)
                    self._interrupt()
                    return

    def _confirm(self, *, released: bool = False) -> None:
        """Writes a heartbeat if the lease is still ours, else notes the loss."""
        now = clock()
        found = find_lease(self._root)
        if found.number != self.number or found.lease is None or found.lease.id != self._lease.id:
            by = f"; it has gone to {found.lease.who()}" if found.lease else ""
            self.loss = (
                f"the lease of '{self._root.uri}' was lost after {duration(now - self._confirmed_at)} without a heartbeat{by}; "
                "nothing more is published by this run, and the same command goes on when the index is free"
            )
            return
        self._lease = replace(
            self._lease, heartbeat=time.time(), num_heartbeats=self._lease.num_heartbeats + 1, released=released
        )
        storage.write_json(path_of(self._root, self.number), self._lease.as_json())
        self._confirmed_at = now

    def _holds_nothing(self) -> bool:
        """Whether the index is nothing but its lease: what made nothing, such as a mistake, leaves nothing."""
        return all(name.startswith(f"{FOLDER}/") for name in storage.list_files(self._root.uri))

    def _interrupt(self) -> None:
        """Ends what the main thread is at, as Ctrl-C would; where that is ignored, the next change ends it."""
        if self._is_main and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _take(root: Index, *, wait: bool) -> Driver:
    root.manifest()  # what is no index, or one of another format, is not written to
    watch, said_at = _Watch(), float("-inf")
    while True:
        found = find_lease(root)
        unchanged_s = watch.unchanged_s(found)
        if found.is_free or unchanged_s >= found.expiry_s:
            if driver := _create(root, found):
                return driver
            continue
        who = found.lease.who() if found.lease else "a driver that has not said its name"
        if not wait and found.lease and (found.lease.is_recent() or watch.has_changed):
            raise UserError(
                f"'{root.uri}' is being changed by {who}, last heard of {found.lease.last_heard()}; wait for its end with "
                "--wait, or end that process"
            )
        if clock() - said_at >= _SAY_EVERY_S:
            said_at = clock()
            wanted = "waiting for its end" if wait else f"looking for {duration(found.expiry_s)} whether it is alive"
            logger.info("'%s' is being changed by %s; %s", root.uri, who, wanted)
        time.sleep(min(5.0, found.expiry_s / 20))


def _create(root: Index, before: Found) -> Driver | None:
    """Returns the driver if the next lease could be created; None if another was faster."""
    number, lease, now = before.number + 1, own_lease(), clock()
    ACTIVE.add(lease.id)
    uri = path_of(root, number)
    # An answer may be lost on the way, and the repeated question finds what the first has created.
    is_created = storage.create_json(uri, lease.as_json()) or find_lease(root).lease == lease
    if not is_created or (numbers := numbers_of(root))[-1] != number:
        ACTIVE.discard(lease.id)
        if is_created:  # below a newer one, where numbers are deleted and so were free again
            storage.delete(uri)
        return None
    for lower in numbers[:-1]:
        with suppress(FileNotFoundError):  # whoever had it may be back, and see to it as well
            storage.delete(path_of(root, lower))
    return Driver(root, number, lease, now)


class _Watch:
    """How long the newest lease has stayed as it is, by this machine's own clock."""

    def __init__(self) -> None:
        self._content: bytes | None = None
        self._since = 0.0
        self.has_changed = False
        """Whether it has changed while it was watched."""

    def unchanged_s(self, found: Found) -> float:
        """Returns for how long the same content was found, in seconds."""
        if found.content != self._content:
            self.has_changed = self._content is not None
            self._content, self._since = found.content, clock()
        return clock() - self._since


def clock() -> float:
    """Returns seconds that also pass while the machine sleeps, where the system counts those."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
