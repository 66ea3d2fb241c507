"""The convex problem behind one gate of a certificate: a vector and a bias that let a document's own queries through, and the
queries of all others as little as may be; see `zerogr.editing.methods.certificate`.

A gate must harm none of what may be a million queries, of which a few dozen decide. So the problem is solved for the queries
that are most like the own ones, then for those as well that would get too much of what was found, until none is left
(constraint generation). A look at all of them costs one product; only those that decide cost iterations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

MAX_ITERATIONS = 30
"""IncDSI's."""
MOST_RIVALS = 1024
"""Others' queries that the problem is solved for at first; as many come in at most each time that it is solved again."""
MOST_ROUNDS = 6


class Margins(NamedTuple):
    """Of the convex problem."""

    own: float
    rival: float
    own_share: float
    l2: float
    quiet: float
    """Of the mean square of what the term has for others' queries above -`silence`."""
    silence: float


def solve(
    own: torch.Tensor, bar: torch.Tensor, rivals: torch.Tensor, room: torch.Tensor, margins: Margins
) -> torch.Tensor:
    """Returns v and b, fp32 [D + 1], that solve the convex problem of the method's docstring.

    Args:
        own, bar: States [n, D] of the queries that are to be won, and how much each needs.
        rivals, room: Of those that are to be left alone, and how much each may get.
        margins: Of the problem.
    """
    wanted, needed, others, most = (each.double().numpy() for each in (own, bar, rivals, room))
    looked_at = np.ones(len(others), dtype=bool)
    if len(others) > MOST_RIVALS:
        likeness = (others @ wanted.T).max(axis=1)
        looked_at = _highest(likeness, np.ones_like(looked_at), MOST_RIVALS)
    term = np.zeros(wanted.shape[1] + 1)
    for _ in range(MOST_ROUNDS):
        term = _minimum(term, wanted, needed, others[looked_at], most[looked_at], margins)
        excess = others @ term[:-1] + term[-1] - most
        if not (left := (excess > 0) & ~looked_at).any():
            break
        looked_at |= _highest(excess, left, MOST_RIVALS)
    return torch.from_numpy(term).float()


def lowered(gate: torch.Tensor, rivals: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Returns a gate that is lower by as much as it gives any of the rivals too much.

    The convex problem weighs others' queries against its own. A few lost ones per document are no few after a thousand.
    """
    if not len(rivals):
        return gate
    excess = (rivals @ gate[:-1] + gate[-1] - room).max().clamp(min=0)
    return torch.cat([gate[:-1], (gate[-1] - excess)[None]])


def _highest(values: np.ndarray, among: np.ndarray, number: int) -> np.ndarray:
    """Returns, bool [n], which of those among are the highest so many."""
    rows = np.flatnonzero(among)
    chosen = np.zeros_like(among)
    chosen[rows[np.argsort(-values[rows], kind="stable")[:number]]] = True
    return chosen


def _minimum(
    start: np.ndarray, own: np.ndarray, bar: np.ndarray, rivals: np.ndarray, room: np.ndarray, margins: Margins
) -> np.ndarray:
    """Returns where the loss is least, float64 [D + 1], by L-BFGS."""
    from scipy.optimize import minimize

    def loss(term: np.ndarray) -> tuple[float, np.ndarray]:
        of_own, of_rivals = own @ term[:-1] + term[-1], rivals @ term[:-1] + term[-1]
        short, over = np.maximum(bar - of_own, 0), np.maximum(of_rivals - room, 0)
        loud = np.maximum(of_rivals + margins.silence, 0)
        own_share, rival_share, quiet = margins.own_share, 1 - margins.own_share, margins.quiet / max(1, len(rivals))
        value = own_share * short @ short + rival_share * over @ over + quiet * loud @ loud
        at_own, at_rivals = -2 * own_share * short, 2 * (rival_share * over + quiet * loud)
        slope = at_own @ own + at_rivals @ rivals + 2 * margins.l2 * term[:-1]
        return (
            float(value + margins.l2 * term[:-1] @ term[:-1]),
            np.append(slope, at_own.sum() + at_rivals.sum()),
        )

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS, "gtol": 1e-3})
    return np.asarray(found.x)
