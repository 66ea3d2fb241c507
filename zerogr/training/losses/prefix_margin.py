"""Prefix margins: the differences between prefixes' scores follow a teacher's, the shorter the prefix the less of them.

    cross-entropy + weight * mean over pairs and prefix lengths of (S_l(better) - S_l(worse) - a_l * scale * T)²

S_l is the log-probability of a docid's first l tokens, T the difference of the teacher's scores, a = 1/2, 3/4, 7/8, ... for the
lengths in order and 1 for whole docids. Training begins with the shortest prefixes and adds the next length in equal parts of
its steps; what is shorter is rehearsed. A beam loses a document at its first wrong prefix, which is what this is against.

Source: RIPOR (Zeng et al. 2024), with 4, 8, 16 and 32 codes of a codebook per position and scores without a softmax; lengths of
words are shorter, and ours are log-probabilities over the allowed tokens. The teacher is a cross-encoder or, where there is
none, our lexical ranking (`negatives.teacher`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class PrefixMarginSettings(LossSettings):
    """Of the loss prefix_margin."""

    needs_negatives = True

    name: str = Field("prefix_margin", description="Cross-entropy, and a teacher's margins between prefixes (RIPOR).")
    lengths: list[int] = Field(
        default_factory=lambda: [1, 2, 4],
        description="Of the prefixes, in tokens; whole docids come last by themselves.",
    )
    scale: float = Field(1.0, gt=0, description="Of the teacher's scores, in nats.")
    weight: float = Field(0.1, gt=0, description="Of the margins, beside the cross-entropy.")

    @field_validator("lengths")
    @classmethod
    def _ascend(cls, lengths: list[int]) -> list[int]:
        if any(length < 1 for length in lengths) or sorted(set(lengths)) != lengths:
            raise ValueError(f"must be whole numbers from 1 on, ascending, not {lengths}")
        return lengths


class PrefixMargin:
    """See the module."""

    Settings = PrefixMarginSettings

    def __init__(self, settings: PrefixMarginSettings, model: Any) -> None:
        self._settings = settings

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch."""
        import torch

        settings, batch = self._settings, seen.batch
        lengths: list[int | None] = [*settings.lengths, None]
        num_learnt = min(1 + int(seen.progress * len(lengths)), len(lengths))
        first = torch.searchsorted(batch.answer, torch.arange(len(batch.document), device=batch.answer.device))
        depth = torch.arange(len(batch.answer), device=batch.answer.device) - first[batch.answer]
        better, worse = batch.pairs
        wanted = settings.scale * (batch.teacher[better] - batch.teacher[worse])
        total = torch.zeros_like(wanted)
        for number, length in enumerate(lengths[:num_learnt]):
            counted = seen.log_probs if length is None else seen.log_probs * (depth < length)
            by_answer = seen.log_probs.new_zeros(len(batch.document)).index_add_(0, batch.answer, counted)
            scores = seen.by_document(by_answer)
            share = 1.0 if length is None else 1.0 - 0.5 ** (number + 1)
            total = total + (scores[better] - scores[worse] - share * wanted).square()
        return seen.cross_entropy() + settings.weight * seen.mean_over_pairs(total / num_learnt)
