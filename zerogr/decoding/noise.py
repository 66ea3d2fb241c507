"""Random numbers that belong to a prefix: the same for the same seed and path, whoever asks, in any order, on any device.

A prefix has a hash of its tokens, each token's number comes from the hash behind it. So the sample of a stochastic beam depends
neither on how many queries are decoded together nor on the documents that a filter leaves out.

Source of the mixing function: Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
"""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


def mixed(values: np.ndarray) -> np.ndarray:
    """Returns the hash (uint64) of each value (uint64)."""
    with np.errstate(over="ignore"):
        for shift, factor in MIXERS:
            values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
        return values ^ (values >> np.uint64(LAST_SHIFT))


def root_hash(seed: int) -> int:
    """Returns the hash of the empty prefix."""
    return int(mixed(np.array([seed % 2**64], dtype=np.uint64) + np.uint64(GOLDEN))[0])


def child_hashes(parent: int, tokens: np.ndarray) -> np.ndarray:
    """Returns the hashes (uint64 [C]) of a prefix with each of some tokens (int [C]) behind it."""
    with np.errstate(over="ignore"):
        return mixed(np.uint64(parent) + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))


def gumbel(hashes: np.ndarray) -> np.ndarray:
    """Returns a standard Gumbel number (float64) for each hash."""
    uniform = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(-np.log(uniform)))
