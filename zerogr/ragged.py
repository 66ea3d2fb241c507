"""Ragged arrays: rows of different lengths one behind the other, and where each begins."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def offsets_of(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    """Returns where each row begins, and where the last ends (int64 [len(lengths) + 1])."""
    lengths = lengths if isinstance(lengths, np.ndarray) else np.fromiter(lengths, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
