"""Samples of the transformers engine: new tokens per second."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.shapes import model_of, seconds
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.transformers import TransformersEngine


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times queries of random models: their texts mean nothing, their number of tokens is the most that is allowed."""
    shape, sizes = ("toy", (16,)) if arguments.dry_run else ("135M", (256, 1024))
    rows = []
    with TemporaryDirectory() as folder:
        save_model(Path(folder), shape, device)
        for batch_size in sizes:
            engine = TransformersEngine(folder, batch_size=batch_size, device=device.type)
            prompts = [
                Prompt(user=" ".join(f"w{(7 * i + j) % 400}" for j in range(200)), seeds=tuple(range(8)))
                for i in range(max(4, 2 * batch_size // 8))
            ]
            sampling = Sampling(max_tokens=16, temperature=1.0, top_p=0.95, stop=("\n",))
            counted = [0]
            taken = seconds(device, partial(_generate, engine, prompts, sampling, counted), rounds=2)
            rows.append({
                "model": shape, "sequences together": batch_size, "prompts": len(prompts), "samples": 8 * len(prompts),
                "new tokens/s": counted[-1] / taken, "seconds": taken,
            })  # fmt: skip
    return rows


def _generate(engine: TransformersEngine, prompts: list[Prompt], sampling: Sampling, counted: list[int]) -> None:
    counted.append(sum(each.num_output_tokens for each in engine.generate(prompts, sampling)))


def save_model(folder: Path, shape: str, device: torch.device) -> None:
    """Writes a random model with a tokenizer of words, as many as it has tokens."""
    model = model_of(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model.save_pretrained(folder)
    words = ["<pad>", "<unk>", "<end>", *(f"w{i}" for i in range(model.config.vocab_size - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
