"""Graded: multi-graded constrained contrastive learning (MGCC), for judgements with several grades; cross-entropy beside it.

    cross-entropy + weight * mean over queries of
        1/L Σ_g λ_g / |D_g| Σ_{d in D_g} max(l(d), greatest l of the next higher grade),
    l(d) = -log softmax over the query's documents of cos(f_q, f_d) / temperature

D_g are the query's documents of its g-th grade, from 1, the lowest above 0, to L, its best. The greatest term of the next
higher grade is the constraint: a document may not cost less than a better one. The softmax is over all documents of the query,
those that are not relevant among them. With one grade this is supervised contrastive learning (Khosla et al. 2020, L_out).

Source: GR2 (arXiv 2409.18409). What is printed there has log-softmax with a plus in the term and a minus outside, with which
the maximum does the opposite of what the text says; ours is the text. λ is 1 / g² there, which gives the best grade the
smallest weight, again against the text; `penalty` has both readings. γ is `weight`.

Representations: GR2 pools a T5 encoder's states for queries and its decoder's, which see the query, for docids. A decoder-only
model has the like: f_q pools the last layer's states over the query, f_d over the docid's tokens behind that query, both
through one ReLU layer. So every docid is read behind the query that it is compared with: read behind another query its states
would tell which one that was, and the loss could be made small without ranking. GR2's negatives are the batch's other docids;
ours are `negatives` of the query, which are docids behind the same query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class GradedSettings(LossSettings):
    """Of the loss graded."""

    needs_negatives = True
    needs_states = True
    needs_whole_docids = True

    name: str = Field("graded", description="Cross-entropy, and a contrast that respects grades of relevance (GR2).")
    weight: float = Field(1.0, gt=0, description="Of the contrast, beside the cross-entropy.")
    temperature: float = Field(0.1, gt=0, description="Of the contrast.")
    penalty: Literal["distance", "grade"] = Field(
        "distance",
        description="What a grade weighs: distance = 1/(1 + steps to the query's best grade)², so that the best counts most; "
        "grade = 1/g² with g from 1 for its lowest, as printed.",
    )
    constrained: bool = Field(
        True, description="Whether a document may not cost less than one of the next higher grade."
    )


class Graded:
    """See the module."""

    Settings = GradedSettings

    def __init__(self, settings: GradedSettings, model: Any) -> None:
        from torch import nn

        self._settings = settings
        width = model.config.hidden_size
        self.layer = model.of_loss = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch."""
        import torch

        batch, costs = seen.batch, self._costs(seen)
        num_documents, example = len(costs), batch.example
        is_relevant = batch.level >= 0
        level = batch.level.where(is_relevant, num_documents)  # one more, for those that are not
        best = torch.zeros_like(level).scatter_reduce(0, example, batch.level, "amax")
        lowest = torch.full_like(level, num_documents).scatter_reduce(0, example, level, "amin")
        num_grades = best - lowest + 1
        size = costs.new_zeros(num_documents + 1).index_add_(0, level, torch.ones_like(costs))
        if self._settings.constrained:
            start = costs.new_full((num_documents + 1,), -torch.inf)
            worst = start.scatter_reduce(0, level, costs, "amax")
            above = batch.above.where(batch.above >= 0, level)  # the best grade's own cost constrains nothing new
            costs = torch.where(batch.above >= 0, torch.maximum(costs, worst[above]), costs)
        steps = best[example] - level if self._settings.penalty == "distance" else level - lowest[example]
        share = is_relevant / ((1.0 + steps * is_relevant).square() * size[level] * num_grades[example])
        return seen.cross_entropy() + self._settings.weight * (share * costs * seen.query_weights()[example]).sum()

    def _costs(self, seen: Seen) -> torch.Tensor:
        """Returns l of each document, fp32 [D]."""
        import torch
        from torch.nn import functional

        batch, number = seen.batch, len(seen.batch.example)
        query = functional.normalize(self._pooled(seen, batch.asked, number), dim=-1)
        docid = functional.normalize(self._pooled(seen, batch.written, len(batch.document)), dim=-1)
        first = torch.searchsorted(batch.document, torch.arange(number, device=batch.document.device))
        scores = (query[batch.example] * docid[first]).sum(-1) / self._settings.temperature
        # |cos| <= 1: with less 1 / temperature nothing overflows, and what is left of the smallest is enough
        sums = scores.new_zeros(number).index_add_(0, batch.example, (scores - 1 / self._settings.temperature).exp())
        return sums[batch.example].log() + 1 / self._settings.temperature - scores

    def _pooled(self, seen: Seen, places: torch.Tensor, number: int) -> torch.Tensor:
        """Returns the mean over each group's states behind the layer, fp32 [number, H]."""
        from zerogr.training.loss import in_fp32

        at, group = places
        features = in_fp32(self.layer(seen.states[at]))
        sums = features.new_zeros(number, features.shape[1]).index_add_(0, group, features)
        counts = features.new_zeros(number).index_add_(0, group, features.new_ones(len(group)))
        return sums / counts.clamp(min=1)[:, None]
