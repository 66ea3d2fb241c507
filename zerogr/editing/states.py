"""Hidden states of old queries before the first token of a docid, kept from one update to the next.

They depend on the query and the model alone, so an update after one that changed no weight needs those of new queries only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from zerogr.editing.rehearsal import Known
from zerogr.seeds import seed_of
from zerogr.store.arrays import load_arrays, save_arrays

STATES = "states"
"""In a version's folder."""
_ARRAYS = ("keys", "states")


class States:
    """By query; fp32 [D] each."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._states: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._place)

    def missing(self, queries: Sequence[Known]) -> list[Known]:
        """Returns those of the queries that are not known, each once."""
        found = {_key(known): known for known in queries}
        return [known for key, known in found.items() if key not in self._place]

    def put(self, queries: Sequence[Known], states: torch.Tensor) -> None:
        """Adds the states of queries that are not known, [n, D]."""
        if not queries:
            return
        self._place |= {_key(known): len(self._place) + number for number, known in enumerate(queries)}
        self._states = torch.cat([states[:0] if self._states is None else self._states, states]).float()

    def of(self, queries: Sequence[Known]) -> torch.Tensor:
        """Returns the states of at least one query, all of them known, [n, D]. Raises KeyError if one is not."""
        assert self._states is not None
        return self._states[torch.tensor([self._place[_key(known)] for known in queries])]

    def only(self, queries: Sequence[Known]) -> States:
        """Returns those of some queries alone."""
        found = States()
        once = found.missing(queries)
        if once:
            found.put(once, self.of(once))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them into a local folder."""
        arrays = {
            "keys": np.array(list(self._place), dtype=np.uint64),
            "states": np.empty((0, 0), np.float32) if self._states is None else self._states.numpy(),
        }
        save_arrays(path, arrays, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> States:
        """Reads what `save` wrote. Raises UserError if a file is missing or not what was written."""
        arrays, _ = load_arrays(path, _ARRAYS, "list of hidden states")
        found = cls()
        found._place = {key: place for place, key in enumerate(arrays["keys"].tolist())}
        found._states = torch.from_numpy(np.array(arrays["states"])) if found._place else None
        return found


def _key(known: Known) -> int:
    return seed_of(0, "state", known.example.instruction, known.example.query)
