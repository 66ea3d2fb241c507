"""Hugging Face causal language models over frontiers: `zerogr.llm.paths` reads, and the output head is asked for options alone.

Shapes: B queries, W prefixes, C options, U tokens of the trie, D hidden size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from zerogr.decoding.device.frontier import Frontier, Options
from zerogr.decoding.device.trie import TOKEN, DeviceTrie
from zerogr.decoding.language_model import TreeModel, log_sums
from zerogr.llm.paths import PathReader, Prompts

_HIDDEN_AT_ONCE = 2**28
"""Elements of the largest array of the output head."""


class Scorer(Protocol):
    """A language model for a batch of queries."""

    num_queries: int

    def log_probs(self, options: Options, normalise: str) -> torch.Tensor:
        """Returns what the model says of the options of the frontier (float64 [B, C]): logits under `allowed`."""

    def extend(self, frontier: Frontier) -> None:
        """Reads the last tokens of the prefixes of a frontier, which is now the one that is asked for."""


class Head:
    """The rows of an output head that a trie can need."""

    def __init__(self, model: TreeModel, trie: DeviceTrie) -> None:
        """Copies them, in fp32, or on CUDA in the model's precision: products are summed in fp32 there as well."""
        head: Any = model.model.get_output_embeddings()
        self.head, self.num_tokens = head, trie.num_tokens
        is_half = head.weight.is_cuda and head.weight.dtype in (torch.bfloat16, torch.float16)
        rows = head.weight.detach()[trie.tokens]
        self._weight_UD = rows if is_half else rows.float()
        bias = getattr(head, "bias", None)
        self._bias_U = None if bias is None else bias.detach()[trie.tokens].float()

    def logits(self, hidden_BWD: torch.Tensor, options: Options) -> torch.Tensor:
        """Returns the logits (float64 [B, C]) of options behind hidden states.

        Either every state is multiplied with every row that the trie can need, or every option's state with its row alone:
        whichever moves fewer bytes.
        """
        num_queries, width, size = hidden_BWD.shape
        token, owner = options.info[..., TOKEN], options.owner
        capacity = owner.shape[1]
        hidden_BWD = hidden_BWD.to(self._weight_UD.dtype)
        num_rows = self.num_tokens + 1
        is_dense = width * num_rows <= 2 * capacity * size
        at_once = max(1, _HIDDEN_AT_ONCE // (width * num_rows if is_dense else capacity * size))
        parts = []
        for begin in range(0, num_queries, at_once):
            hidden, part_owner, part_token = (x[begin : begin + at_once] for x in (hidden_BWD, owner, token))
            if is_dense:
                logits = self._products(hidden.reshape(-1, size)).view(len(hidden), -1)
                parts.append(logits.gather(1, part_owner * num_rows + part_token))
            else:
                states = hidden.gather(1, part_owner[..., None].expand(-1, -1, size))
                rows = self._weight_UD[part_token]
                parts.append((states.float() * rows.float()).sum(-1))
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._bias_U is not None:
            found = found + self._bias_U[token]
        return found.double()

    def _products(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        if hidden_RD.dtype == torch.float32:
            return hidden_RD @ self._weight_UD.T
        return torch.mm(hidden_RD, self._weight_UD.T, out_dtype=torch.float32)


class PathScorer:
    """Scores frontiers after the prompts of a batch of queries."""

    def __init__(self, model: TreeModel, head: Head, trie: DeviceTrie, prompts: Prompts, num_places: int) -> None:
        """Reads the prompts.

        Args:
            model: In eval mode.
            head: Of the model, for the trie.
            trie: Of the docids.
            prompts: Of each query.
            num_places: How many tokens of prefixes will be read at most.
        """
        self.num_queries = len(prompts.lengths)
        self._head, self._trie = head, trie
        self._reader = PathReader(model.model, prompts, num_places)

    def log_probs(self, options: Options, normalise: str) -> torch.Tensor:
        """See `Scorer`."""
        hidden_BWD = self._reader.hidden
        found = self._head.logits(hidden_BWD, options)
        if normalise == "vocabulary":
            sums = log_sums(self._head.head, hidden_BWD.float().flatten(0, 1)).view(hidden_BWD.shape[:2])
            found = found - sums.gather(1, options.owner)
        return found

    def extend(self, frontier: Frontier) -> None:
        """See `Scorer`."""
        self._reader.extend(self._trie.tokens[frontier.info[..., TOKEN]], frontier.ancestors)
