"""How often every shard was tried: an actor beside the driver, which outlives the processes that end over a shard.

Ray's own limit on the retries of a task would not do: it also counts the shards that only stood in line behind the one that
ended the process, and it knows no more of the last error than that a process is gone. Price: two messages per shard.

On a node that runs low on memory Ray ends several processes at once, this one too if it must. It comes back with an empty
memory, `MAX_RESTARTS` times in a stage: what is counted then are the tries since.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

MAX_RESTARTS = 5
"""Of the actor, in one stage; after that it stays away, and the stage ends."""
WITHOUT_A_WORD = "a process that ended without a word (killed, out of memory, or its node was lost)"


class Attempts:
    """Counts the tries of every shard, and how often in a row an engine could not be loaded."""

    def __init__(self) -> None:
        self._tries: Counter[int] = Counter()
        self._errors: dict[int, str] = {}
        self._failed_loads, self._load_error = 0, ""

    def begin(self, shard: int) -> tuple[int, str]:
        """Returns how often the shard failed before, or no engine could be loaded, and with what; counts this try."""
        tries, error = self._tries[shard], self._errors.get(shard, "")
        self._tries[shard] += 1
        self._errors[shard] = WITHOUT_A_WORD
        return (self._failed_loads, self._load_error) if self._failed_loads >= max(tries, 1) else (tries, error)

    def fail(self, shard: int, error: str) -> None:
        """Remembers what the try that was begun last ended with."""
        self._errors[shard] = error

    def succeed(self, shard: int) -> None:
        """The shard is made. If it comes again, it was the answer that was lost."""
        self._tries.pop(shard, None)
        self._errors.pop(shard, None)

    def loaded(self) -> None:
        """An engine was loaded: that it can be is known again."""
        self._failed_loads, self._load_error = 0, ""

    def fail_to_load(self, error: str) -> None:
        """Counts an engine that could not be loaded: for no shard can it be."""
        self._failed_loads, self._load_error = self._failed_loads + 1, error


def start_attempts() -> Any:
    """Returns the handle of a new `Attempts` actor on the driver's node: when that is lost, so is the stage."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": MAX_RESTARTS, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Attempts).options(**options).remote()
