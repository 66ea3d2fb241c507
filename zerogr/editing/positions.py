"""Where docids are chosen: the positions of packed queries that predict a docid's token, and what the model computes there.

An editor changes `mlp.down_proj` of some decoder layers. Its *keys* are that matrix' inputs at these positions; its *values*
are what the layer should have put out. Values are looked for in the residual stream behind one layer, and only the layers
above it are computed for that, at these positions alone: keys and values of everything else stand in a cache.

Shapes: R rows of L tokens, P predicting positions, at most n of a row, D hidden size, F width of the MLP, C columns of the
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zerogr.training.attention import PACKED, register_packed
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples
from zerogr.training.packing import PackedBatch, passes

ROW_TOKENS, PASS_TOKENS = 256, 2048


@dataclass(slots=True)
class Seen:
    """What a model computed at the predicting positions of a batch."""

    keys: dict[int, torch.Tensor]
    """By layer, [P, F]."""
    states: torch.Tensor
    """Behind the layer that was asked for, [P, D]."""
    context: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of every layer's attention, [R, J, L, E] each."""
    before: torch.Tensor
    """What goes into the layer that was asked for, of all tokens, [R, L, D]."""


class Reader:
    """A model in which one looks at, and changes, what is computed where docids are chosen."""

    def __init__(self, model: Any, choices: Choices | None) -> None:
        """Takes a causal LM over, of the Llama, Qwen or Mistral kind; `choices` as the examples were made with."""
        register_packed()
        model.set_attn_implementation(PACKED)
        self.model = model.eval().requires_grad_(False)
        self.layers = model.get_decoder().layers
        self._choices = choices

    def batches(self, examples: Examples, ids: np.ndarray | None = None) -> list[PackedBatch]:
        """Returns examples, packed."""
        ids = np.arange(len(examples)) if ids is None else ids
        packed = passes(examples, ids, ROW_TOKENS, PASS_TOKENS, self._choices)
        return [batch.to(self.model.device) for batch in packed]

    def weight(self, layer: int) -> torch.Tensor:
        """Returns what is edited in a layer, [D, F]."""
        weight: torch.Tensor = self.layers[layer].mlp.down_proj.weight
        return weight

    @torch.no_grad()
    def read(self, batch: PackedBatch, layers: Sequence[int], behind: int, before: int = 0) -> Seen:
        """Runs a batch.

        Args:
            batch: Of `batches`.
            layers: Whose keys are wanted.
            behind: The layer whose output is wanted.
            before: The layer whose input is wanted.
        """
        keys: dict[int, torch.Tensor] = {}
        states: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []

        def keep_key(layer: int) -> Any:
            def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                keys[layer] = inputs[0].flatten(0, 1)[batch.predicting]

            return hook

        def keep_state(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states.append(hidden.flatten(0, 1)[batch.predicting])

        def keep_input(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            inputs.append(given[0])

        hooks = [self.layers[layer].mlp.down_proj.register_forward_pre_hook(keep_key(layer)) for layer in layers]
        hooks.append(self.layers[behind].register_forward_hook(keep_state))
        hooks.append(self.layers[before].register_forward_pre_hook(keep_input))
        context = _Context()
        try:
            self.model.get_decoder()(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                attention_mask=batch.mask(),
                past_key_values=context,
                use_cache=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return Seen(keys, states[0], context.stored, inputs[0])

    @torch.no_grad()
    def go_on(
        self, batch: PackedBatch, hidden: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs some layers, from what goes into the first of them.

        Args:
            batch: What `hidden` was read from.
            hidden: [R, L, D]
            first, last: The layers, both included.

        Returns:
            The keys of the first layer, [P, F], and what the last one puts out, [R, L, D].
        """
        decoder, keys = self.model.get_decoder(), list[torch.Tensor]()

        def keep_key(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            keys.append(inputs[0].flatten(0, 1)[batch.predicting])

        mask, embeddings = batch.mask(), decoder.rotary_emb(hidden, batch.positions)
        hook = self.layers[first].mlp.down_proj.register_forward_pre_hook(keep_key)
        try:
            for layer in self.layers[first : last + 1]:
                output = layer(
                    hidden,
                    attention_mask=mask,
                    position_ids=batch.positions,
                    use_cache=False,
                    position_embeddings=embeddings,
                )
                hidden = output[0] if isinstance(output, tuple) else output
        finally:
            hook.remove()
        return keys[0], hidden

    def above(self, batch: PackedBatch, seen: Seen, behind: int) -> Above:
        """Returns the layers above one, at the predicting positions of a batch that was read."""
        return Above(self, batch, seen, behind)


class _Context:
    """Keeps the keys and values of a whole pass. Stands in for a transformers `Cache`."""

    is_compileable = False

    def __init__(self) -> None:
        self.stored: list[tuple[torch.Tensor, torch.Tensor]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns 0: nothing came before."""
        return 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the keys and values of a layer, and returns them."""
        self.stored.append((key, value))
        return key, value


class Above:
    """The layers above one, at predicting positions alone; differentiable in the states that go in."""

    def __init__(self, reader: Reader, batch: PackedBatch, seen: Seen, behind: int) -> None:
        self._reader, self._behind = reader, behind
        num_rows, length = batch.tokens.shape
        row, place = batch.predicting // length, batch.predicting % length
        counts = torch.bincount(row, minlength=num_rows)
        order = torch.argsort(row, stable=True)
        slot = torch.empty_like(order)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        slot[order] = torch.arange(len(order), device=order.device) - first
        self._row, self._slot, self._width = row, slot, int(counts.max())
        device = batch.tokens.device
        self._places = torch.full((num_rows, self._width), length, device=device)  # unused slots write behind the end
        self._places[row, slot] = place
        self._positions = torch.zeros_like(self._places)
        self._positions[row, slot] = batch.positions.flatten()[batch.predicting]
        mask = torch.zeros(num_rows, self._width, length + 1, dtype=torch.bool, device=device)
        mask[row, slot, :length] = batch.mask()[:, 0].flatten(0, 1)[batch.predicting]
        mask[..., length] |= ~mask.any(-1)  # whoever is nobody looks at nothing
        self._mask = mask[:, None]
        self._context = [tuple(torch.nn.functional.pad(each, (0, 0, 0, 1)) for each in kept) for kept in seen.context]

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the final hidden states [P, D] where the layer below puts out `states` [P, D]."""
        decoder = self._reader.model.get_decoder()
        hidden = states.new_zeros(*self._places.shape, states.shape[1])
        hidden = hidden.index_put((self._row, self._slot), states)
        embeddings = decoder.rotary_emb(hidden, self._positions)
        for layer in self._reader.layers[self._behind + 1 :]:
            output = layer(
                hidden,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self,
                use_cache=True,
                position_embeddings=embeddings,
            )
            hidden = output[0] if isinstance(output, tuple) else output
        final: torch.Tensor = decoder.norm(hidden)[self._row, self._slot]
        return final

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, ...]:
        """Returns the row's keys and values with the new ones in their places; for transformers."""
        at = self._places[:, None, :, None].expand_as(key)
        return tuple(old.scatter(2, at, new) for old, new in zip(self._context[layer_idx], (key, value), strict=True))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns 0: positions are given."""
        return 0
