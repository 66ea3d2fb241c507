"""Pairs of document and query, read into latents and written from them: the forward pass of regularised fusion.

An example is a group of pairs, a pair one of its documents, with two answers: the document's text and the query's, both
closed (`zerogr.llm.latents`). The document's begins with the instruction for documents; that for queries is what the example
asks, once. A batch of `zerogr.training.packing` carries the tokens here, and its rows are not what is computed: documents are
padded to the longest document, queries to the longest query. A third pass writes the queries from latents. So a group of 16
pairs with 128 and 16 tokens costs 16 * (128 + 16 + 2 * 16) tokens through the model, and attention sees one text at a time,
where packed rows would have the whole group's tokens look at each other, masked: 100 MB of scores per layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zerogr.llm.latents import latents_of, new_bridge, states_of
from zerogr.training.packing import PackedBatch


class LatentPairs(nn.Module):
    """A causal LM and its bridge, which becomes `model.of_loss`."""

    def __init__(self, model: Any, num_latents: int, *, has_autoencoder: bool) -> None:
        super().__init__()
        self.model, self._num_latents, self._has_autoencoder = model, num_latents, has_autoencoder
        model.of_loss = new_bridge(model)

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns log-probabilities of D queries and the latents of D pairs.

        The first, fp32 [S, D], from the documents' latents and, with the auto-encoder, from the queries' own; the second, fp32
        [D, 2, Z * H], the document's first.
        """
        flat, (at, answer) = batch.tokens.flatten(), batch.written
        lengths = answer.new_zeros(2 * len(batch.example)).index_add_(0, answer, torch.ones_like(answer))
        # On a GPU the host waits here, and below for what is padding: shapes depend on it.
        longest_document, longest_query, last_group = torch.stack(
            [lengths[0::2].max(), lengths[1::2].max(), batch.example[-1]]
        ).tolist()
        instruction = flat[batch.asked[0, : batch.asked.shape[1] // (last_group + 1)]]
        starts, tokens = lengths.cumsum(0) - lengths, flat[at]
        documents = _padded(tokens, starts[0::2], longest_document)
        queries = _padded(tokens, starts[1::2], longest_query)
        asked = torch.cat([instruction.expand(len(queries), -1), queries], 1)
        read = [
            latents_of(self.model, documents, lengths[0::2], self._num_latents),
            latents_of(self.model, asked, lengths[1::2] + len(instruction), self._num_latents),
        ]
        # Of the end tokens that close a query, the first ends what is written.
        num_spare = self._num_latents - 1
        written, num_written = queries[:, : longest_query - num_spare], lengths[1::2] - num_spare
        sources = read if self._has_autoencoder else read[:1]
        log_probs = self._log_probs(torch.cat(sources), written, num_written)
        return log_probs.view(len(sources), -1), torch.stack([latents.flatten(1) for latents in read], 1)

    def _log_probs(self, latents: torch.Tensor, texts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the log-probability of each text given each latent, fp32 [S * D].

        Args:
            latents: [S * D, Z, H].
            texts: int64 [D, L], padded.
            lengths: int64 [D].
        """
        times = len(latents) // len(texts)
        bridged = self.model.of_loss(latents.to(self.model.of_loss.weight.dtype))
        behind = self.model.get_input_embeddings()(texts[:, :-1]).repeat(times, 1, 1)
        states = states_of(self.model, torch.cat([bridged, behind], 1))[:, self._num_latents - 1 :]
        texts = texts.repeat(times, 1)
        is_real = torch.arange(texts.shape[1], device=texts.device) < lengths.repeat(times)[:, None]
        text, position = is_real.nonzero(as_tuple=True)
        logits = self.model.get_output_embeddings()(states[text, position])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        costs = functional.cross_entropy(logits, texts[text, position], reduction="none")
        return -costs.new_zeros(len(texts)).index_add_(0, text, costs)


def _padded(tokens: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
    """Returns as many tokens from each start on, int64 [len(starts), longest]; behind a text's end they are others'."""
    at = starts[:, None] + torch.arange(longest, device=tokens.device)
    return tokens[at.clamp(max=len(tokens) - 1)]
