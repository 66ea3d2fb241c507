"""What a loss is: it turns the log-probabilities of a batch's targets into one number that training makes smaller.

A loss is chosen by `training.loss`. It sees a query's documents together: `batch.answer`, `batch.document` and `batch.example`
say which answer a target belongs to, which document an answer, which query a document; `batch.grades` how relevant each
document is.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from zerogr.config.base import LossSettings
from zerogr.config.owned import LOSS
from zerogr.plugins import load_class
from zerogr.training.packing import PackedBatch


class Loss(Protocol):
    """One kind of loss. The class names its settings and is made of them."""

    Settings: ClassVar[type[LossSettings]]

    def __init__(self, settings: Any) -> None: ...

    def __call__(self, log_probs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Returns the loss of a batch, summed over its targets; the learner divides by the weighted number of targets.

        Args:
            log_probs: Of the targets, natural logarithms, fp32 [M].
            batch: What they were computed from.
        """


def load_loss(settings: LossSettings) -> Loss:
    """Returns the loss that these settings choose."""
    loss: Loss = load_class(settings.name, LOSS.package)(settings)
    return loss
