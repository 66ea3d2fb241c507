"""Draws at the nodes of one depth, one after the other: the only step of a search that has an order.

All draws of a query have come to this depth, each at some node. A draw picks one of the node's options that still has a docid
left for it, so it depends on the draws before it at the same node, and on no others. `draw` is one operator: numpy on the CPU,
a Triton kernel with one program per query on CUDA (`zerogr.decoding.device.kernels`).

Shapes: B queries, K draws, W nodes, C options of all nodes of a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zerogr.decoding.draws import Choose, pick_at_temperature, pick_from_nucleus

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
        order: int64 [B, C], the options of each node from the most probable on, for the kernel; empty without a nucleus.
        temperature: float64 [K]; 0 picks the best option.
        uniform: float64 [K], in [0, 1).
        top_p: Of the nucleus; below 0 for none.
    """
    if log_probs.is_cuda:
        from zerogr.decoding.device.kernels import draw_on_cuda

        return draw_on_cuda(log_probs, left, ends, node, is_done, order, temperature, uniform, top_p)
    found = np.zeros(node.shape, dtype=np.int64)
    logs, rooms = log_probs.clone().numpy(), left.clone().numpy()
    picks = [_pick(heat, top_p) for heat in temperature.tolist()]
    for query in range(len(found)):
        _draw(
            found[query], logs[query], rooms[query], ends[query].numpy(), node[query].numpy(), is_done[query].numpy(),
            picks, uniform.numpy(),
        )  # fmt: skip
    return torch.from_numpy(found)


@draw.register_fake
def _(log_probs: torch.Tensor, left: torch.Tensor, ends: torch.Tensor, node: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(node)


def _pick(temperature: float, top_p: float) -> Choose:
    return pick_at_temperature(temperature) if top_p < 0 else pick_from_nucleus(top_p, temperature)


def _draw(
    found: np.ndarray,
    logs: np.ndarray,
    room: np.ndarray,
    ends: np.ndarray,
    nodes: np.ndarray,
    is_done: np.ndarray,
    picks: Sequence[Choose],
    uniforms: np.ndarray,
) -> None:
    for draw in np.flatnonzero(~is_done).tolist():
        node = nodes[draw]
        begin, end = (int(ends[node - 1]) if node else 0), int(ends[node])
        option = begin + picks[draw](logs[begin:end], float(uniforms[draw]))
        found[draw] = option
        room[option] -= 1
        if room[option] == 0:
            logs[option] = -np.inf
