"""Attention over many growing trees at once: the KV cache and the attention function of the tree decoder.

The new tokens of all queries are packed into one row [1, T], so that the model's linear layers see no padding. Each query has
a row of its own in the cache, whose slots hold a tree: its prompt, then prefixes in the order they were evaluated.

    cache row    p0 p1 p2 | a  b  ab  abc  bd     (prompt | prefixes)
    abc sees      x  x  x | x      x   x

A token sees a small part of a large tree. So the new tokens of a query, in the order of their paths, are cut into blocks, and
a block's attention reads only the slots that some token in it sees. All blocks of all queries are one batched call,
padded to the largest of them. The query heads that share a key head become further query positions of it, which spares
the copies of grouped-query attention.

Shapes: T new tokens of all queries, N blocks, n tokens of the largest block, U slots of the block that sees most, R cache
rows, H query heads, J key heads, G = H / J, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from zerogr.llm.paths import path_attention

TREE_ATTENTION = "zerogr_tree"
"""The name to give to `model.set_attn_implementation` after `register_tree_attention()`."""

BLOCK_TOKENS = 32
"""Most tokens of a block. Larger blocks see more slots that most of their tokens do not, smaller ones copy the prompt more."""

_SPARE_SLOTS = 64

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer the keys and values [tokens, J, D] of a piece of text."""


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
    """int64 [n], in the order of their paths."""
    positions: np.ndarray
    """int64 [n], from 0."""
    is_visible: np.ndarray
    """bool [n, slots in use with the new ones]: what each token may see, itself included."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the new tokens of one forward pass stand, and what their blocks see."""

    slot_T: torch.Tensor
    """int64: row * slots of a row + slot."""
    place_T: torch.Tensor
    """int64: place in the padded blocks [N n]."""
    seen_NU: torch.Tensor
    """int64: row * slots of a row + slot."""
    block_tokens: int
    """n."""
    is_padded: bool
    """Whether the blocks have places without a token."""


