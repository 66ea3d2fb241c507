"""The retriever stage: the index's pseudo-queries and docids become examples, and the trained model becomes a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from zerogr import storage
from zerogr.chat import SETTINGS_FILE, ChatFormat
from zerogr.config import Config
from zerogr.errors import UserError
from zerogr.index import Index, shards_in
from zerogr.models import load_model, model_hash, resolve_model
from zerogr.training.checkpoints import full_tensors
from zerogr.training.examples import Examples
from zerogr.training.loop import TrainingSettings

VERSION = 1


def retriever_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the retriever is made from."""
    training = config.training.model_dump(exclude={"checkpoint_every"})
    return {
        "docids": index.require("docids").fingerprint,
        "queries": index.require("queries").fingerprint,
        "seed": config.seed,
        "retriever.model": model_hash(resolve_model(config.retriever.model)),
        "retriever.num_layers": config.retriever.num_layers,
        **{f"training.{key}": value for key, value in training.items()},
        "version": VERSION,
    }


def training_settings(config: Config) -> TrainingSettings:
    """Returns the loop's part of the configuration."""
    fields = TrainingSettings.__dataclass_fields__
    return TrainingSettings(
        **{key: value for key, value in config.training.model_dump().items() if key in fields}, seed=config.seed
    )


def load_base(config: Config, device: Any = "cpu") -> tuple[Any, ChatFormat]:
    """Returns the base model in fp32 and its chat format."""
    import torch

    model, tokenizer = load_model(
        resolve_model(config.retriever.model),
        device=device,
        dtype=torch.float32,
        num_layers=config.retriever.num_layers,
    )
    return model, chat_format(tokenizer, config)


def chat_format(tokenizer: Any, config: Config) -> ChatFormat:
    """Returns the chat format of a tokenizer under the configured limits."""
    training = config.training
    return ChatFormat.of(
        tokenizer, max_instruction_tokens=training.max_instruction_tokens, max_query_tokens=training.max_query_tokens
    )


def load_examples(index: Index, chat: ChatFormat) -> Examples:
    """Returns every (instruction, query, docid) of the index as training examples.

    Raises:
        UserError: There is none.
    """
    examples = Examples.build(_triples(index), chat)
    if not len(examples):
        raise UserError(
            f"'{index.uri}' has no pseudo-query to train on; "
            "raise queries.num_spans_per_document or queries.num_queries_per_document"
        )
    return examples


def _triples(index: Index) -> Iterator[tuple[str, str, str]]:
    for shard in shards_in(index.path("queries")):
        if shard not in set(shards_in(index.path("docids"))):
            continue
        docids = storage.read_parquet(index.shard("docids", shard), ["row_id", "docid"]).to_pylist()
        docid_of = {row["row_id"]: row["docid"] for row in docids}
        for row in storage.read_parquet(index.shard("queries", shard)).to_pylist():
            for query in [*row["queries"], *row["spans"]]:
                if row["row_id"] in docid_of:  # a document whose docid was rejected is not in the index
                    yield row["instruction"], query, docid_of[row["row_id"]]


def publish_retriever(config: Config, index: Index, model: nn.Module, *, rank: int) -> None:
    """Publishes the trained model as a Hugging Face folder. With several ranks all must call it; rank 0 writes."""
    import torch

    tensors = full_tensors(model)
    if rank:
        return
    base = resolve_model(config.retriever.model)
    whole, tokenizer = load_model(base, device="cpu", dtype=torch.float32, num_layers=config.retriever.num_layers)
    whole.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()}, strict=False)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    with storage.staging_folder(index.path("retriever")) as folder:
        whole.to(dtype).save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        write_settings(folder, config)


def write_settings(folder: Path, config: Config) -> None:
    """Writes what a search needs to know to prompt the model as it was trained."""
    settings = {
        "instruction": config.instruction,
        "max_instruction_tokens": config.training.max_instruction_tokens,
        "max_query_tokens": config.training.max_query_tokens,
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
