"""Attention of packed rows: on CPUs, where the stock one is slow to differentiate, and on GPUs by blocks.

On CPUs rows are short and their masks are blocks, so plain products of bf16 matrices do: for eight rows of 128 tokens (9
query heads, 3 key heads of 64) forward and backward took 6 ms on one core with AMX, the library's SDPA 31, nearly all of it
backward. As in `zerogr.llm.attention` the query heads of a group become positions of their one key head: no keys are copied.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

PACKED = "zerogr_packed"
"""The name to give to `model.set_attn_implementation` after `register_packed()`."""


BLOCKS = "zerogr_blocks"
"""The same, for masks of FlexAttention (`zerogr.training.packing.PackedBatch.blocks`)."""


def register_packed() -> None:
    """Makes `PACKED` and `BLOCKS` known to transformers; calling it again changes nothing."""
    for name, attention in ((PACKED, packed_attention), (BLOCKS, block_attention)):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, sdpa_mask)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query [R, H, L, D], key and value [R, H / G, K, D], mask bool [R, 1, L, K], True where a token may look."""
    rows, num_heads, length, size = query.shape
    num_keys, group = key.shape[1], num_heads // key.shape[1]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, num_keys, group * length, size)
    hidden = torch.zeros_like(attention_mask, dtype=query.dtype)
    hidden = hidden.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)
    scores = (grouped @ key.transpose(2, 3)).view(rows, num_keys, group, length, key.shape[2]) + hidden[:, :, None]
    mixed = scores.softmax(-1).view(rows, num_keys, group * length, key.shape[2]) @ value
    return mixed.view(rows, num_heads, length, value.shape[-1]).transpose(1, 2).contiguous(), None


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same with a block mask; on a GPU compiled, on the CPU slow and without a backward pass, for tests."""
    attend = _compiled() if query.is_cuda else flex_attention
    output = attend(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
