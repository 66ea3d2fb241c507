"""Latents: a causal LM reads a text into a few vectors, and writes a text from such vectors alone.

A text is read behind an instruction and closed with `num_latents` end tokens. The last layer's states there, each scaled to a
root mean square of 1, are its latent. A linear layer, the bridge, turns a latent into input embeddings, and behind these the
same model writes. It sees nothing else of what was read.

Shape suffixes: N texts, L tokens, Z latents of a text, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import fastest_dtype, load_model

BRIDGE = "bridge.safetensors"
"""Beside the model: `weight` [H, H] and `bias` [H]."""
DOCUMENT = "Write the search query that this text answers."
QUERY = "Write this search query again."
"""The instructions behind which documents and queries are read."""


def closed_texts(chat: ChatFormat, instruction: str | None, texts: list[str], num_latents: int) -> list[list[int]]:
    """Returns the tokens of texts, each cut to `chat.max_query_tokens`, with the end tokens that their latents are read at.

    The instruction goes before; None = it does not.
    """
    before = [] if instruction is None else chat.prefix(instruction)
    closing = [chat.end_token_id] * num_latents
    return [[*before, *tokens[: len(tokens) - len(chat.between)], *closing] for tokens in chat.queries(texts)]


def new_bridge(model: Any) -> nn.Linear:
    """Returns a bridge for a model, drawn so that what it gives is as long as the model's own embeddings are."""
    embeddings = model.get_input_embeddings().weight
    bridge = nn.Linear(embeddings.shape[1], embeddings.shape[1])
    scale = float(embeddings.detach().float().square().mean().sqrt())
    nn.init.normal_(bridge.weight, std=scale * embeddings.shape[1] ** -0.5)
    nn.init.zeros_(bridge.bias)
    return bridge.to(embeddings.device, embeddings.dtype)


def states_of(model: Any, embeddings_NLH: torch.Tensor) -> torch.Tensor:
    """Returns the last layer's states of rows that are padded behind their end, [N, L, H]; no token looks at padding."""
    length = embeddings_NLH.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=embeddings_NLH.device).tril()[None, None]
    found = model.get_decoder()(inputs_embeds=embeddings_NLH, attention_mask=mask, use_cache=False)
    states: torch.Tensor = found.last_hidden_state
    return states


def latents_of(model: Any, tokens_NL: torch.Tensor, lengths_N: torch.Tensor, num_latents: int) -> torch.Tensor:
    """Returns the latents of closed texts, [N, Z, H] in fp32 (fp64 of an fp64 model).

    Args:
        model: A causal LM.
        tokens_NL: int64, padded behind the end with any token.
        lengths_N: int64, with the end tokens.
        num_latents: Z.
    """
    states = states_of(model, model.get_input_embeddings()(tokens_NL))
    at = (lengths_N - num_latents)[:, None] + torch.arange(num_latents, device=tokens_NL.device)
    found = states.gather(1, at[:, :, None].expand(-1, -1, states.shape[2]))
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found * found.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()


class LatentModel:
    """A model that was trained with a bridge, and reads and writes."""

    def __init__(self, folder: Path, *, num_latents: int, device: str | None = None, dtype: Any = None) -> None:
        """Loads it.

        Args:
            folder: With the model and its bridge.
            num_latents: With which it was trained.
            device: None = the GPU if there is one.
            dtype: None = what the device is fastest in.
        """
        from safetensors.torch import load_file

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self._tokenizer = load_model(str(folder), device=device, dtype=dtype or fastest_dtype(device))
        self._chat = ChatFormat.of(self._tokenizer)
        self._num_latents, self.is_on_gpu = num_latents, torch.device(device).type == "cuda"
        self._bridge = new_bridge(self.model)
        self._bridge.load_state_dict(load_file(folder / BRIDGE))
        self.width: int = num_latents * self._bridge.in_features
        """Of a latent, Z * H."""

    @torch.inference_mode()
    def read(self, texts: list[str], *, max_tokens: int) -> torch.Tensor:
        """Returns the latents of documents, fp32 [N, Z * H] on the host; each is read to its `max_tokens`-th token."""
        chat = replace(self._chat, max_query_tokens=max_tokens)
        closed = closed_texts(chat, DOCUMENT, texts, self._num_latents)
        lengths = torch.tensor([len(tokens) for tokens in closed])
        padded = torch.zeros(len(closed), int(lengths.max()), dtype=torch.int64)
        for row, tokens in zip(padded, closed, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        device = self.model.device
        return latents_of(self.model, padded.to(device), lengths.to(device), self._num_latents).flatten(1).cpu()

    @torch.inference_mode()
    def write(self, latents: torch.Tensor, *, num_beams: int, max_tokens: int) -> list[list[str]]:
        """Returns for each latent [N, Z * H] the texts that a beam search ends with, `num_beams` of them, best first.

        They are ordered by log-probability divided by their length in tokens.
        """
        tokens = self.search(latents, num_beams=num_beams, max_tokens=max_tokens)
        texts: Sequence[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [list(texts[first : first + num_beams]) for first in range(0, len(texts), num_beams)]

    @torch.inference_mode()
    def search(self, latents: torch.Tensor, *, num_beams: int, max_tokens: int) -> list[list[int]]:
        """Returns the same as tokens, the beams of a latent one behind the other; behind the end come more end tokens."""
        from transformers import GenerationConfig

        weight = self._bridge.weight
        prompts = self._bridge(latents.to(weight).view(len(latents), self._num_latents, -1))
        end = self._chat.end_token_id
        settings = GenerationConfig(
            max_new_tokens=max_tokens, num_beams=num_beams, num_return_sequences=num_beams, do_sample=False,
            eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        mask = torch.ones(prompts.shape[:2], dtype=torch.int64, device=prompts.device)
        written = self.model.generate(inputs_embeds=prompts, attention_mask=mask, generation_config=settings)
        found: list[list[int]] = written.tolist()
        return found
