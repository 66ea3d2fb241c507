"""Many continuations of each prompt, read by a causal language model one token at a time, on devices that must not wait.

The keys and values of a prompt are stored once, those of its continuations' tokens in the order in which they are read. A new
token attends to its prompt, which all continuations share, and to the tokens of its own continuation, which are gathered by
their places; one softmax covers both. All shapes are known beforehand, so that passes can be captured as CUDA graphs.

For models of the Llama, Qwen and Mistral kind, whose attention must be `PATHS`, or another one that hands `paths` on.

Shapes: B prompts of up to L tokens, W continuations of each, d tokens of a continuation, S places for their tokens, H query
heads, J key heads, G = H / J, D hidden size, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PATHS = "zerogr_paths"
"""The name to give to `model.set_attn_implementation` after `register_paths()`."""


def register_paths() -> None:
    """Makes `PATHS` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(PATHS, path_attention)
    AttentionMaskInterface.register(PATHS, sdpa_mask)


def sliding_window(model: Any) -> int | None:
    """Returns how many tokens a model looks back at most; None = all. Where masks have no window, texts must fit into it."""
    window: int | None = getattr(model.config, "sliding_window", None)
    return window if getattr(model.config, "use_sliding_window", True) else None


class Prompts(NamedTuple):
    """Prompts, padded behind their ends."""

    tokens: torch.Tensor
    """int64 [B, L]."""
    lengths: torch.Tensor
    """int64 [B], at least 1."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], device: torch.device, *, batch: int = 0, length: int = 0) -> Self:
        """Returns texts, the first one repeated and all of them padded to a batch and a length of at least so much."""
        texts = [*texts, *[texts[0]] * (batch - len(texts))]
        lengths = [len(text) for text in texts]
        tokens = np.zeros((len(texts), max(length, *lengths)), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        return cls(torch.from_numpy(tokens).to(device), torch.tensor(lengths, device=device))


class PathReader:
    """Has read some prompts, and reads continuations of them. Stands in for a transformers `Cache`."""

    is_compileable = False

    def __init__(self, model: Any, prompts: Prompts, num_places: int) -> None:
        """Reads the prompts.

        Args:
            model: A causal LM in eval mode.
            prompts: What is to be continued.
            num_places: S, how many tokens of continuations will be read at most.
        """
        tokens_BL, self.lengths = prompts
        num_prompts, length = tokens_BL.shape
        self._model, self._num_places, self._num_read = model, num_places, 0
        self._prompts: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Per layer keys and values [B, J, L, E]."""
        self._paths: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Per layer keys and values [B, S, J, E]."""
        self._ancestors: torch.Tensor | None = None
        places = torch.arange(length, device=tokens_BL.device).expand(num_prompts, length)
        self._first = torch.arange(num_prompts, device=tokens_BL.device)[:, None, None] * num_places
        bias = torch.zeros(num_prompts, length, device=tokens_BL.device, dtype=model.dtype)
        self._bias = bias.masked_fill(places >= self.lengths[:, None], torch.finfo(bias.dtype).min)[:, None, None]
        hidden_BLD = self._forward(tokens_BL, places)
        last = (self.lengths - 1)[:, None, None].expand(-1, 1, hidden_BLD.shape[2])
        self.hidden = hidden_BLD.gather(1, last)
        """[B, W, D]: behind the last token of every continuation; at first behind the prompts, W = 1."""

    def extend(self, tokens: torch.Tensor, ancestors: torch.Tensor) -> None:
        """Reads the next token of every continuation.

        Args:
            tokens: int64 [B, W].
            ancestors: int64 [B, W, d]: the places of the continuations' tokens among all that were read of their prompt, in the
                order in which they were; the new one's, which comes last, is the next that is free.
        """
        self._ancestors = (ancestors + self._first).flatten()
        positions = (self.lengths + (ancestors.shape[2] - 1))[:, None].expand_as(tokens)
        self.hidden = self._forward(tokens, positions)
        self._num_read += tokens.shape[1]

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._bias,  # four dimensions: taken as it is, and read by nobody
            past_key_values=self,
            use_cache=True,
            paths=self,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens before the new ones; for transformers."""
        return int(self._bias.shape[-1]) if self._prompts else 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the keys and values [B, J, tokens, E] of the new tokens and returns them; for transformers."""
        if self._ancestors is None:
            self._prompts.append((key, value))
            return key, value
        if layer_idx == len(self._paths):
            # Places that nobody has written are ancestors of nobody.
            keys, values = (
                new.new_empty(new.shape[0], self._num_places, new.shape[1], new.shape[3]) for new in (key, value)
            )
            self._paths.append((keys, values))
        end = self._num_read + key.shape[2]
        for buffer, new in zip(self._paths[layer_idx], (key, value), strict=True):
            buffer[:, self._num_read : end] = new.transpose(1, 2)
        return key, value

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float | None
    ) -> torch.Tensor:
        """Returns the attention [B, tokens, H, E] of new tokens' queries [B, H, tokens, E]."""
        batch, num_heads, width, size = query.shape
        if self._ancestors is None:
            output = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=num_heads != key.shape[1]
            )
            return output.transpose(1, 2)
        scaling = size**-0.5 if scaling is None else scaling
        prompt_keys, prompt_values = self._prompts[layer]
        path_keys, path_values = (
            buffer.flatten(0, 1).index_select(0, self._ancestors).view(batch, width, -1, *buffer.shape[2:])
            for buffer in self._paths[layer]
        )
        num_key_heads, length = prompt_keys.shape[1], prompt_keys.shape[2]
        grouped = (query * scaling).view(batch, num_key_heads, -1, width, size)  # [B, J, G, W, E]
        flat = grouped.reshape(batch, num_key_heads, -1, size)
        to_prompt = (flat @ prompt_keys.transpose(2, 3) + self._bias).view(*grouped.shape[:4], length)
        to_path = torch.einsum("bjgwe,bwdje->bjgwd", grouped, path_keys)
        weights = torch.cat([to_prompt, to_path], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt, of_path = weights[..., :length], weights[..., length:]
        output = (of_prompt.reshape(*flat.shape[:3], length) @ prompt_values).view(*grouped.shape[:4], -1)
        output = output + torch.einsum("bjgwd,bwdje->bjgwe", of_path, path_values)
        return output.flatten(1, 2).transpose(1, 2)


def path_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    paths: PathReader | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the reader has it; without one, plain attention: the model can still be used as it was."""
    if paths is not None:
        return paths.attend(query, key, value, int(module.layer_idx), scaling), None  # type: ignore[arg-type]
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return output, None
