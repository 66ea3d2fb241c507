"""From an engine's name to a loaded engine."""

from __future__ import annotations

import importlib
from typing import Any

from zerogr.config.base import ENGINES
from zerogr.errors import UserError
from zerogr.llm.engines.engine import Engine


def load_engine(name: str, model: str, *, batch_size: int | None = None, **options: Any) -> Engine:
    """Returns the engine `name` with `model` loaded.

    Args:
        name: One of `zerogr.config.base.ENGINES`, or package.module:Class; `auto` is vLLM where it is installed and a GPU is
            present, else transformers.
        model: A model name or path as `zerogr.llm.models.resolve_model` takes it; ignored by `fake`.
        batch_size: Sequences (prompts x samples) that are decoded together by `transformers`.
        **options: Passed to vLLM (`tensor_parallel_size`, `gpu_memory_utilization`, ...), or to an engine of the user's.

    Raises:
        UserError: The name is unknown, or the engine is not installed.
    """
    if name == "auto":
        name = _best_engine()
    if name == "fake":
        from zerogr.llm.engines.fake import FakeEngine

        return FakeEngine()
    if name == "transformers":
        from zerogr.llm.engines.transformers import TransformersEngine

        return TransformersEngine(model, batch_size=batch_size)
    if name == "vllm":
        from zerogr.llm.engines.vllm import VLLMEngine

        return VLLMEngine(model, **options)
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"engine is '{name}'; it must be one of {', '.join(ENGINES)}, or package.module:Class")
    try:
        made: Engine = getattr(importlib.import_module(module), attribute)(model, batch_size=batch_size, **options)
    except (ImportError, AttributeError) as error:
        raise UserError(f"engine '{name}' cannot be loaded ({error}); every worker must be able to import it") from None
    return made


def _best_engine() -> str:
    import torch

    from zerogr.llm.engines.vllm import is_vllm_installed

    return "vllm" if torch.cuda.is_available() and is_vllm_installed() else "transformers"
