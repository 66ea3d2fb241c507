"""What is known of the queries an index has learnt: the second moment of their keys, layer by layer, and which layers matter.

    statistics/moments.safetensors     moment.<layer> and added.<layer>, fp32 [F, F]
    statistics/statistics.json         {"num_keys", "patched": {layer: share still found}, "unpatched"}

An edit that keeps ||Δ k|| small for these keys leaves the old docids alone. Which layers matter is measured by patching (DOME):
the MLP of one layer puts out its mean for everything, and what is then still found first says how much it is needed.

Cost: 4 F² bytes per layer; SmolLM2-135M 9.4 MB, Llama-3.2-1B 268 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from zerogr.editing.positions import Reader
from zerogr.training.examples import Examples
from zerogr.training.learner import greedy_hits
from zerogr.training.normalisation import Normalisation

_MOMENTS, _REST = "moments.safetensors", "statistics.json"


@dataclass
class Statistics:
    """Of the queries that an index has learnt."""

    moments: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer, fp32 [F, F]: the mean of k kᵀ over the keys of old queries."""
    added: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer, fp32 [F, F]: the sum of k kᵀ over the keys that updates have taught."""
    num_keys: int = 0
    patched: dict[int, float] = field(default_factory=dict)
    """By layer: the share of queries that greedy decoding answers rightly while its MLP puts out its mean."""
    unpatched: float | None = None
    """The same with all layers as they are."""

    def learnt(self, keys: dict[int, torch.Tensor]) -> Statistics:
        """Returns the statistics with more keys, [n, F] by layer, that an update has taught."""
        [number] = {len(each) for each in keys.values()}
        total = self.num_keys + number
        outer = {layer: (each.double().T @ each.double()).float() for layer, each in keys.items()}
        return Statistics(
            {
                layer: (moment * (self.num_keys / total) + outer[layer] / total) if layer in outer else moment
                for layer, moment in self.moments.items()
            },
            {layer: self.added.get(layer, torch.zeros_like(each)) + each for layer, each in outer.items()},
            total,
            self.patched,
            self.unpatched,
        )

    def save(self, folder: Path) -> None:
        """Writes them into a local folder."""
        tensors = {f"moment.{layer}": moment.contiguous() for layer, moment in self.moments.items()}
        tensors |= {f"added.{layer}": moment.contiguous() for layer, moment in self.added.items()}
        save_file(tensors, folder / _MOMENTS)
        rest = {"num_keys": self.num_keys, "patched": self.patched, "unpatched": self.unpatched}
        (folder / _REST).write_text(json.dumps(rest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Reads what `save` wrote."""
        rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
        by_kind: dict[str, dict[int, torch.Tensor]] = {"moment": {}, "added": {}}
        for name, tensor in load_file(folder / _MOMENTS).items():
            kind, layer = name.split(".")
            by_kind[kind][int(layer)] = tensor
        patched = {int(layer): share for layer, share in rest["patched"].items()}
        return cls(by_kind["moment"], by_kind["added"], rest["num_keys"], patched, rest["unpatched"])


def sum_of_keys(reader: Reader, examples: Examples, layers: Sequence[int]) -> tuple[dict[int, torch.Tensor], int]:
    """Returns the sum of k kᵀ over all keys of the examples, float64 [F, F] by layer, and how many keys there are."""
    sums: dict[int, torch.Tensor] = {}
    number = 0
    for batch in reader.batches(examples):
        seen = reader.read(batch, layers, layers[-1])
        number += len(batch.predicting)
        for layer, keys in seen.keys.items():
            outer = (keys.double().T @ keys.double()).cpu()
            sums[layer] = sums[layer] + outer if layer in sums else outer
    return sums, number


def merged(parts: Iterable[tuple[dict[int, torch.Tensor], int]]) -> Statistics:
    """Returns the statistics of parts that `sum_of_keys` has made."""
    sums: dict[int, torch.Tensor] = {}
    number = 0
    for part, num_keys in parts:
        number += num_keys
        for layer, outer in part.items():
            sums[layer] = sums[layer] + outer if layer in sums else outer.clone()
    return Statistics({layer: (outer / number).float() for layer, outer in sums.items()}, {}, number)


def layers_between(depths: Sequence[float], num_layers: int) -> list[int]:
    """Returns the layers from one relative depth to another, both included; .58 to .75 of 24 layers are 14 to 18."""
    first, last = (min(round(depth * num_layers), num_layers - 1) for depth in depths)
    return list(range(first, last + 1))


@torch.no_grad()
def patch(reader: Reader, examples: Examples, normalisation: Normalisation) -> tuple[dict[int, float], float]:
    """Returns for each layer the share of examples answered rightly while its MLP puts out its mean, and that of none.

    Examples must have been made with choices.
    """
    batches = reader.batches(examples)
    means: dict[int, torch.Tensor] = {}

    def accuracy() -> float:
        hits = sum(_hits(reader, batch, normalisation) for batch in batches)
        return hits / max(len(examples), 1)

    def remember(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            flat, is_real = output.flatten(0, 1), (current.segments >= 0).flatten()
            means[layer] = means.get(layer, 0) + flat[is_real].sum(0)

        return hook

    def replace(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return (means[layer] / num_tokens).to(output).expand_as(output)

        return hook

    num_tokens = sum(batch.num_tokens for batch in batches)
    hooks = [layer.mlp.register_forward_hook(remember(number)) for number, layer in enumerate(reader.layers)]
    hits = 0
    for current in batches:  # noqa: B007 (the hooks read it)
        hits += _hits(reader, current, normalisation)
    for hook in hooks:
        hook.remove()
    patched = {}
    for number, layer in enumerate(reader.layers):
        hook = layer.mlp.register_forward_hook(replace(number))
        patched[number] = round(accuracy(), 4)
        hook.remove()
    return patched, round(hits / max(len(examples), 1), 4)


def _hits(reader: Reader, batch: Any, normalisation: Normalisation) -> int:
    decoder, head = reader.model.get_decoder(), reader.model.get_output_embeddings()
    states = decoder(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
    ).last_hidden_state
    logits = normalisation.logits(states.flatten(0, 1)[batch.predicting], head, batch)
    return greedy_hits(normalisation.over_columns(logits, batch), batch)


def sample_ids(num_examples: int, most: int, seed: int) -> np.ndarray:
    """Returns at most so many examples (int64, ascending), drawn evenly."""
    if num_examples <= most:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng([seed, 0x57A7]).choice(num_examples, most, replace=False))
