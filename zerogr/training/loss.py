"""What a loss is: it turns what the model makes of a batch into one number that training makes smaller.

A loss is chosen by `training.loss`. It sees a query's documents together: `batch.answer`, `batch.document` and `batch.example`
say which answer a target belongs to, which document an answer, which query a document; `batch.grades` how relevant each
document is. What a loss comes to for a query depends on that query alone, so it does not matter how queries are packed and
which rank has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from zerogr.config.base import LossSettings
from zerogr.config.owned import LOSS
from zerogr.plugins import load_class
from zerogr.training.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class Seen:
    """What a loss is made of."""

    batch: PackedBatch
    log_probs: torch.Tensor
    """fp32 [M]: of the targets, natural logarithms; or what a reader has for them."""
    states: torch.Tensor
    """[R * L, H]: the model's last hidden states; or what a reader has for them."""
    progress: float
    """The share of all steps that are done, from 0 to 1."""

    def by_answer(self) -> torch.Tensor:
        """Returns the log-probability of each answer, fp32 [A]."""
        batch = self.batch
        return self.log_probs.new_zeros(len(batch.document)).index_add_(0, batch.answer, self.log_probs)

    def by_document(self, values: torch.Tensor) -> torch.Tensor:
        """Returns for each document the sum of its answers' values, [D]."""
        return values.new_zeros(len(self.batch.example)).index_add_(0, self.batch.document, values)

    def last_of_answer(self) -> torch.Tensor:
        """Returns where each answer's last token but one is, int64 [A]: of a whole docid the last before the end token."""
        batch = self.batch
        number = torch.arange(len(batch.document), device=batch.answer.device)
        return batch.predicting[batch.predicted_by[torch.searchsorted(batch.answer, number, right=True) - 1]]

    def query_weights(self) -> torch.Tensor:
        """Returns what a query counts: the weights of its open targets together; fp32 [D], by its number, 0 behind the last.

        The learner divides by the weights of all targets. A loss per query times this is then a mean over queries, on the
        scale of the cross-entropy beside it: what the trie forces costs nothing there, however long docids are.
        """
        batch = self.batch
        of_target = batch.example[batch.document[batch.answer]]
        weights = batch.weights
        if batch.allowed.shape[1]:
            num_allowed = torch.zeros_like(batch.node).index_add_(
                0, batch.allowed[0], torch.ones_like(batch.allowed[0])
            )
            weights = weights * (num_allowed[batch.node] > 1)[batch.predicted_by]
        return weights.new_zeros(len(batch.example)).index_add_(0, of_target, weights)

    def mean_over_pairs(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum over queries of what each counts times the mean of its pairs' values [K]."""
        of_pair = self.batch.example[self.batch.pairs[0]]
        num_pairs = values.new_zeros(len(self.batch.example)).index_add_(0, of_pair, torch.ones_like(values))
        return (values * (self.query_weights() / num_pairs.clamp(min=1))[of_pair]).sum()

    def cross_entropy(self) -> torch.Tensor:
        """Returns the weighted sum of -log-probabilities."""
        return -(self.log_probs * self.batch.weights).sum()


def in_fp32(values: torch.Tensor) -> torch.Tensor:
    """Returns half-precision values in fp32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Loss(Protocol):
    """One kind of loss. The class names its settings and is made of them; both are read without torch."""

    Settings: ClassVar[type[LossSettings]]

    def __init__(self, settings: Any, model: Any) -> None:
        """Args:
        settings: Of `Settings`.
        model: The causal LM that is trained. A loss with parameters of its own makes them a module `of_loss` of it; they are
            trained, sharded and kept in checkpoints with the others.
        """

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the loss of a batch, summed over its targets; the learner divides by the weighted number of targets."""


class Reading(Loss, Protocol):
    """A loss that takes batches through the model in a way of its own (`LossSettings.has_reader`)."""

    reader: Any
    """A module with the causal LM for its `model`. Of a batch it returns (`log_probs`, `states`) of `Seen`."""


def load_loss(settings: LossSettings, model: Any) -> Any:
    """Returns the loss that these settings choose: a `Loss`, or a `Reading` one."""
    loss: Loss = load_class(settings.name, LOSS.package)(settings, model)
    return loss
