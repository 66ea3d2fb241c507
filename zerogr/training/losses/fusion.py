"""Regularised fusion, which the docid scheme `fusion` trains its model with: a query generator and an auto-encoder of queries.

    MLE_QG + MLE_AE + alpha * L_Rel + beta * L_Div,  over the pairs (d, q) of a group Q

    MLE_QG = -log p(q | e_d),  MLE_AE = -log p(q | e_q)
    L_Rel  = -1/|Q| Σ exp(sim(e_d, e_q)) / Σ_q' exp(sim(e_d, e_q'))
    L_Div  = mean of sim(e_d, e_d') over d' ≠ d + mean of sim(e_q, e_q') over q' ≠ q - mean of sim(e_d, e_q)

e_d and e_q are latents of document and query (`zerogr.llm.latents`). One model reads both, behind different instructions, and
writes q from either. An example of training is a group: what a group comes to depends on that group alone. A group counts as
its queries' tokens do, as queries do in the other losses (`Seen.query_weights`).

Source: GR2 (arXiv 2409.18409), with T5 and a decoder that two encoders share; L_Rel has no logarithm in print, and none here.
sim is a dot product there. Ours is the dot product divided by the latents' size, which are vectors of equal length: the cosine.
A free dot product times beta = 30 has no smallest value: the loss falls for as long as the vectors grow, and little else is
learnt. With a cosine every term of both regularisers lies between -1 and 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import LossSettings

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.training.loss import Seen


class FusionLossSettings(LossSettings):
    """Of the loss; `zerogr.docids.schemes.fusion.FusionSettings` documents its fields."""

    has_reader = True
    needs_states = True
    kept_as = "bridge.safetensors"

    name: str = Field("zerogr.training.losses.fusion:FusionLoss", description="Regularised fusion (GR2).")
    num_latents: int = Field(1, ge=1, description="Vectors of a latent.")
    autoencoder: bool = Field(
        True, description="Whether queries are read and written again; if not, no term but MLE_QG."
    )
    alpha: float = Field(1.0, ge=0, description="Of L_Rel.")
    beta: float = Field(30.0, ge=0, description="Of L_Div.")


class FusionLoss:
    """See the module."""

    Settings = FusionLossSettings

    def __init__(self, settings: FusionLossSettings, model: Any) -> None:
        from zerogr.training.latent_pairs import LatentPairs

        self._settings = settings
        self.reader = LatentPairs(model, settings.num_latents, has_autoencoder=settings.autoencoder)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Returns the sum over the batch.

        `seen.states` are the latents of D pairs, [D, 2, Z * H], the document's first; `seen.log_probs` [1 or 2, D] are those
        of the query from the document's and, with the auto-encoder, from its own.
        """
        likelihood = -seen.log_probs.sum()
        return likelihood + self._regularisers(seen) if self._settings.autoencoder else likelihood

    def _regularisers(self, seen: Seen) -> torch.Tensor:
        import torch

        documents, queries = seen.states.unbind(1)
        group = seen.batch.example
        is_same = group[:, None] == group[None, :]
        size = is_same.sum(1)
        matched = torch.eye(len(group), dtype=torch.bool, device=group.device)
        across = similarity(documents, queries)
        # |cosine| <= 1: nothing overflows.
        relevance = -(across.exp() * matched).sum(1) / (across.exp() * is_same).sum(1)
        others = is_same & ~matched
        within = similarity(documents, documents) + similarity(queries, queries)
        distinctness = (within * others).sum(1) / (size - 1).clamp(min=1) - across.diagonal()
        share = seen.query_weights()[group] / size
        return (share * (self._settings.alpha * relevance + self._settings.beta * distinctness)).sum()


def similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the similarities of latents [A, Z * H] and [B, Z * H], [A, B]."""
    return first @ second.T / first.shape[1]
