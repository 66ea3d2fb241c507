"""What the runs of a stage have done and what they cost, those that were interrupted too.

    work/runs/<stage>-<run>.json     {"rows", "rejected", "prompt_tokens", "output_tokens", "seconds", "engine_seconds",
                                      "gpu_seconds"} of one run

A run writes its file every half minute and at its end; one that is cut short takes the last half minute with it. None of
this decides what is done: published shards do.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields

from zerogr.index.index import RUNS, Index
from zerogr.store import storage

WRITE_EVERY_S = 30.0


@dataclass(slots=True)
class Effort:
    """Sums over runs of a stage."""

    rows: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the runs."""
    engine_seconds: float = 0.0
    """Time that engine actors were loading or at work, summed over them: more than `seconds` where several worked."""
    gpu_seconds: float = 0.0
    """The same, times the GPUs of each."""

    def add(self, other: Effort) -> None:
        """Adds another run's."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def rates(self) -> dict[str, float]:
        """Returns rows (the rejected ones too) and tokens per second of wall time; empty before the first row."""
        if not self.rows + self.rejected or not self.seconds:
            return {}
        return {
            "rows_per_second": round((self.rows + self.rejected) / self.seconds, 3),
            "prompt_tokens_per_second": round(self.prompt_tokens / self.seconds, 1),
            "output_tokens_per_second": round(self.output_tokens / self.seconds, 1),
        }

    def remaining(self, num_rows: int) -> dict[str, float]:
        """Returns the hours and GPU-hours that so many more rows take if they go as these did; empty before the first row."""
        num_done = self.rows + self.rejected
        if not num_done:
            return {}
        return {
            "remaining_hours": round(num_rows * self.seconds / num_done / 3600, 3),
            "remaining_gpu_hours": round(num_rows * self.gpu_seconds / num_done / 3600, 3),
        }

    def rounded(self) -> dict[str, float]:
        """Returns the sums, seconds to the millisecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


class Ledger:
    """The effort of the run at hand, kept in the index."""

    def __init__(self, index: Index, stage: str) -> None:
        self.effort = Effort()
        earlier = [name for name in storage.list_files(index.path(RUNS)) if name.startswith(f"{stage}-")]
        self._uri = index.path(RUNS, f"{stage}-{len(earlier):04d}.json")
        self._start = self._written = time.monotonic()

    def add(self, shard: Effort) -> None:
        """Counts a shard."""
        self.effort.add(shard)
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Publishes what the run has done so far."""
        self._written = time.monotonic()
        self.effort.seconds = self._written - self._start
        storage.write_json(self._uri, self.effort.rounded())


def read_effort(index: Index, stage: str) -> Effort:
    """Returns the effort of all runs of a stage."""
    total = Effort()
    for name in storage.list_files(index.path(RUNS)):
        if name.startswith(f"{stage}-"):
            total.add(Effort(**storage.read_json(index.path(RUNS, name))))
    return total
