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


def ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns begin[i], begin[i] + 1, ... for so many of each i, one behind the other (int64 [sum of the lengths])."""
    offsets = offsets_of(lengths)
    return np.repeat(begin - offsets[:-1], lengths) + np.arange(offsets[-1])


def before_in_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Returns the sum of the values (int [n]) that stand before each in its group (int [n], never falling), int64 [n]."""
    before = offsets_of(values)[:-1]
    is_first = np.ones(len(group), dtype=bool)
    is_first[1:] = group[1:] != group[:-1]
    return before - before[is_first][np.cumsum(is_first) - 1]
