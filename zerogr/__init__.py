"""ZeroGR: generative retrieval, a language model as the search index."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerogr.retriever import Retriever
    from zerogr.search.answer import Hit

__version__ = "0.1.0"
__all__ = ["Hit", "Retriever", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `zerogr --help` must not wait for pyarrow and torch.
    if name in ("Hit", "Retriever"):
        module = importlib.import_module("zerogr.retriever" if name == "Retriever" else "zerogr.search.answer")
        return getattr(module, name)
    raise AttributeError(f"module 'zerogr' has no attribute '{name}'")
