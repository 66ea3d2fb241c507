"""Processes that a test started, found by who started whom, and ended by their own ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ON_A_CLUSTER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
"""The environment of a driver that joins a cluster: this process may have a Ray of its own, where that is off."""


@contextmanager
def running(module: str, *arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a module of the tests beside this process; prints its output when the block ends, and ends it if it must."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        print(log.read_text(errors="replace"))
        if process.poll() is None:
            kill_with_descendants(process.pid)
        process.wait()


def descendants(pid: int) -> list[int]:
    """Returns the processes below one, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def command_line(pid: int) -> str:
    """Returns the command of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_with_descendants(pid: int) -> None:
    """Sends SIGKILL to a process, then to all that it had started; returns when they have ended (zombies count as ended)."""
    pids = [pid, *descendants(pid)]
    for each in pids:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue  # Ray's own watchdog was faster
    while any((stat := _stat(each)) and stat[0] != "Z" for each in pids):
        time.sleep(0.01)


def _stat(pid: int) -> list[str]:
    """Returns state, parent, ... of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
