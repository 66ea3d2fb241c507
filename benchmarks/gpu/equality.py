"""Whether the decoder's array programs answer on this device what the reference answers."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import END, model_of, prompts_of, trie_of
from zerogr.decoding import decode_batch
from zerogr.decoding.device.decoder import DeviceDecoder
from zerogr.decoding.language_model import TreeModel
from zerogr.trie import DocidTrie

STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("beam", {}),
    ("greedy", {}),
    ("nucleus", {}),
    ("reverse_annealing", {}),
    ("stochastic_beam", {}),
)


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Counts answers that differ, of fp32 models: documents or order, and the largest difference of a score."""
    model = TreeModel(model_of("toy", device, torch.float32))
    decoder = DeviceDecoder(model)
    random = np.random.default_rng(3)
    small = [random.integers(3, 9, size=random.integers(1, 6)).tolist() for _ in range(400)]
    tries: dict[str, Any] = {"prefixes and duplicates": DocidTrie.build(small), "words": trie_of(20_000, 512)}
    tries["half of them"] = tries["words"].filter(deny=np.arange(0, 20_000, 2))
    rows = []
    for name, trie in tries.items():
        for normalise in ("allowed", "vocabulary"):
            for strategy, options in STRATEGIES:
                how: dict[str, Any] = {
                    "eos_token_id": END,
                    "strategy": strategy,
                    "seed": 5,
                    "normalise": normalise,
                    **options,
                }
                num_queries = num_other = 0
                largest = 0.0
                for batch in (1, 3, 8):
                    prompts = prompts_of(batch, 11, 512)
                    found = decoder.decode(prompts, trie, 20, **how)
                    assert found is not None
                    for one, other in zip(found, decode_batch(model.start(prompts), trie, 20, **how), strict=True):
                        num_queries += 1
                        num_other += [each.row for each in one] != [each.row for each in other]
                        scores = {each.row: each.score for each in other}
                        gaps = [abs(each.score - scores[each.row]) for each in one if each.row in scores]
                        largest = max(largest, *gaps) if gaps else largest
                rows.append({
                    "docids": name, "normalise": normalise, "strategy": strategy, "queries": num_queries,
                    "other answers": num_other, "largest difference of a score": largest,
                })  # fmt: skip
    return rows