class TreeCache:
    """Keys and values of R queries in buffers with room to grow; stands in for a transformers `Cache`."""

    is_compileable = False

    def __init__(self, num_rows: int):
        self._num_rows = num_rows
        self._num_slots = 0
        self._buffers: list[list[torch.Tensor]] = []
        """Per layer keys and values [R, slots, J, D]."""
        self._layout: Layout | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of slots of a row."""
        return self._num_slots

    def place(self, new: Sequence[NewTokens], device: torch.device, dtype: torch.dtype) -> tuple[Layout, torch.Tensor]:
        """Lays out the next forward pass: where its tokens go, and the additive mask [N, n, U] of what blocks see."""
        self._reserve(max(part.is_visible.shape[1] for part in new))
        slots = [part.row * self._num_slots + np.arange(part.is_visible.shape[1]) for part in new]
        self._layout, mask = layout_of(new, slots, device, dtype)
        return self._layout, mask

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new tokens' keys and values [1, J, T, D] and returns those that the blocks see [N, J, U, D]."""
        layout = self._layout
        assert layout is not None, "`place` comes before the forward pass"
        found = []
        for buffer, new in zip(self._grown(layer_idx, (key, value)), (key, value), strict=True):
            slots = buffer.view(-1, *buffer.shape[2:])
            slots.index_copy_(0, layout.slot_T, new[0].transpose(0, 1))
            seen = slots.index_select(0, layout.seen_NU.view(-1))
            found.append(seen.view(*layout.seen_NU.shape, *seen.shape[1:]).transpose(1, 2))
        return found[0], found[1]

    def put(self, row: int, text: KeysValues) -> None:
        """Copies the keys and values of a piece of text into the first slots of a row."""
        self._reserve(len(text[0][0]))
        for layer, parts in enumerate(text):
            like = [part.transpose(0, 1)[None] for part in parts]
            for buffer, part in zip(self._grown(layer, like), parts, strict=True):
                buffer[row, : len(part)] = part

    def first(self, row: int, num_tokens: int) -> KeysValues:
        """A copy of the keys and values in the first slots of a row."""
        return [(keys[row, :num_tokens].clone(), values[row, :num_tokens].clone()) for keys, values in self._buffers]

    def _reserve(self, num_slots: int) -> None:
        if num_slots > self._num_slots:
            self._num_slots = max(2 * self._num_slots, num_slots + _SPARE_SLOTS)

    def _grown(self, layer: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The layer's buffers with as many slots as are reserved; `like` [1, J, any, D] gives the other sizes."""
        if layer == len(self._buffers):
            # Zeros, not garbage: padding reads slot 0, and a masked NaN is still a NaN.
            self._buffers.append([part.new_zeros(self._num_rows, 0, part.shape[1], part.shape[3]) for part in like])
        buffers = self._buffers[layer]
        if buffers[0].shape[1] < self._num_slots:
            for i, buffer in enumerate(buffers):
                rows, used, heads, size = buffer.shape
                buffers[i] = buffer.new_zeros(rows, self._num_slots, heads, size)
                buffers[i][:, :used] = buffer
        return buffers


def layout_of(
    new: Sequence[NewTokens], slots: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
) -> tuple[Layout, torch.Tensor]:
    """Returns where new tokens go, and the additive mask [N, n, U] of what their blocks see.

    Args:
        new: Of all queries.
        slots: For each part of them the slots of its query so far, in order, its own the last; int64 [slots in use].
        device, dtype: Of the mask.
    """
    blocks: list[tuple[np.ndarray, np.ndarray]] = []  # slots [u], what is visible of them [m, u]
    own = []
    for part, of_query in zip(new, slots, strict=True):
        count = len(part.is_visible)
        own.append(of_query[len(of_query) - count :])
        for is_visible in np.array_split(part.is_visible, -(-count // BLOCK_TOKENS)):
            seen = np.flatnonzero(is_visible.any(axis=0))
            blocks.append((of_query[seen], is_visible[:, seen]))
    width = max(len(is_visible) for _, is_visible in blocks)
    seen_NU = np.zeros((len(blocks), max(len(seen) for seen, _ in blocks)), dtype=np.int64)
    visible_NnU = np.zeros((len(blocks), width, seen_NU.shape[1]), dtype=bool)
    places = []
    for block, (seen, is_visible) in enumerate(blocks):
        seen_NU[block, : len(seen)] = seen
        visible_NnU[block, : len(is_visible), : len(seen)] = is_visible
        places.append(block * width + np.arange(len(is_visible)))
    place_T = np.concatenate(places)
    layout = Layout(
        slot_T=torch.from_numpy(np.concatenate(own)).to(device),
        place_T=torch.from_numpy(place_T).to(device),
        seen_NU=torch.from_numpy(seen_NU).to(device),
        block_tokens=width,
        is_padded=len(place_T) < len(blocks) * width,
    )
    visible = torch.from_numpy(visible_NnU).to(device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    return layout, mask.masked_fill_(~visible, torch.finfo(dtype).min)


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
    """Attention of packed queries [1, H, T, D] to the blocks' keys and values [N, J, U, D], mask [N, 1, G n, U].

    Without a layout, the attention of `zerogr.llm.paths`; without its reader as well, plain attention: the model can still be
    used as it was.
    """
    if tree_layout is None:
        return path_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    num_blocks, num_key_heads = key.shape[:2]
    _, num_heads, _, size = query.shape
    width = tree_layout.block_tokens
    blocks = query[0].transpose(0, 1)
    if tree_layout.is_padded:
        blocks = query.new_zeros(num_blocks * width, num_heads, size).index_copy_(0, tree_layout.place_T, blocks)
    grouped = blocks.reshape(num_blocks, width, num_key_heads, -1, size).permute(0, 2, 3, 1, 4)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped.reshape(num_blocks, num_key_heads, -1, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    output = output.view(num_blocks, num_key_heads, -1, width, value.shape[3]).permute(0, 3, 1, 2, 4)
    output = output.reshape(num_blocks * width, num_heads, value.shape[3])
    return (output.index_select(0, tree_layout.place_T) if tree_layout.is_padded else output)[None], None
