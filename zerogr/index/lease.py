"""Who drives an index: one process at a time may change it, and a small file says which.

    work/lease/000007.json     host, process, command, since, heartbeat, expiry_s, released, ...

The file with the highest number is the lease. The next number is created where it does not exist (a conditional put in
object storage, a hard link on a disk), so of several drivers at once one has it. Only the owner writes its file again: with
every heartbeat, and at the end to say that the lease is free. The newest file stays (unless the index holds nothing else), so
a driver that finds a newer one than its own knows that it has been replaced, however long it was suspended.

When is an owner dead? If it ran on this machine, when its process is gone; the start of the process tells it from a later one
with the same number. Otherwise when its file has not changed for `expiry_s`, by the clock of whoever looks. Time stamps alone
prove nothing: a recent one only saves the look, because clocks may be wrong on either side.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from zerogr.index.index import Index
from zerogr.index.versions import root_of
from zerogr.progress import duration
from zerogr.store import storage

FOLDER = "work/lease"
EXPIRY_S = 120.0
"""The owner is taken for dead when the file has not changed for so long. S3 that fails is asked again for half a minute."""
ACTIVE: set[str] = set()
"""The ids of the leases that this process holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What the file says."""

    id: str
    """Of this lease among all."""
    host: str
    process: int
    command: str
    """What the owner is doing, as it was called."""
    since: float
    """Unix time, by the owner's clock."""
    heartbeat: float
    """Unix time of the last one."""
    num_heartbeats: int = 0
    """The file changes with every heartbeat, even if the owner's clock stands still."""
    expiry_s: float = field(default_factory=lambda: EXPIRY_S)
    machine: str = ""
    """What tells the owner's machine, since it was started, from others; "" where the system does not say."""
    process_start: str = ""
    """What tells the owner from other processes of that number; "" where the system does not say."""
    released: bool = False
    """Whether the owner has given it back."""

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Lease:
        """Returns what `as_json` has written. Raises TypeError if something is missing."""
        return cls(**{name: value for name, value in entry.items() if name in cls.__slots__})

    def as_json(self) -> dict[str, Any]:
        """Returns what is written into the file: the fields, and the times for people."""
        times = {"since_utc": _for_people(self.since), "heartbeat_utc": _for_people(self.heartbeat)}
        return {**asdict(self), **times}

    def who(self) -> str:
        """Returns the owner in words."""
        return f"{self.host}, process {self.process}, since {_for_people(self.since)} UTC: `{self.command}`"

    def last_heard(self) -> str:
        """Returns in words how long ago the last heartbeat was, by the clocks of both sides."""
        ago = time.time() - self.heartbeat
        return f"{duration(ago)} ago" if ago >= 0 else f"{duration(-ago)} ahead of this machine's clock"

    def is_recent(self) -> bool:
        """Whether the last heartbeat seems to be less than the expiry ago."""
        return abs(time.time() - self.heartbeat) < self.expiry_s

    def is_gone(self) -> bool:
        """Whether the owner ran on this machine and has ended; False where that cannot be known."""
        if not (self.machine and self.process_start) or self.machine != _machine():
            return False
        if self.process == os.getpid() and self.process_start == _start_of(os.getpid()):
            return self.id not in ACTIVE
        return not _exists(self.process) or _start_of(self.process) not in (self.process_start, None)


class Found(NamedTuple):
    """The newest lease of an index."""

    number: int
    """0 = there has been none."""
    lease: Lease | None
    """None = there has been none, or its file cannot be read (yet)."""
    content: bytes
    """Of the file."""

    @property
    def is_free(self) -> bool:
        """Whether nobody has it, or whoever has it is known to be gone."""
        if self.lease is None:
            return not self.number
        return self.lease.released or self.lease.is_gone()

    @property
    def expiry_s(self) -> float:
        """How long the file of a living owner may stay as it is."""
        return self.lease.expiry_s if self.lease else EXPIRY_S


def own_lease() -> Lease:
    """Returns a new lease of this process."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).encode(errors="replace").decode()
    now = time.time()
    return Lease(
        id=secrets.token_hex(8),
        host=socket.gethostname(),
        process=os.getpid(),
        command=textwrap.shorten(command, 200, placeholder=" ..."),
        since=now,
        heartbeat=now,
        machine=_machine(),
        process_start=_start_of(os.getpid()) or "",
    )


def find_lease(index: Index) -> Found:
    """Returns the newest lease of an index, or of the index that a version belongs to."""
    while True:
        number = max(numbers_of(index), default=0)
        if not number:
            return Found(0, None, b"")
        try:
            content = storage.read_bytes(path_of(index, number))
        except FileNotFoundError:  # a newer one is there by now
            continue
        return Found(number, _parsed(content), content)


def holder_of(index: Index) -> Lease | None:
    """Returns the lease of the driver that has an index; None if nobody has."""
    found = find_lease(index)
    return None if found.is_free else found.lease


def numbers_of(index: Index) -> list[int]:
    """Returns the numbers of the leases whose files are there, ascending."""
    names = storage.list_files(root_of(index).path(FOLDER))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"(\d{6,})\.json", name)))


def path_of(index: Index, number: int) -> str:
    """Returns the URI of the file of a lease."""
    return root_of(index).path(FOLDER, f"{number:06d}.json")


def _parsed(content: bytes) -> Lease | None:
    try:
        return Lease.of(json.loads(content))
    except (ValueError, TypeError, AttributeError):  # where there are no hard links, it is empty for a moment
        return None


def _for_people(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S}"


def _machine() -> str:
    """Returns the machine's name since it was started, and that of the set of processes that this one can see."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _start_of(process: int) -> str | None:
    """Returns when a process was started, in ticks of the kernel; "" if it has ended, None if that cannot be seen."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else rest[18]


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
