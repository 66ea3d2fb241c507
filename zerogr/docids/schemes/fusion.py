"""Fusion: a document's docid is the query that a model, trained on the corpus, writes from a latent of the document.

Regularised fusion of GR2 (arXiv 2409.18409). The model reads documents and queries into latents and writes queries from latents
(`zerogr.llm.latents`). It is trained as a query generator (document -> latent -> query) and as an auto-encoder (query -> latent
-> query) that share the space of latents, with two regularisers: a document's latent is near those of its queries, and far from
those of other documents (`zerogr.training.losses.fusion`). A docid is written from z = e_d + r, with r drawn evenly from the
sphere of radius `radius`, by beam search; the beam is the list of candidates.

Cost: one forward pass over the document, and `num_beams` rows of at most `max_query_tokens` steps. The model has the size of
`model` and lies in the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from zerogr.config.base import SchemeSettings, TunedConfig
from zerogr.corpus.collection import Collection
from zerogr.docids.scheme import Proposal, WordScheme
from zerogr.docids.words import NO_WORDS, proposal_of, terms_of
from zerogr.llm.generation import Rejection
from zerogr.llm.models import model_hash, resolve_model
from zerogr.llm.prompts import excerpt
from zerogr.seeds import seed_of
from zerogr.text.words import words

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    from zerogr.llm.latents import LatentModel

_AT_ONCE, _AT_ONCE_ON_GPU = 16, 256
"""Documents that are read and named together."""


class FusionSettings(SchemeSettings, TunedConfig):
    """Of the scheme fusion."""

    needs_engine = True
    has_fit = True
    recipe = "zerogr.training.recipes.fusion:FusionRecipe"

    scheme: str = Field(
        "fusion", description="A query that a model, trained on the corpus, writes from a latent (GR2)."
    )
    num_spans_per_document: int = Field(
        4, ge=0, le=256, description="Passages and keyword sets of a document that it learns as queries."
    )
    max_document_tokens: int = Field(128, ge=4, description="Tokens of a document that the model reads.")
    max_query_tokens: int = Field(32, ge=4, le=256, description="Tokens of a query that it reads and writes.")
    num_latents: int = Field(4, ge=1, le=64, description="Vectors between reading and writing.")
    autoencoder: bool = Field(
        True,
        description="Learn to read and write queries as well, with the regularisers; false = a plain query generator, for "
        "which alpha and beta mean nothing.",
    )
    alpha: float = Field(1.0, ge=0, description="Of the relevance regulariser; 0 = without.")
    beta: float = Field(30.0, ge=0, description="Of the distinctness regulariser; 0 = without.")
    group_size: int = Field(
        16, ge=2, le=1024, description="Most pairs of document and query that the regularisers compare with each other."
    )
    batch_size: int = Field(2, ge=1, description="Groups per optimiser step, over all workers.")
    num_epochs: int = Field(1, ge=1, le=1000, description="Passes over the pairs.")
    learning_rate: float = Field(
        2e-4, gt=0, lt=1, description="Peak of AdamW; schedule, precision and the rest are those of training."
    )
    radius: float = Field(
        1.5,
        ge=0,
        description="How far from the document's latent, whose length is the square root of its size, its docid is written; "
        "GR2 takes 2 where judgements have several grades.",
    )
    num_beams: int = Field(4, ge=1, le=64, description="Docids proposed per document; later ones serve collisions.")
    max_words: int = Field(12, ge=1, le=32, description="Most words of a docid.")

    @model_validator(mode="after")
    def _has_queries(self) -> FusionSettings:
        if self.judged is None and not self.num_spans_per_document:
            raise ValueError(
                "num_spans_per_document is 0 and judged names no collection; one of them must give queries"
            )
        return self


class Fusion(WordScheme):
    """What the model writes, as words; the document's heaviest terms where it writes none."""

    Settings = FusionSettings

    @classmethod
    def inputs(cls, settings: FusionSettings) -> dict[str, Any]:
        """Returns hashes of the base model and of the judged queries."""
        return {"docids.model": model_hash(resolve_model(settings.model)), "docids.judged": judged_hash(settings)}

    @cached_property
    def _model(self) -> LatentModel:
        from zerogr.llm.latents import LatentModel

        return LatentModel(self.context.fitted, num_latents=self.settings.num_latents)

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Has the model write about every document whose beginning has words."""
        read = [number for number, row in enumerate(documents) if words(text_of(row, self.settings))]
        written: dict[int, list[str]] = {}
        step = _AT_ONCE_ON_GPU if read and self._model.is_on_gpu else _AT_ONCE
        for first in range(0, len(read), step):
            batch = read[first : first + step]
            written |= zip(batch, self._write([documents[number] for number in batch]), strict=True)
        return [self._proposal(document, written.get(number, [])) for number, document in enumerate(documents)]

    def _write(self, documents: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Returns what the beams of each document end with, best first."""
        import torch

        settings, model = self.settings, self._model
        latents = model.read(
            [text_of(document, settings) for document in documents], max_tokens=settings.max_document_tokens
        )
        seeds = [seed_of(self.context.seed, "radius", document["doc_id"]) for document in documents]
        drawn = np.stack([on_sphere(seed, model.width, settings.radius) for seed in seeds])
        return model.write(
            latents + torch.from_numpy(drawn), num_beams=settings.num_beams, max_tokens=settings.max_query_tokens
        )

    def _proposal(self, document: dict[str, Any], texts: Sequence[str]) -> Proposal | Rejection:
        terms = terms_of(document, self.context)
        if not terms.ranked:
            return NO_WORDS
        docids = dict.fromkeys(" ".join(words(text)[: self.max_words]) for text in texts)
        candidates = [docid for docid in docids if docid]
        if not candidates:
            return proposal_of(terms, [" ".join(terms.ranked[: self.max_words])], ["repaired"])
        return proposal_of(terms, candidates, ["lm"] * len(candidates))


def text_of(document: dict[str, Any], settings: FusionSettings) -> str:
    """Returns as much of a row of corpus/ as the model may read: a token is a word or less."""
    return excerpt(document["title"], document["text"], settings.max_document_tokens)


def judged_hash(settings: FusionSettings) -> str | None:
    """Returns the content hash of the judged queries, None if there are none."""
    return Collection.load(settings.judged, settings.judged_split).hash() if settings.judged else None


def on_sphere(seed: int, size: int, radius: float) -> np.ndarray:
    """Returns a vector of so many numbers and of length `radius`, of a direction drawn evenly; float32."""
    drawn = np.random.default_rng(seed).standard_normal(size)
    return (drawn * (radius / np.linalg.norm(drawn))).astype(np.float32)
