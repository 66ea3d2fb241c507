"""Draws at the nodes of one depth, one after the other: the only step of a search that has an order.

All draws of a query have come to this depth, each at some node. A draw picks one of the node's options that still has a docid
left for it, so it depends on the draws before it at the same node, and on no others. `draw` is one operator: numpy on the CPU,
a Triton kernel with one program per query on CUDA (`zerogr.decoding.device.kernels`).

Shapes: B queries, K draws, W nodes, C options of all nodes of a query.
"""

from __future__ import annotations

import numpy as np
import torch

NO_ORDER = -1.0
"""`top_p` of draws that choose among all options."""


@torch.library.custom_op("zerogr::draw", mutates_args=())
def draw(
    log_probs: torch.Tensor,
    left: torch.Tensor,
    ends: torch.Tensor,
    node: torch.Tensor,
    is_done: torch.Tensor,
    order: torch.Tensor,
    temperature: torch.Tensor,
    uniform: torch.Tensor,
    top_p: float,
) -> torch.Tensor:
    """Returns which option each draw picks (int64 [B, K]); 0 for those that are done.

    Args:
        log_probs: float64 [B, C]; -inf for what cannot be drawn.
        left: int64 [B, C], how many draws an option has room for.
        ends: int64 [B, W], one past the last option of each node.
        node: int64 [B, K], where each draw is.
        is_done: bool [B, K].
        order: int64 [B, C], the options of each node from the most probable on; empty without a nucleus.
        temperature: float64 [K]; 0 picks the best option.
        uniform: float64 [K], in [0, 1).
        top_p: Of the nucleus; below 0 for none.
    """
    if log_probs.is_cuda:
        from zerogr.decoding.device.kernels import draw_on_cuda

        return draw_on_cuda(log_probs, left, ends, node, is_done, order, temperature, uniform, top_p)
    found = np.zeros(node.shape, dtype=np.int64)
    given = (log_probs.clone(), left.clone(), ends, node, is_done, order, temperature, uniform)
    logs, rooms, bounds, nodes, dones, orders, temperatures, uniforms = (tensor.numpy() for tensor in given)
    for query in range(len(found)):
        ordered = orders[query] if top_p >= 0 else None
        _draw(
            found[query], logs[query], rooms[query], bounds[query], nodes[query], dones[query], ordered,
            temperatures, uniforms, top_p,
        )  # fmt: skip
    return torch.from_numpy(found)


@draw.register_fake
def _(log_probs: torch.Tensor, left: torch.Tensor, ends: torch.Tensor, node: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(node)


def _draw(
    found: np.ndarray,
    logs: np.ndarray,
    room: np.ndarray,
    ends: np.ndarray,
    nodes: np.ndarray,
    is_done: np.ndarray,
    order: np.ndarray | None,
    temperatures: np.ndarray,
    uniforms: np.ndarray,
    top_p: float,
) -> None:
    for draw in np.flatnonzero(~is_done):
        node = nodes[draw]
        begin, end = (int(ends[node - 1]) if node else 0), int(ends[node])
        weights = logs[begin:end]
        if temperatures[draw] == 0:
            option = begin + int(weights.argmax())
        elif order is None:
            option = begin + _sample(np.exp((weights - weights.max()) / temperatures[draw]), uniforms[draw])
        else:
            best_first = order[begin:end]
            probs = np.exp((logs[best_first] - weights.max()) / temperatures[draw])
            cumulative = np.cumsum(probs)
            size = 1 + int(np.searchsorted(cumulative, top_p * cumulative[-1]))
            option = int(best_first[_sample(probs[:size], uniforms[draw])])
        found[draw] = option
        room[option] -= 1
        if room[option] == 0:
            logs[option] = -np.inf


def _sample(probs: np.ndarray, uniform: float) -> int:
    cumulative = np.cumsum(probs)
    # 1 - uniform lies in (0, 1], so an option of probability 0 is never hit, nor the end passed.
    return int(np.searchsorted(cumulative, (1.0 - uniform) * cumulative[-1]))
