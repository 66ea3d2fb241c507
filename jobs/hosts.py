"""Which machine has published which shard, for `zerogr status`.

    work/runs/<stage>.hosts.json     {host: [shards]}; on Kubernetes a host is a pod

The driver notes what the engines' processes say, every half minute and at the end of a run; one that is killed takes the last
half minute with it, and of two drivers that write at once one may lose a note. Nothing depends on it.
"""

from __future__ import annotations

import time

from zerogr.index.index import RUNS, Index
from zerogr.index.ledger import WRITE_EVERY_S
from zerogr.store import storage


class Hosts:
    """The hosts of the run at hand, kept in the index with those of the runs before."""

    def __init__(self, index: Index, stage: str) -> None:
        self._index, self._stage = index, stage
        self._new: dict[str, list[int]] = {}
        self._written = time.monotonic()

    def add(self, host: str, shard: int) -> None:
        """Notes who has published a shard; "" = nobody in this run."""
        if host:
            self._new.setdefault(host, []).append(shard)
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Publishes what is known so far."""
        self._written = time.monotonic()
        if not self._new:
            return
        known = read_hosts(self._index, self._stage)
        for host, shards in self._new.items():
            known[host] = sorted({*known.get(host, []), *shards})
        storage.write_json(_uri(self._index, self._stage), known)
        self._new = {}


def read_hosts(index: Index, stage: str) -> dict[str, list[int]]:
    """Returns {host: its shards}, as far as it was noted."""
    try:
        known: dict[str, list[int]] = storage.read_json(_uri(index, stage))
    except FileNotFoundError:
        return {}
    return known


def _uri(index: Index, stage: str) -> str:
    return index.path(RUNS, f"{stage}.hosts.json")
