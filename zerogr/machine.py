"""What this machine lets this process use, and what the process has used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def num_cores() -> int:
    """Returns the cores that this process may use; all of the machine's where the system does not say it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_resident_bytes() -> int:
    """Returns the most memory this process has had resident so far, mapped files included.

    Linux's own figure: `getrusage` says of a started process at least what the process that started it had. Elsewhere that has
    to do.
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024  # in KiB
    import resource  # not everywhere

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
