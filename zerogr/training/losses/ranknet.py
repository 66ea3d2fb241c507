"""RankNet: the retriever learns to score (query, docid) beside writing docids; `zerogr search --rerank` orders by it.

    cross-entropy + weight * mean over pairs of log(1 + exp(s(worse) - s(better)))

s is a linear function of the state at the docid's last token, which has seen the query and the whole docid. It is stored beside
the model.

Source: Burges et al. 2005; ZeroGR's code trains such a score at every eighth step, with one right document and seven of BM25's
first hundred, as the logit of a token that the chat format leaves unused. Ours is a vector of its own, so that no token is
taken, and every `negatives.every`-th query carries negatives, so that steps are alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class RanknetSettings(LossSettings):
    """Of the loss ranknet."""

    needs_negatives = True
    needs_states = True
    needs_whole_docids = True
    kept_as = "scorer.safetensors"

    name: str = Field("ranknet", description="Cross-entropy, and a score of query and docid for re-ranking (RankNet).")
    weight: float = Field(1.0, gt=0, description="Of the ranking, beside the cross-entropy.")


class Ranknet:
    """See the module."""

    Settings = RanknetSettings

    def __init__(self, settings: RanknetSettings, model: Any) -> None:
        from torch import nn

        self._settings = settings
        self.scorer = model.of_loss = nn.Linear(model.config.hidden_size, 1, bias=False)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch."""
        from torch.nn import functional

        from zerogr.training.loss import in_fp32

        scores = in_fp32(self.scorer(seen.states[seen.last_of_answer()])[:, 0])
        by_document = seen.by_document(scores)
        better, worse = seen.batch.pairs
        lost = functional.softplus(by_document[worse] - by_document[better])
        return seen.cross_entropy() + self._settings.weight * seen.mean_over_pairs(lost)
