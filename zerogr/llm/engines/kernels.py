"""Sampling on CUDA: one program per row, which reads the row's logits from the cache a few dozen times and sorts nothing.

Imported on CUDA alone; Triton comes with torch's builds for CUDA. Under `TRITON_INTERPRET=1` it runs on the CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096
"""Tokens that a thread block looks at together."""
_BITS = 31
"""Halvings that find a float32 in [0, 1] exactly."""


@triton.jit
def _mass(logits, best, temperature, least, num_tokens, BLOCK: tl.constexpr):
    """The sum of the weights that are at least `least`, each a share of the largest."""
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, num_tokens, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(logits + places, mask=places < num_tokens, other=float("-inf")).to(tl.float32)
        weights = tl.exp((values - best) / temperature)
        total += tl.sum(tl.where((weights >= least) & (places < num_tokens), weights, 0.0), 0).to(tl.float64)
    return total


@triton.jit
def _sample(logits, uniform, tokens, num_tokens, temperature, top_p, BITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_tokens
    best = tl.full((), float("-inf"), tl.float32)
    for start in range(0, num_tokens, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(logits + places, mask=places < num_tokens, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, tl.max(values, 0))
    least = tl.full((), 0.0, tl.float32)
    total = _mass(logits, best, temperature, least, num_tokens, BLOCK)
    if (
        top_p < 1.0
    ):  # the largest weight that at least top_p of the mass is not below; floats above 0 are ordered as their bits
        low, high = tl.full((), 0, tl.int32), tl.full((), 0x3F800001, tl.int32)
        for _ in range(BITS):
            middle = (low + high) // 2
            is_enough = (
                _mass(logits, best, temperature, middle.to(tl.float32, bitcast=True), num_tokens, BLOCK)
                >= top_p * total
            )
            low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        least = low.to(tl.float32, bitcast=True)
        total = _mass(logits, best, temperature, least, num_tokens, BLOCK)
    target = tl.load(uniform + row) * total
    found, before = num_tokens, tl.full((), 0.0, tl.float64)
    last = tl.full((), 0, tl.int32)
    for start in range(0, num_tokens, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(logits + places, mask=places < num_tokens, other=float("-inf")).to(tl.float32)
        weights = tl.exp((values - best) / temperature)
        is_in = (weights >= least) & (places < num_tokens) & (weights > 0)
        sums = before + tl.cumsum(tl.where(is_in, weights, 0.0).to(tl.float64), 0)
        found = tl.minimum(found, tl.min(tl.where(is_in & (sums > target), places, num_tokens), 0))
        last = tl.maximum(last, tl.max(tl.where(is_in, places, 0), 0))
        before = tl.max(sums, 0)
    tl.store(tokens + row, tl.minimum(found, last))


def sample_on_cuda(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Returns one token per row (int64 [R]), as `zerogr.llm.engines.sampling.draw_tokens` does.

    Args:
        logits: [R, V], of any precision.
        uniforms: float64 [R], in [0, 1).
        temperature: Above 0.
        top_p: Of the nucleus; 1 for none.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    _sample[(len(logits),)](
        logits.contiguous(), uniforms.contiguous(), tokens, logits.shape[1], temperature, top_p, BITS=_BITS, BLOCK=BLOCK
    )
    return tokens
