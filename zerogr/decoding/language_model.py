"""The `scores` of a Hugging Face causal language model: one KV cache for the prompt and the tree of prefixes.

The prompt is encoded once. Every evaluated prefix adds its last token to the same cache, in any order; a 4-D attention
mask lets it see the prompt, its own ancestors and itself, and position ids are given by depth. So one forward pass
evaluates many prefixes of the tree, nothing is copied between them, and the result is that of plain decoding.

    cache        p0 p1 p2 | a  b  ab  abc  bd     (prompt | prefixes, as they were evaluated)
    abc sees      x  x  x | x      x   x

Cost: one token per prefix and forward; keys and values of every evaluated prefix stay until the scorer is dropped.
Works for models of the Llama, Qwen and Mistral kind with `sdpa` or `eager` attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

Prefix = tuple[int, ...]


class CachedTreeScorer:
    """Scores prefixes after one prompt; hand it to `zerogr.decoding.decode`. One per query."""

    def __init__(self, model: PreTrainedModel, prompt_ids: Sequence[int]):
        """Encodes the prompt.

        Args:
            model: A causal language model on its device, in its dtype; it is not changed.
            prompt_ids: The rendered prompt up to where the docid begins, at least one token.

        Raises:
            ValueError: The prompt is empty, or the model's attention cannot take a 4-D mask.
        """
        if not len(prompt_ids):
            raise ValueError("the prompt must have at least one token")
        attention = model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"tree attention needs attn_implementation sdpa or eager, the model has {attention!r}")
        self._model = model
        self._prompt_length = len(prompt_ids)
        # Without the model's config the cache keeps every position, sliding windows or not: slots must not be dropped.
        self._cache = DynamicCache()
        self._slots: dict[Prefix, tuple[int, ...]] = {(): ()}
        """Cache positions that hold a prefix: those of its ancestors, then its own."""
        self.num_forwards = 0
        """Forward passes so far, the prompt's included."""
        self._root_logits_1V = self._forward(torch.tensor([list(prompt_ids)], device=model.device), logits_to_keep=1)

    def __call__(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        """Unnormalised log-probabilities (float32 [len(prefixes), V]) of the token after each prefix."""
        evaluated = list(dict.fromkeys(prefix for prefix in prefixes if prefix))
        if not evaluated:
            return np.repeat(self._root_logits_1V, len(prefixes), axis=0)
        self._check_window(max(map(len, evaluated)))
        ancestors = (prefix[:length] for prefix in evaluated for length in range(1, len(prefix)))
        missing = [prefix for prefix in dict.fromkeys(ancestors) if prefix not in self._slots]
        wanted = set(evaluated)
        new = sorted([*evaluated, *(prefix for prefix in missing if prefix not in wanted)], key=len)  # parents first

        past = self._cache.get_seq_length()
        for place, prefix in enumerate(new):
            # A prefix that comes again gets a second slot: its scores are needed, not its keys.
            self._slots[prefix] = (*self._slots[prefix[:-1]], past + place)
        place_of = {prefix: place for place, prefix in enumerate(new)}
        device = self._model.device
        logits_RV = self._forward(
            torch.tensor([[prefix[-1] for prefix in new]], device=device),
            attention_mask=self._tree_mask(new, past),
            position_ids=torch.tensor([[self._prompt_length + len(prefix) - 1 for prefix in new]], device=device),
            logits_to_keep=torch.tensor([place_of[prefix] for prefix in evaluated], device=device),
        )
        logits_of = {(): self._root_logits_1V[0], **dict(zip(evaluated, logits_RV, strict=True))}
        return np.stack([logits_of[prefix] for prefix in prefixes])

    def _tree_mask(self, new: list[Prefix], past: int) -> torch.Tensor:
        """What each new prefix may see: an additive mask [1, 1, len(new), past + len(new)] in the model's dtype."""
        is_visible = np.zeros((len(new), past + len(new)), dtype=bool)
        is_visible[:, : self._prompt_length] = True
        for place, prefix in enumerate(new):
            is_visible[place, list(self._slots[prefix])] = True
        visible = torch.from_numpy(is_visible).to(self._model.device)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=self._model.device)
        return mask.masked_fill_(~visible, torch.finfo(self._model.dtype).min)[None, None]

    def _check_window(self, depth: int) -> None:
        """The mask has no sliding window.

        Raises:
            ValueError: The model has one, and prompt and docid do not fit in it.
        """
        config = self._model.config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if window is not None and self._prompt_length + depth > window:
            raise ValueError(f"prompt and docid have {self._prompt_length + depth} tokens, the model's window {window}")

    @torch.inference_mode()
    def _forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor | int) -> np.ndarray:
        """Runs new tokens [1, n] against the cache, which grows by them; returns the kept logits (float32 [r, V])."""
        self.num_forwards += 1
        output = self._model(input_ids=input_ids, past_key_values=self._cache, use_cache=True, **inputs)
        logits: np.ndarray = output.logits[0].float().cpu().numpy()
        return logits
