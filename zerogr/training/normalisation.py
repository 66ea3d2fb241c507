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


class _LogProbs(torch.autograd.Function):
    """Log-probabilities of targets, without an array of all of them: one copy of the logits is kept, in fp32, and no more."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, row: torch.Tensor, column: torch.Tensor, is_allowed: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns fp32 [M] of logits [P, C]; softmax over the allowed columns of a row (bool [P, C]), None = all."""
        kept = logits.to(torch.float32, copy=True)
        if is_allowed is not None:
            kept.masked_fill_(~is_allowed, -torch.inf)
        log_sums = kept.logsumexp(-1)
        ctx.save_for_backward(kept, log_sums, row, column)
        ctx.dtype = logits.dtype
        return kept[row, column] - log_sums[row]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The softmax, times what its row's targets ask for together, less what each asks for."""
        kept, log_sums, row, column = ctx.saved_tensors
        of_row = torch.zeros_like(log_sums).index_add_(0, row, gradient)
        back = (kept - log_sums[:, None]).exp_().mul_(-of_row[:, None])
        back.view(-1).index_add_(0, row * kept.shape[1] + column, gradient)
        return back.to(ctx.dtype), None, None, None


def _log_probs(
    logits: torch.Tensor, row: torch.Tensor, column: torch.Tensor, is_allowed: torch.Tensor | None
) -> torch.Tensor:
    found: torch.Tensor = _LogProbs.apply(logits, row, column, is_allowed)  # type: ignore[no-untyped-call]
    return found


class Allowed:
    """Among the tokens that the trie allows; the head is computed for those that it allows anywhere in the batch."""

    needs_choices = True

    def logits(self, states: torch.Tensor, head: Any, batch: PackedBatch) -> torch.Tensor:
        """Returns [P, C]."""
        bias = None if head.bias is None else head.bias[batch.columns]
        return functional.linear(states, functional.embedding(batch.columns, head.weight), bias)

    def log_probs(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        return _log_probs(logits, batch.predicted_by, batch.column, batch.is_allowed())

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
        return _log_probs(logits, batch.predicted_by, batch.targets, None)

    def over_columns(self, logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """See `Normalisation`."""
        return logits[:, batch.columns]

    def num_in_head(self, num_predicting: int) -> int:
        """Returns all of them."""
        return num_predicting


NORMALISATIONS: dict[str, Normalisation] = {"allowed": Allowed(), "vocabulary": Vocabulary()}
"""By `training.normalise`."""
