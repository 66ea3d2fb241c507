"""Values: what a layer should have put out, for the model to choose the tokens of new docids.

For every predicting position a vector δ is added to the residual stream behind one layer, and moved by Adam until the layers
above choose as they should. Two kinds of targets p over the tokens that may stand there:

    hard      the docid's token alone, as ROME and MEMIT have it
    hybrid    (1 - λ) p_before + λ [the docid's token], λ rising from .3 to 1 over the steps, as DOME has it: what the model
              thought of the other tokens is kept for a while, so that values of docids with a token in common stay apart

Source: Meng et al. 2023 (MEMIT) and its released code: δ is kept below `max_norm` times the stream's own norm, and
decayed by ||δ|| / ||h||². Left out of MEMIT: the divergence on a neutral prompt, since the head writes docids and nothing else.
DOME (arXiv 2603.02773) says the targets and the steps; optimiser, rate and norm are not published, and are MEMIT's here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from zerogr.editing.positions import Reader, Seen
from zerogr.training.normalisation import Normalisation
from zerogr.training.packing import PackedBatch

Labels = Literal["hard", "hybrid", "soft"]
GOOD_LOSS = 0.05
"""MEMIT stops here."""


class Search(NamedTuple):
    """How values are looked for."""

    labels: Labels
    num_steps: int
    learning_rate: float
    weight_decay: float
    max_norm: float
    """Of δ, as a share of the norm of what it is added to."""
    first_share: float = 0.3
    """λ at the first step; 1 at the last. For `soft` it stays so."""


def find_values(
    reader: Reader, batch: PackedBatch, seen: Seen, behind: int, search: Search, normalisation: Normalisation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the layer should have put out, [P, D], and the cross-entropy (nats) of the targets with it, [P].

    Args:
        reader: The model.
        batch, seen: What was read at layer `behind`.
        behind: The layer.
        search: How.
        normalisation: What probabilities are over.
    """
    above = reader.above(batch, seen, behind)
    head = reader.model.get_output_embeddings()
    right = _right_tokens(batch, normalisation, head)

    def log_probs(states: torch.Tensor) -> torch.Tensor:
        logits = normalisation.logits(above(states), head, batch).float()
        if normalisation.needs_choices:
            logits = logits.masked_fill(~batch.is_allowed(), -torch.inf)
        return logits.log_softmax(-1)

    start = seen.states.detach()
    limit = search.max_norm * start.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        before = log_probs(start).exp()
    with torch.enable_grad():
        delta = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=search.learning_rate)
        for step in range(search.num_steps):
            share = _share(search, step)
            targets = (1 - share) * before + share * right
            found = log_probs(start + delta)
            loss = -(targets * found.clamp(min=-1e4)).sum(-1)
            entropies = -(right * found.detach().clamp(min=-1e4)).sum(-1)
            if step and float(entropies.max()) < GOOD_LOSS:
                break
            decay = search.weight_decay * delta.norm(dim=-1) / start.norm(dim=-1) ** 2
            optimizer.zero_grad()
            (loss + decay).sum().backward()
            optimizer.step()
            with torch.no_grad():
                delta *= (limit / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    values = start + delta.detach()
    with torch.no_grad():
        cross_entropy = -(right * log_probs(values).clamp(min=-1e4)).sum(-1)
    return values, cross_entropy


def _share(search: Search, step: int) -> float:
    """Returns λ of a step."""
    if search.labels == "hard":
        return 1.0
    if search.labels == "soft":
        return search.first_share
    return search.first_share + (1 - search.first_share) * step / max(search.num_steps - 1, 1)


def _right_tokens(batch: PackedBatch, normalisation: Normalisation, head: torch.nn.Module) -> torch.Tensor:
    """Returns the distribution of the right tokens at every position, [P, C]; where a position predicts several, their mean."""
    has_columns = normalisation.needs_choices
    width = len(batch.columns) if has_columns else head.weight.shape[0]  # type: ignore[index]
    column = batch.column if has_columns else batch.targets
    right = torch.zeros(len(batch.predicting), int(width), device=column.device)
    right.index_put_((batch.predicted_by, column), torch.ones(len(column), device=column.device), accumulate=True)
    return right / right.sum(-1, keepdim=True)
