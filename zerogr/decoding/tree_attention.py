"""Attention over many growing trees at once: the KV cache and the attention function of the tree decoder.

The new tokens of all queries are packed into one row [1, T], so that the model's linear layers see no padding. Each query
has a row of its own in the cache; only attention is padded, to the query with the most new tokens. What a token may see
is a mask, so the slots of a row may hold a tree: its prompt, then prefixes in the order they were evaluated.

    cache row    p0 p1 p2 | a  b  ab  abc  bd     (prompt | prefixes)
    abc sees      x  x  x | x      x   x

The query heads that share a key head become further query positions of it, which spares the copies of
grouped-query attention.

Shapes: T new tokens of all queries, R cache rows, n new tokens of the row that has most, L slots, H query heads, J key heads,
G = H / J, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE_ATTENTION = "zerogr_tree"
"""The name to give to `model.set_attn_implementation` after `register_tree_attention()`."""

_SPARE_SLOTS = 64

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer the keys and values [J, tokens, D] of a piece of text."""


def register_tree_attention() -> None:
    """Makes `TREE_ATTENTION` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(TREE_ATTENTION, _tree_attention)
    AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


class ForwardPass(NamedTuple):
    """The shape of one forward pass; a plain forward of the same shape is the floor of its time."""

    num_tokens: int
    """New tokens of all queries."""
    num_queries: int
    """Queries with new tokens."""
    num_slots: int
    """Tokens of the longest query, the new ones included."""


class NewTokens(NamedTuple):
    """The new tokens of one query in a forward pass; they take the next slots of its cache row."""

    row: int
    tokens: np.ndarray
    """int64 [n]."""
    positions: np.ndarray
    """int64 [n], from 0."""
    is_visible: np.ndarray
    """bool [n, slots in use with the new ones]: what each token may see, itself included."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the T new tokens of one forward pass stand."""

    row_T: torch.Tensor
    """int64: cache row."""
    slot_T: torch.Tensor
    """int64: slot within the row."""
    padded_T: torch.Tensor
    """int64: place in the padded [R n]."""
    num_rows: int
    """R."""
    width: int
    """n."""
    num_slots: int
    """L."""


class TreeCache:
    """Keys and values of R queries in buffers with room to grow; stands in for a transformers `Cache`."""

    is_compileable = False

    def __init__(self, num_rows: int):
        self._num_rows = num_rows
        self._buffers: list[list[torch.Tensor]] = []
        """Per layer keys and values [R, J, slots, D]."""
        self._layout: Layout | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of slots in use by the longest row."""
        return self._layout.num_slots if self._layout else 0

    def place(self, new: Sequence[NewTokens], device: torch.device, dtype: torch.dtype) -> tuple[Layout, torch.Tensor]:
        """Lays out the next forward pass: where its tokens go, and the additive mask [R, n, L] of what they see."""
        width = max(len(part.tokens) for part in new)
        num_slots = max(part.is_visible.shape[1] for part in new)
        is_visible = np.zeros((self._num_rows, width, num_slots), dtype=bool)
        places = []
        for part in new:
            count, slots = part.is_visible.shape
            is_visible[part.row, :count, :slots] = part.is_visible
            place = np.arange(count)
            places.append(np.stack([np.full(count, part.row), slots - count + place, part.row * width + place]))
        row_T, slot_T, padded_T = torch.from_numpy(np.concatenate(places, axis=1)).to(device)
        self._layout = Layout(row_T, slot_T, padded_T, self._num_rows, width, num_slots)
        visible = torch.from_numpy(is_visible).to(device)
        mask = torch.zeros(visible.shape, dtype=dtype, device=device)
        return self._layout, mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new tokens' keys and values [1, J, T, D] and returns those of all slots [R, J, L, D]."""
        layout = self._layout
        assert layout is not None, "`place` comes before the forward pass"
        buffers = self._grown(layer_idx, (key, value), layout.num_slots)
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer[layout.row_T, :, layout.slot_T] = new[0].transpose(0, 1)
        keys, values = (buffer[:, :, : layout.num_slots] for buffer in buffers)
        return keys, values

    def put(self, row: int, text: KeysValues) -> None:
        """Copies the keys and values of a piece of text into the first slots of a row."""
        for layer, parts in enumerate(text):
            buffers = self._grown(layer, [part[None] for part in parts], parts[0].shape[1])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[row, :, : part.shape[1]] = part

    def row(self, row: int) -> KeysValues:
        """A copy of the keys and values of a row."""
        num_slots = self.get_seq_length()
        return [
            (keys[row, :, :num_slots].clone(), values[row, :, :num_slots].clone()) for keys, values in self._buffers
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which become 0, 1, ..."""
        self._num_rows = len(rows)
        for buffers in self._buffers:
            index = torch.tensor(rows, device=buffers[0].device)
            buffers[:] = [buffer.index_select(0, index) for buffer in buffers]

    def _grown(self, layer: int, like: Sequence[torch.Tensor], num_slots: int) -> list[torch.Tensor]:
        """The buffers of a layer, with room for `num_slots`; new room holds zeros, for a masked NaN is still a NaN."""
        if layer == len(self._buffers):
            self._buffers.append([part.new_zeros(self._num_rows, part.shape[1], 0, part.shape[3]) for part in like])
        buffers = self._buffers[layer]
        if num_slots > buffers[0].shape[2]:
            for i, buffer in enumerate(buffers):
                rows, heads, used, size = buffer.shape
                buffers[i] = buffer.new_zeros(rows, heads, max(2 * used, num_slots + _SPARE_SLOTS), size)
                buffers[i][:, :, :used] = buffer
        return buffers


def _tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed queries [1, H, T, D] to keys and values [R, J, L, D] under an additive mask [R, 1, G n, L].

    Without a layout, plain attention: the model can still be used as it was.
    """
    if tree_layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return output, None
    _, num_heads, num_tokens, size = query.shape
    num_rows, num_key_heads = key.shape[:2]
    width = tree_layout.width
    packed_THD = query[0].transpose(0, 1)
    if num_tokens == num_rows * width:  # no padding: packed is padded
        padded = packed_THD
    else:
        padded = query.new_zeros(num_rows * width, num_heads, size)
        padded[tree_layout.padded_T] = packed_THD
    grouped = padded.view(num_rows, width, num_key_heads, -1, size).permute(0, 2, 3, 1, 4)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped.reshape(num_rows, num_key_heads, -1, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    output = output.view(num_rows, num_key_heads, -1, width, value.shape[3]).permute(0, 3, 1, 2, 4)
    output = output.reshape(num_rows * width, num_heads, value.shape[3])
    return (output if num_tokens == num_rows * width else output[tree_layout.padded_T])[None], None
