"""Searches of many shapes, beside the bare forward passes of the same shapes, and the constraint alone."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.shapes import END, captured, model_of, prompts_of, seconds, trie_of
from zerogr.decoding.device.decoder import DeviceDecoder
from zerogr.decoding.device.frontier import Frontier, options_of
from zerogr.decoding.device.model import Head, PathScorer
from zerogr.decoding.device.programs import Setting
from zerogr.decoding.device.trie import DeviceTrie
from zerogr.decoding.language_model import TreeModel
from zerogr.llm.paths import Prompts

_FULL = (
    # shape, docids, prompt tokens, k, strategies, batches
    ("135M", 10_000, 40, 100, ("beam",), (1, 32, 128)),
    (
        "135M",
        1_000_000,
        40,
        100,
        ("beam", "reverse_annealing", "nucleus", "greedy", "stochastic_beam"),
        (1, 8, 32, 128),
    ),
    ("135M", 10_000_000, 40, 100, ("beam",), (1, 32)),
    ("135M", 1_000_000, 1000, 100, ("beam",), (1, 8)),
    ("1B", 1_000_000, 40, 100, ("beam", "reverse_annealing"), (1, 32)),
    ("1.7B", 10_000_000, 1000, 256, ("beam",), (1, 8)),
)
_DRY = (("toy", 2_000, 12, 10, ("beam", "reverse_annealing", "nucleus", "greedy", "stochastic_beam"), (1, 4)),)


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times every shape; models and tries are made once each."""
    rows: list[dict[str, Any]] = []
    models: dict[str, TreeModel] = {}
    tries: dict[tuple[int, int], Any] = {}
    for shape, num_docids, length, k, strategies, batches in _DRY if arguments.dry_run else _FULL:
        if shape not in models:
            models.clear()  # one at a time: the largest need the room
            models[shape] = TreeModel(
                model_of(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
            )
        vocabulary = models[shape].model.config.vocab_size
        if (num_docids, vocabulary) not in tries:
            tries[num_docids, vocabulary] = trie_of(num_docids, vocabulary)
        trie, decoder = tries[num_docids, vocabulary], DeviceDecoder(models[shape])
        for batch in batches:
            prompts = prompts_of(batch, length, vocabulary)
            bare, mask, num_rounds = _floor(device, models[shape], trie, prompts, k)
            for strategy in strategies:
                search = partial(decoder.decode, prompts, trie, k, eos_token_id=END, strategy=strategy)
                taken = seconds(device, search, warm_ups=2)
                rows.append({
                    "model": shape, "docids": num_docids, "prompt": length, "k": k, "strategy": strategy, "batch": batch,
                    "ms a query": 1e3 * taken / batch, "ms": 1e3 * taken, "bare passes, ms": 1e3 * bare,
                    "ratio": taken / bare, "rounds": num_rounds, "mask, ms a step": 1e3 * mask,
                })  # fmt: skip
                print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def _floor(device: torch.device, model: TreeModel, trie: Any, prompts: Any, k: int) -> tuple[float, float, int]:
    """Returns seconds of the bare passes of a beam search, of its constraint per step, and the number of rounds."""
    device_trie = DeviceTrie(trie, END, device)
    setting = Setting(device_trie, k, "allowed")
    padded, head = Prompts.of([own for _, own in prompts], device), Head(model, device_trie)
    widths = []
    for depth in range(setting.num_rounds - 1):
        widths.append(min(k, device_trie.capacity(depth, widths[-1] if widths else 1, False)))

    def frontier_of(depth: int) -> Frontier:
        width, batch = widths[depth], len(prompts)
        info = torch.zeros(batch, width, 4, dtype=torch.int64, device=device)
        ancestors = torch.zeros(batch, width, depth + 1, dtype=torch.int64, device=device)
        score = torch.zeros(batch, width, dtype=torch.float64, device=device)
        return Frontier(info, score, torch.ones_like(score, dtype=torch.bool), ancestors)

    frontiers = [frontier_of(depth) for depth in range(len(widths))]

    def passes() -> None:
        scorer = PathScorer(model, head, device_trie, padded, setting.num_places(k))
        for frontier in frontiers:
            scorer.extend(frontier)

    bare = seconds(device, captured(device, passes))
    if not frontiers:
        return bare, 0.0, setting.num_rounds
    capacity = device_trie.capacity(1, widths[0], False)
    options_of(device_trie, frontiers[0], capacity)
    mask = seconds(device, captured(device, lambda: options_of(device_trie, frontiers[0], capacity)), rounds=9)
    return bare, mask, setting.num_rounds
