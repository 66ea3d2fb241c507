"""Cross-entropy: every token of every answer is made likelier, as in ZeroGR; a document's grade is its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class CrossEntropySettings(LossSettings):
    """Of the loss cross_entropy."""

    name: str = Field("cross_entropy", description="-log of the probability of every token of every answer, weighted.")


class CrossEntropy:
    """See the module."""

    Settings = CrossEntropySettings

    def __init__(self, settings: CrossEntropySettings, model: Any) -> None:
        """Needs nothing."""

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the weighted sum."""
        return seen.cross_entropy()
