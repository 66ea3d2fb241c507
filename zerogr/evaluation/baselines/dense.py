"""Dense retrieval, the other baseline every table needs: a sentence encoder and exact cosine, nothing approximated.

all-MiniLM-L6-v2 (22 M parameters, 384 dimensions, 256 tokens) unless another encoder is named. Reference figures of the
model, nDCG@10: ADI .497, MED .787, CISI .421, Cranfield .427, CACM .409, SciFact .645. Cost: the encoder once per document,
then a product of [Q, D] with [D, N].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.config.names import ENCODER
from zerogr.llm.encoder import Encoder


class DenseIndex:
    """The documents' unit vectors, held in memory."""

    def __init__(self, doc_ids: list[str], vectors_ND: np.ndarray, encoder: Encoder) -> None:
        self._doc_ids, self._vectors_ND, self._encoder = doc_ids, vectors_ND, encoder

    @classmethod
    def build(cls, doc_ids: list[str], texts: list[str], encoder: str = ENCODER) -> DenseIndex:
        """Returns the index of the documents.

        Args:
            doc_ids: The user's keys, N of them.
            texts: Title and text, document by document.
            encoder: A sentence-transformers model: a folder or a Hub name.

        Raises:
            UserError: The encoder or the package that runs it is missing.
        """
        loaded = Encoder(encoder)
        return cls(doc_ids, loaded.encode(texts), loaded)

    def search(self, queries: Sequence[str], k: int = 100) -> list[list[str]]:
        """Returns the k nearest doc_ids of every query, nearest first; equal cosines in the order of the documents."""
        similarity_QN = self._encoder.encode(queries) @ self._vectors_ND.T
        order_QN = np.argsort(-similarity_QN, axis=1, kind="stable")[:, :k]
        return [[self._doc_ids[row] for row in rows] for rows in order_QN]
