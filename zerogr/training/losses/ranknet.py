"""RankNet: the retriever learns to score (query, docid) beside writing docids; `zerogr search --rerank` orders by it.

    cross-entropy + weight * mean over pairs of log(1 + exp(s(worse) - s(better)))

s is a linear function of the state at the docid's last token, which has seen the query and the whole docid. It is stored beside
the model. With `residual` it is added to the docid's log-probability: the order begins as that of decoding, and the ranking
learns what is wrong with it. Through the log-probability itself nothing is learnt, which `margin` does.

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
    residual: bool = Field(
        False, description="Whether the score is added to the docid's log-probability, by which documents are decoded."
    )

    @property
    def needs_allowed(self) -> bool:
        """Whether probabilities must be those over the allowed tokens: re-ranking has no others."""
        return self.residual


class Ranknet:
    """See the module."""

    Settings = RanknetSettings

    def __init__(self, settings: RanknetSettings, model: Any) -> None:
        import torch
        from torch import nn

        self._settings = settings
        width = model.config.hidden_size
        self.scorer = model.of_loss = nn.Linear(width + settings.residual, 1, bias=False)
        if settings.residual:  # the score begins as the log-probability
            with torch.no_grad():
                self.scorer.weight.copy_(torch.eye(width + 1)[-1:])

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch."""
        from torch.nn import functional

        from zerogr.training.loss import in_fp32

        states, weight = seen.states[seen.last_of_answer()], self.scorer.weight
        scores = in_fp32(functional.linear(states, weight[:, : states.shape[1]])[:, 0])
        if self._settings.residual:
            scores = scores + in_fp32(weight[0, -1]) * seen.by_answer().detach()
        by_document = seen.by_document(scores)
        better, worse = seen.batch.pairs
        lost = functional.softplus(by_document[worse] - by_document[better])
        return seen.cross_entropy() + self._settings.weight * seen.mean_over_pairs(lost)
