"""How much goes through the model at a time: as much as the device has room for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_BYTES_PER_PARAMETER = 18
"""Of bf16 weights and gradients, fp32 masters, their gradients and two moments."""
_ROOM = 0.6


class Sizes(NamedTuple):
    """What `zerogr.training.packing.passes` is told."""

    row_tokens: int
    pass_tokens: int
    length_step: int = 1
    row_step: int = 1


def sizes_for(
    model: Any, row_tokens: int | None, pass_tokens: int | None, *, device: torch.device, num_ranks: int = 1
) -> Sizes:
    """Returns the sizes that are given, and for those that are not what the device has room for.

    On a CPU rows of 256 and passes of 4,096 tokens: memory is short, and small passes cost little. On a GPU rows of 1,024, and
    passes that take `_ROOM` of the memory which weights, gradients and moments leave. A token takes 24 D + 5 I bytes per layer
    in bf16 (D hidden, I inner size), fitted to the peaks of two runs on an H200, of 135M and 1B. There, shapes are filled up to
    a few: attention is planned anew for every new one, and code that is compiled is made for some.

    Args:
        model: Not sharded yet.
        row_tokens, pass_tokens: As configured; None = not.
        device: Where the rank computes.
        num_ranks: That share weights, gradients and moments.
    """
    if device.type != "cuda":
        return Sizes(row_tokens or 256, pass_tokens or 4096)
    if pass_tokens is None:
        config = model.config
        per_token = config.num_hidden_layers * (24 * config.hidden_size + 5 * config.intermediate_size)
        fixed = _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters()) / num_ranks
        room = _ROOM * (torch.cuda.get_device_properties(device).total_memory - fixed)
        pass_tokens = max(4096, int(room / per_token) // 1024 * 1024)
    return Sizes(row_tokens or 1024, pass_tokens, length_step=128, row_step=4)
