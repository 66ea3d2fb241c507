"""Teachers: what query and document are worth together, in the eyes of somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from zerogr.corpus.lookup import Lookup
from zerogr.errors import UserError
from zerogr.llm.models import resolve_model
from zerogr.llm.quiet import quiet_transformers
from zerogr.ranking.lexical import Lexical, LexicalSettings
from zerogr.ranking.ranker import Data, Leaves

NO_LEAVES = Leaves(np.empty(0, np.int64), np.empty(0), str)


class Teacher(Protocol):
    """Scores a query and documents."""

    def score(self, query: str, rows: Sequence[int]) -> list[float]:
        """Returns what it makes of some documents, by their place in the index."""


class LexicalTeacher:
    """Our own BM25; a document without any of the query's words has 0."""

    def __init__(self, folder: Path) -> None:
        """Opens the lexical index of a local folder."""
        self._ranker = Lexical(LexicalSettings(name="lexical"), Data(folder, folder))

    def score(self, query: str, rows: Sequence[int]) -> list[float]:
        """See `Teacher`."""
        found, scores = self._ranker.score_all(query, NO_LEAVES)
        at = np.searchsorted(found, rows)
        is_found = np.append(found, -1)[at] == rows
        return np.where(is_found, np.append(scores, 0.0)[at], 0.0).tolist()

    def first(self, query: str, depth: int) -> list[int]:
        """Returns the first documents for a query, best first."""
        return self._ranker.rank(query, NO_LEAVES, depth).rows.tolist()


class CrossEncoderTeacher:
    """A cross-encoder of sentence-transformers, which reads query and document together."""

    def __init__(self, name: str, texts: Lookup, row_ids: Sequence[int] | np.ndarray) -> None:
        """Loads it. Raises UserError if it or its package is missing."""
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise UserError(
                f"negatives.teacher needs the package sentence-transformers ({error}); run `pip install 'zerogr[dense]'`"
            ) from None
        with quiet_transformers():
            self._model = CrossEncoder(
                resolve_model(name), trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        self._texts, self._row_ids = texts, row_ids

    def score(self, query: str, rows: Sequence[int]) -> list[float]:
        """See `Teacher`."""
        documents = self._texts.read([int(self._row_ids[row]) for row in rows], ["title", "text"])
        pairs = [(query, f"{document['title']}\n{document['text']}") for document in documents]
        return [float(score) for score in self._model.predict(pairs, show_progress_bar=False)]
