"""Draws one after the other on CUDA, one program per query with the options of a node in parallel; and noise, one per prefix.

Imported on CUDA alone; Triton comes with torch's builds for CUDA. Under `TRITON_INTERPRET=1` it runs on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from zerogr.decoding import noise

BLOCK = 1024
"""Options that a thread block looks at together."""


def _constant(number: int) -> Any:
    """Returns a number of `zerogr.decoding.noise` as Triton's int64 has it."""
    return tl.constexpr(number - 2**64 if number >= 2**63 else number)


GOLDEN = _constant(noise.GOLDEN)
FIRST_FACTOR, SECOND_FACTOR = (_constant(factor) for _, factor in noise.MIXERS)


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


@triton.jit
def _noisy(log_probs, tokens, parent, start, end, BLOCK: tl.constexpr):
    """Hashes of a block of options, and their log-probabilities with Gumbel noise; see `zerogr.decoding.noise`."""
    places = start + tl.arange(0, BLOCK)
    token = tl.load(tokens + places, mask=places < end, other=0)
    own = parent + (token + 1) * GOLDEN
    own = (own ^ ((own >> 30) & ((1 << 34) - 1))) * FIRST_FACTOR
    own = (own ^ ((own >> 27) & ((1 << 37) - 1))) * SECOND_FACTOR
    own = own ^ ((own >> 31) & ((1 << 33) - 1))
    uniform = (((own >> 11) & ((1 << 53) - 1)).to(tl.float64) + 0.5) * 1.1102230246251565e-16
    log_prob = tl.load(log_probs + places, mask=places < end, other=float("-inf"))
    return own, log_prob - tl.log(-tl.log(uniform))


@triton.jit
def _perturb(
    log_probs, tokens, ends, hashes, perturbed, is_kept, found_hashes, found,
    num_options, num_prefixes, BLOCK: tl.constexpr,
):  # fmt: skip
    query, prefix = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = query * num_prefixes + prefix
    log_probs += query * num_options
    tokens += query * num_options
    found_hashes += query * num_options
    found += query * num_options
    end = tl.load(ends + place)
    begin = tl.load(ends + place - 1, mask=prefix > 0, other=0)
    parent, total = tl.load(hashes + place), tl.load(perturbed + place)
    if tl.load(is_kept + place) != 0:
        tl.store(found_hashes + begin, parent, mask=end > begin)
        tl.store(found + begin, total, mask=end > begin)
    else:
        highest = tl.full((), float("-inf"), tl.float64)
        for start in range(begin, end, BLOCK):
            _, noisy = _noisy(log_probs, tokens, parent, start, end, BLOCK)
            highest = tl.maximum(highest, tl.max(noisy, 0))
        for start in range(begin, end, BLOCK):
            own, noisy = _noisy(log_probs, tokens, parent, start, end, BLOCK)
            shift = total - noisy + tl.log(1.0 - tl.exp(noisy - highest))
            value = total - tl.maximum(shift, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(shift)))
            is_here = start + tl.arange(0, BLOCK) < end
            tl.store(found_hashes + start + tl.arange(0, BLOCK), own, mask=is_here)
            is_option = is_here & (noisy > float("-inf"))
            tl.store(found + start + tl.arange(0, BLOCK), value, mask=is_option)


def perturb_on_cuda(
    log_probs: torch.Tensor,
    tokens: torch.Tensor,
    ends: torch.Tensor,
    hashes: torch.Tensor,
    perturbed: torch.Tensor,
    is_kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`zerogr.decoding.device.perturb.perturb`."""
    found_hashes, found = torch.zeros_like(tokens), torch.full_like(log_probs, float("-inf"))
    given = (log_probs, tokens, ends, hashes, perturbed, is_kept.to(torch.int8))
    _perturb[tuple(ends.shape)](
        *(each.contiguous() for each in given), found_hashes, found, log_probs.shape[1], ends.shape[1], BLOCK=BLOCK
    )
    return found_hashes, found
