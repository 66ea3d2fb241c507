"""What a target's probability is compared with: the tokens that the trie allows, or the whole vocabulary.

It is `decoding.normalise` of training: a retriever learns what decoding will ask of it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import functional

from zerogr.training.packing import PackedBatch


class Normalisation(Protocol):
    """A way to normalise."""

    needs_choices: bool
    """Whether batches must say what the trie allows."""

    def logits(self, states: torch.Tensor, head: Any, batch: PackedBatch) -> torch.Tensor:
        """Returns what the output head makes of the hidden states (fp [P, H]) of a batch's predicting positions."""

    def log_probs(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the natural-log probability of every target, fp32 [M]."""

    def over_columns(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the logits of a batch's columns alone, [P, C]."""

    def num_in_head(self, num_predicting: int) -> int:
        """Returns for how many of so many positions the head's products are computed in full, for counting operations."""


class Allowed:
    """Among the tokens that the trie allows; the head is computed for those that it allows anywhere in the batch."""

    needs_choices = True

    def logits(self, states: torch.Tensor, head: Any, batch: PackedBatch) -> torch.Tensor:
        """Returns [P, C]."""
        bias = None if head.bias is None else head.bias[batch.columns]
        return functional.linear(states, functional.embedding(batch.columns, head.weight), bias)

    def log_probs(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        allowed = logits.float().masked_fill(~batch.is_allowed(), -torch.inf)
        return functional.log_softmax(allowed, -1)[batch.predicted_by, batch.column]

    def over_columns(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        return logits

    def num_in_head(self, num_predicting: int) -> int:
        """Returns 0: a few columns cost little."""
        return 0


class Vocabulary:
    """Among all tokens."""

    needs_choices = False

    def logits(self, states: torch.Tensor, head: Any, batch: PackedBatch) -> torch.Tensor:
        """Returns [P, V]."""
        logits: torch.Tensor = head(states)
        return logits

    def log_probs(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        return functional.log_softmax(logits.float(), -1)[batch.predicted_by, batch.targets]

    def over_columns(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        return logits[:, batch.columns]

    def num_in_head(self, num_predicting: int) -> int:
        """Returns all of them."""
        return num_predicting


NORMALISATIONS: dict[str, Normalisation] = {"allowed": Allowed(), "vocabulary": Vocabulary()}
"""By `training.normalise`."""
