"""What this machine lets this process use."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Returns the cores that this process may use; all of the machine's where the system does not say it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
