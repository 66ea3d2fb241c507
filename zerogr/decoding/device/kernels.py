"""Draws one after the other on CUDA: one program per query, one thread block each, with the options of a node in parallel.

Imported on CUDA alone; Triton comes with torch's builds for CUDA. Under `TRITON_INTERPRET=1` it runs on the CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Options that a thread block looks at together."""


@triton.jit
def _running(log_probs, order, best, heat, before, start, end, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """Running sums of a block's weights, on top of those before; beyond the end they stay as they are."""
    places = start + tl.arange(0, BLOCK)
    if HAS_ORDER:
        places = tl.load(order + places, mask=places < end, other=0)
    weights = tl.load(log_probs + places, mask=start + tl.arange(0, BLOCK) < end, other=float("-inf"))
    return before + tl.cumsum(tl.exp((weights - best) / heat), 0)


@triton.jit
def _best(log_probs, begin, end, BLOCK: tl.constexpr):
    """The best option, the first of equals, and its log-probability."""
    best = tl.full((), float("-inf"), tl.float64)
    option = begin
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        weights = tl.load(log_probs + places, mask=places < end, other=float("-inf"))
        highest = tl.max(weights, 0)
        option = tl.where(highest > best, tl.min(tl.where(weights == highest, places, end), 0), option)
        best = tl.maximum(best, highest)
    return option, best


@triton.jit
def _sampled(
    log_probs, order, best, heat, uniform, begin, end, top_p, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The place that a uniform number draws. Running sums are made in one way, so that the last one is reached again."""
    zero = tl.full((), 0.0, tl.float64)
    total = zero
    for start in range(begin, end, BLOCK):
        total = tl.max(_running(log_probs, order, best, heat, total, start, end, HAS_ORDER, BLOCK), 0)
    if HAS_ORDER:  # the nucleus: the first options that together have top_p
        bound, limit, before = top_p * total, total, zero
        for start in range(begin, end, BLOCK):
            sums = _running(log_probs, order, best, heat, before, start, end, HAS_ORDER, BLOCK)
            limit = tl.minimum(limit, tl.min(tl.where(sums >= bound, sums, total), 0))
            before = tl.max(sums, 0)
        total = limit
    target, before, found = (1.0 - uniform) * total, zero, end
    for start in range(begin, end, BLOCK):
        sums = _running(log_probs, order, best, heat, before, start, end, HAS_ORDER, BLOCK)
        found = tl.minimum(found, tl.min(tl.where(sums >= target, start + tl.arange(0, BLOCK), end), 0))
        before = tl.max(sums, 0)
    return found


@triton.jit
def _draw(
    log_probs, left, ends, node, is_done, order, temperature, uniform, picked,
    num_options, num_nodes, num_draws, top_p, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0).to(tl.int64)
    log_probs += query * num_options
    left += query * num_options
    order += query * num_options
    ends += query * num_nodes
    for draw in range(num_draws):
        place = query * num_draws + draw
        if tl.load(is_done + place) == 0:
            where = tl.load(node + place)
            end = tl.load(ends + where)
            begin = tl.load(ends + where - 1, mask=where > 0, other=0)
            option, best = _best(log_probs, begin, end, BLOCK)
            heat = tl.load(temperature + draw)
            if heat > 0:
                number = tl.load(uniform + draw)
                option = _sampled(log_probs, order, best, heat, number, begin, end, top_p, HAS_ORDER, BLOCK)
                if HAS_ORDER:
                    option = tl.load(order + option)
            tl.store(picked + place, option)
            room = tl.load(left + option) - 1
            tl.debug_barrier()
            tl.store(left + option, room)
            tl.store(log_probs + option, float("-inf"), mask=room == 0)
            tl.debug_barrier()


def draw_on_cuda(
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
    """`zerogr.decoding.device.draw.draw`."""
    num_queries, num_draws = node.shape
    picked = torch.zeros_like(node)
    given = (log_probs.clone(), left.clone(), ends, node, is_done.to(torch.int8), order)
    _draw[(num_queries,)](
        *(each.contiguous() for each in given), temperature, uniform.contiguous(), picked,
        log_probs.shape[1], ends.shape[1], num_draws, max(top_p, 0.0), HAS_ORDER=top_p >= 0, BLOCK=BLOCK,
    )  # fmt: skip
    return picked
