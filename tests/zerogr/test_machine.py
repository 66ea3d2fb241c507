"""What a process has used, as the system says it."""

from __future__ import annotations

import subprocess
import sys

from zerogr.machine import peak_resident_bytes

CHILD = """
from zerogr.machine import peak_resident_bytes
before = peak_resident_bytes()
held = b"x" * (64 << 20)
del held
print(before, peak_resident_bytes())
"""


def test_the_peak_is_that_of_the_process_itself() -> None:
    held = b"x" * (256 << 20)
    assert peak_resident_bytes() >= len(held)
    before, after = map(int, subprocess.check_output([sys.executable, "-c", CHILD]).split())
    assert 1 << 20 < before < len(held), "the parent's memory is not the child's"
    assert after - before >= 60 << 20, "what was let go counts as well"
