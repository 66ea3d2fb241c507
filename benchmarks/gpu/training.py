"""Training steps: the learner with its default settings and others, beside a plain loop; tokens per second and MFU."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import END, model_of, seconds
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples
from zerogr.training.learner import Learner, TrainingSettings
from zerogr.training.throughput import Cost, peak_flops
from zerogr.trie import DocidTrie

PREFIX, QUERY, ANSWER = 25, 17, 9
"""Tokens of an example, as on SciFact: what all share, what is asked with its turn marks, and a docid with its end."""


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times steps of every shape and size."""
    cases: tuple[tuple[str, int], ...] = (("135M", 256), ("135M", 1024), ("1B", 256), ("1B", 1024), ("3B", 256))
    if arguments.dry_run:
        cases = (("toy", 16),)
    rows: list[dict[str, Any]] = []
    for shape, batch_size in cases:
        model = model_of(shape, device, torch.float32)
        examples, choices = examples_of(4 * batch_size, model.config.vocab_size)
        default = TrainingSettings(num_epochs=1, batch_size=batch_size, learning_rate=1e-4, normalise="allowed")
        variants = {"default": default, "vocabulary": replace(default, normalise="vocabulary")}
        if device.type == "cuda":
            variants["compiled"] = replace(default, compile=True)
            variants["by blocks"] = replace(default, block_attention=True)
            variants["by blocks, compiled"] = replace(default, block_attention=True, compile=True)
        for name, settings in variants.items():
            rows.append(_row(device, shape, name, model_of(shape, device, torch.float32), examples, choices, settings))
            print(rows[-1], flush=True)
        rows.append(_plain(device, shape, model, examples, batch_size))
        print(rows[-1], flush=True)
    return rows


def examples_of(count: int, vocabulary: int) -> tuple[Examples, Choices]:
    """Returns random examples, and the trie of their docids."""
    random = np.random.default_rng(0)
    docids = random.integers(3, vocabulary, size=(count, ANSWER - 1))
    examples = Examples(
        prefixes=[random.integers(3, vocabulary, size=PREFIX).tolist()],
        task=np.zeros(count, np.int32),
        query_tokens=random.integers(3, vocabulary, size=count * QUERY).astype(np.int32),
        query_offsets=np.arange(count + 1) * QUERY,
        first_document=np.arange(count + 1),
        grades=np.ones(count, np.float32),
        teacher=np.zeros(count, np.float32),
        first_answer=np.arange(count + 1),
        weights=np.ones(count, np.float32),
        answer_tokens=np.concatenate([docids, np.full((count, 1), END)], axis=1).astype(np.int32).ravel(),
        answer_offsets=np.arange(count + 1) * ANSWER,
    )
    return examples, Choices(DocidTrie.build(docids.tolist()), END)


def _row(
    device: torch.device,
    shape: str,
    name: str,
    model: Any,
    examples: Examples,
    choices: Choices,
    settings: TrainingSettings,
) -> dict[str, Any]:
    cost = Cost(model)
    learner = Learner(model, settings, device=device)
    ids = np.arange(settings.batch_size)
    work = learner.prepare(examples, ids, choices)
    prepare = seconds(torch.device("cpu"), lambda: learner.prepare(examples, ids, choices))
    step = seconds(device, lambda: learner.step(work, 1e-4), rounds=5, warm_ups=3)
    num_tokens = sum(packed.num_tokens for packed in work.passes)
    in_head = settings.batch_size * ANSWER if settings.normalise == "vocabulary" else 0
    peak = peak_flops(device)
    return {
        "model": shape, "what": name, "pairs a step": settings.batch_size, "ms a step": 1e3 * step,
        "prepare, ms": 1e3 * prepare, "useful tokens/s": settings.batch_size * (PREFIX + QUERY + ANSWER) / step,
        "MFU": cost.flops(num_tokens, in_head) / step / peak if peak else None,
        "peak, GB": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    }  # fmt: skip


def _plain(device: torch.device, shape: str, model: Any, examples: Examples, batch_size: int) -> dict[str, Any]:
    """The loop that everybody writes first: padding, logits of all tokens, autocast; in parts that fit."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    prefix = torch.tensor(examples.prefixes[0], device=device).expand(batch_size, -1)
    asked, answers = (
        torch.from_numpy(tokens[: batch_size * width].astype(np.int64)).view(batch_size, width).to(device)
        for tokens, width in ((examples.query_tokens, QUERY), (examples.answer_tokens, ANSWER))
    )
    tokens = torch.cat([prefix, asked, answers], dim=1)
    labels = tokens.clone()
    labels[:, : -answers.shape[1]] = -100
    part = min(batch_size, 128)

    def step() -> None:
        for begin in range(0, batch_size, part):
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(tokens[begin : begin + part], labels=labels[begin : begin + part]).loss
            (loss * part / batch_size).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    taken = seconds(device, step, rounds=3, warm_ups=2)
    useful = batch_size * (PREFIX + QUERY + ANSWER) / taken
    return {
        "model": shape,
        "what": "plain loop",
        "pairs a step": batch_size,
        "ms a step": 1e3 * taken,
        "useful tokens/s": useful,
    }
