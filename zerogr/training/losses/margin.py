"""Margin: a relevant docid must be likelier than one that is not, by a margin; cross-entropy beside it.

    cross-entropy + weight * mean over pairs of max(0, margin - s(better) + s(worse)),  s = log-probability of the docid

Source: LTRGR (Li et al. 2023), whose passages' scores are sums over identifiers found in an FM-index, with a margin of 500 and
the generation loss times 1,000. Ours are log-probabilities of whole docids, so the margin is in nats. Every more relevant
document is compared with every less relevant one of its query, also of two grades above 0; LTRGR draws two pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class MarginSettings(LossSettings):
    """Of the loss margin."""

    needs_negatives = True

    name: str = Field(
        "margin", description="Cross-entropy, and a margin between docids that are relevant and not (LTRGR)."
    )
    margin: float = Field(2.0, gt=0, description="By which the better docid must be likelier, in nats.")
    weight: float = Field(1.0, gt=0, description="Of the margins, beside the cross-entropy.")


class Margin:
    """See the module."""

    Settings = MarginSettings

    def __init__(self, settings: MarginSettings, model: Any) -> None:
        self._settings = settings

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch."""
        scores = seen.by_document(seen.by_answer())
        better, worse = seen.batch.pairs
        lacking = (self._settings.margin - scores[better] + scores[worse]).clamp(min=0)
        return seen.cross_entropy() + self._settings.weight * seen.mean_over_pairs(lacking)
