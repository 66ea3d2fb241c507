"""How often every shard was tried: an actor beside the driver, which outlives the processes that end over a shard.

Ray's own limit on the retries of a task would not do: it also counts the shards that only stood in line behind the one that
ended the process, and it knows no more of the last error than that a process is gone. Price: one message per shard, and one
more when it fails.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

WITHOUT_A_WORD = "a process that ended without a word (killed, out of memory, or its node was lost)"


class Attempts:
    """Counts the tries of every shard."""

    def __init__(self) -> None:
        self._tries: Counter[int] = Counter()
        self._errors: dict[int, str] = {}

    def begin(self, shard: int) -> tuple[int, str]:
        """Returns how often the shard was begun before and what the last try ended with; counts the one that begins now."""
        tries, error = self._tries[shard], self._errors.get(shard, "")
        self._tries[shard] += 1
        self._errors[shard] = WITHOUT_A_WORD
        return tries, error

    def fail(self, shard: int, error: str) -> None:
        """Remembers what the try that was begun last ended with."""
        self._errors[shard] = error


def start_attempts() -> Any:
    """Returns the handle of a new `Attempts` actor on the driver's node: when that is lost, so is the stage."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
