"""Hidden states of old queries before the first token of a docid, kept from one update to the next.

They depend on the query and the model alone, so an update after one that changed no weight needs those of new queries only.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from zerogr.store.arrays import load_arrays, save_arrays

STATES = "states"
"""In a version's folder."""
_ARRAYS = ("keys", "states")


class States:
    """By the key of a query (`Known.key`), fp32 [D] each."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        """Ascending."""
        self._states: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Returns the places of those keys (int64 [n]) that are not known, each key once, int64 [m]."""
        places = np.unique(keys, return_index=True)[1]
        return np.sort(places[~np.isin(keys[places], self._keys)])

    def put(self, keys: np.ndarray, states: torch.Tensor) -> None:
        """Adds the states [n, D] of queries that are not known, int64 [n], each once."""
        if not len(keys):
            return
        together = np.concatenate([self._keys, keys])
        order = np.argsort(together)
        self._keys = together[order]
        every = torch.cat([states[:0] if self._states is None else self._states, states]).float()
        self._states = every[torch.from_numpy(order)]

    def of(self, keys: np.ndarray) -> torch.Tensor:
        """Returns the states of queries, int64 [n], [n, D]; at least one. Raises KeyError if one is not known."""
        places = np.searchsorted(self._keys, keys)
        if self._states is None or not np.array_equal(np.append(self._keys, -1)[places], keys):
            raise KeyError("the state of a query is not known")
        return self._states[torch.from_numpy(places)]

    def only(self, keys: np.ndarray) -> States:
        """Returns those of some queries alone."""
        found, once = States(), np.unique(keys)
        if len(once):
            found.put(once, self.of(once))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them into a local folder."""
        states = np.empty((0, 0), np.float32) if self._states is None else self._states.numpy()
        save_arrays(path, {"keys": self._keys, "states": states}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> States:
        """Reads what `save` wrote. Raises UserError if a file is missing or not what was written."""
        arrays, _ = load_arrays(path, _ARRAYS, "list of hidden states", stage="trie")
        found = cls()
        if len(arrays["keys"]):
            found.put(arrays["keys"].astype(np.int64), torch.from_numpy(np.array(arrays["states"])))
        return found
