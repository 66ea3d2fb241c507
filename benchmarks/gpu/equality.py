"""Whether this device answers what the CPU and the references answer: decoder, learner and engine, with fp32 models."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.engine import save_model
from benchmarks.gpu.shapes import END, model_of, prompts_of, trie_of
from benchmarks.gpu.training import examples_of
from zerogr.decoding import decode_batch
from zerogr.decoding.device.decoder import DeviceDecoder
from zerogr.decoding.language_model import TreeModel
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.transformers import TransformersEngine
from zerogr.training.learner import Learner, TrainingSettings
from zerogr.trie import DocidTrie

STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("beam", {}),
    ("greedy", {}),
    ("nucleus", {}),
    ("reverse_annealing", {}),
    ("stochastic_beam", {}),
    ("best_first", {}),
)


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Counts answers that differ: documents or order, samples, and the largest difference of a score or a loss."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return [*_decoder(device), _learner(device), _engine(device)]


def _decoder(device: torch.device) -> list[dict[str, Any]]:
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
                if strategy == "best_first" and normalise == "vocabulary" and trie.num_docids > 1000:
                    continue  # to a random model all docids are much the same, and it would look at all of them
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
                    "what": name, "normalise": normalise, "strategy": strategy, "answers": num_queries,
                    "other answers": num_other, "largest difference": largest,
                })  # fmt: skip
    return rows


def _learner(device: torch.device) -> dict[str, Any]:
    """Losses and gradient norms of three steps, here and on the CPU."""
    largest = 0.0
    for normalise in ("allowed", "vocabulary"):
        examples, choices = examples_of(32, 512)
        settings = TrainingSettings(
            num_epochs=1, batch_size=16, learning_rate=1e-3, normalise=normalise, precision="fp32", pass_tokens=256
        )
        found = []
        for place in (device, torch.device("cpu")):
            learner = Learner(model_of("toy", torch.device("cpu"), torch.float32), settings, device=place)
            taken = [learner.step(learner.prepare(examples, np.arange(16), choices), 1e-3) for _ in range(3)]
            found.append([value for step in taken for value in (step.loss, step.gradient_norm)])
        largest = max(largest, *(abs(one - other) for one, other in zip(*found, strict=True)))
    return {"what": "learner", "answers": 6, "other answers": int(largest > 1e-3), "largest difference": largest}


def _engine(device: torch.device) -> dict[str, Any]:
    """Samples that are drawn without the host here, and by the loop on the CPU; rounding may move one at a boundary."""
    with TemporaryDirectory() as folder:
        save_model(Path(folder), "toy", torch.device("cpu"))
        prompts = [Prompt(user=" ".join(f"w{7 * i + j}" for j in range(9)), seeds=tuple(range(6))) for i in range(5)]
        found = []
        for place, on_device in ((device.type, True), ("cpu", False)):
            engine = TransformersEngine(folder, batch_size=12, device=place, dtype="float32", on_device=on_device)
            samplings = (Sampling(max_tokens=12, top_p=0.9, stop=("7",)), Sampling(max_tokens=5, temperature=0.0))
            found.append([text for how in samplings for each in engine.generate(prompts, how) for text in each.texts])
    num_other = sum(one != other for one, other in zip(*found, strict=True))
    return {"what": "engine", "answers": len(found[0]), "other answers": num_other}
