"""Cross-entropy: every token of every answer is made likelier, as in ZeroGR; a document's grade is its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.packing import PackedBatch


class CrossEntropySettings(LossSettings):
    """Of the loss cross_entropy."""

    name: str = Field("cross_entropy", description="-log of the probability of every token of every answer, weighted.")


class CrossEntropy:
    """See the module."""

    Settings = CrossEntropySettings

    def __init__(self, settings: CrossEntropySettings) -> None:
        """`settings` say nothing more."""

    def __call__(self, log_probs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the weighted sum."""
        return -(log_probs * batch.weights).sum()
