"""The temperature schedule of reverse annealing: a sigmoid from 0, which is greedy, to the highest temperature."""

from __future__ import annotations

import math


def temperature(
    draw: int, schedule_length: int, *, max_temperature: float = 1.5, steepness: float = 10.0, midpoint: float = 0.1
) -> float:
    """The temperature T_i of draw i in a schedule of K draws; T_0 = 0, T_K = `max_temperature`, constant after that.

    T_i = T_max · [σ(s (i/K − m)) − σ(−s m)] / [σ(s (1 − m)) − σ(−s m)] with steepness s and midpoint m.

    Source: ZeroGR (arXiv 2510.10419), Eq. 6, and its official code for the constants.
    """
    progress = min(draw / schedule_length, 1.0)
    lowest, highest = _sigmoid(-steepness * midpoint), _sigmoid(steepness * (1 - midpoint))
    return max_temperature * (_sigmoid(steepness * (progress - midpoint)) - lowest) / (highest - lowest)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
