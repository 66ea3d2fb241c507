"""Training on two ranks. Silent failures these tests look for: a rank whose gradients are lost, counted twice or averaged
where they should be summed; a checkpoint that holds one rank's half; weights published under the wrong names."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jobs.cli import main
from tests.examples import example
from tests.servers import free_port
from zerogr.config.owned import LOSS, settings_of
from zerogr.docids.schemes.fusion import FusionSettings
from zerogr.index.index import Index
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.learner import Learner, TrainingSettings
from zerogr.training.loop import train
from zerogr.training.loss import load_loss
from zerogr.training.losses.fusion import FusionLossSettings
from zerogr.training.recipes.fusion import examples_of

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4
"""Two ranks add the same gradients in another order; AdamW carries the rounding on."""
SETTINGS = TrainingSettings(
    num_epochs=2,
    batch_size=8,
    learning_rate=1e-3,
    precision="fp32",
    evaluation_fraction=0.1,
    evaluate_every=3,
    checkpoint_every=3,  # right after an evaluation: FSDP leaves its parameters gathered there
    max_gradient_norm=2.0,  # clips some steps and not others
)


def test_two_workers_train_the_weights_of_one(tiny_index: str, tmp_path: Path, local_ray: None) -> None:
    index = str(tmp_path / "index")
    shutil.copytree(tiny_index, index)
    config = str(Path(tiny_index).parent / "config.yaml")
    changes = ["--set", f"index={index}", "--set", "compute.num_training_workers=[1, 2]"]  # there is room for two
    assert main(["train", config, *changes, "--rebuild", "retriever"]) == 0

    one, two = (load_file(Path(uri) / "retriever" / "model.safetensors") for uri in (tiny_index, index))
    _assert_close(two, one)
    before, after = (Index(uri).require("retriever") for uri in (tiny_index, index))
    assert after.fingerprint == before.fingerprint
    assert after.counts["loss"] == pytest.approx(before.counts["loss"], abs=1e-3)
    assert after.counts["evaluation_loss"] == pytest.approx(before.counts["evaluation_loss"], abs=1e-3)


def test_checkpoint_of_two_ranks_is_read_by_one_and_the_other_way_round(tiny_model: Path, tmp_path: Path) -> None:
    reports = _train_here(tiny_model, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "one-on-two")
    _train_on_two_ranks(tiny_model, [tmp_path / "two", tmp_path / "one-on-two"])
    shutil.copytree(tmp_path / "two", tmp_path / "two-on-one")
    resumed = _train_here(tiny_model, tmp_path / "two-on-one")

    last_step, last_checkpoint = reports[-1]["step"], 3 * ((reports[-1]["step"] - 1) // 3)
    assert [report["step"] for report in reports] == [*range(3, last_step, 3), last_step]
    assert [report["step"] for report in resumed] == [step for step in [last_step] if step > last_checkpoint]
    expected = load_file(tmp_path / "one" / "final.safetensors")
    for name in ("two", "one-on-two", "two-on-one"):
        _assert_close(load_file(tmp_path / name / "final.safetensors"), expected)

    one, two = (_state_of_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert {key.partition("/")[0] for key in one} == {"weights", "exp_avg", "exp_avg_sq"}
    _assert_close(two, one)
    for key in one:
        # AdamW forgives a gradient that is wrong by a factor; its moments do not.
        assert torch.linalg.norm(two[key] - one[key]) <= 1e-2 * torch.linalg.norm(one[key]), key


def test_two_ranks_in_the_default_precision(tiny_model: Path, tmp_path: Path) -> None:
    changes = {
        "precision": "bf16",
        "activation_checkpointing": True,
        "pass_tokens": 64,
    }  # ranks with more passes and with fewer
    (tmp_path / "one").mkdir()
    alone = _train_here(tiny_model, tmp_path / "one", **changes)
    _train_on_two_ranks(tiny_model, [tmp_path / "two"], **changes)
    together = json.loads((tmp_path / "two" / "reports.json").read_text())
    assert [report["step"] for report in together] == [report["step"] for report in alone]
    for one, two in zip(alone, together, strict=True):
        for key in ("loss", "evaluation_loss"):
            assert two[key] == pytest.approx(one[key], rel=0.02)
    assert together[-1]["loss"] < 0.97 * together[0]["loss"]


@pytest.mark.parametrize("name", ["graded", "ranknet", "fusion"])
def test_two_ranks_train_what_a_loss_brings_along(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Its parameters are trained, kept in checkpoints and gathered like the model's."""
    chosen = {"residual": True} if name == "ranknet" else {}
    loss = (
        FusionLossSettings() if name == "fusion" else settings_of(LOSS, name).model_validate({"name": name, **chosen})
    )
    changes = {"loss": loss, "num_epochs": 1}
    _train_on_two_ranks(tiny_model, [tmp_path / "two"], **changes)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    _train_here(tiny_model, tmp_path / "one", **changes)  # from the checkpoint of two
    (tmp_path / "alone").mkdir()
    reports = _train_here(tiny_model, tmp_path / "alone", **changes)
    alone = load_file(tmp_path / "alone" / "final.safetensors")
    own = [name for name in alone if name.startswith("of_loss.")]
    assert own
    for other in ("two", "one"):
        _assert_close(load_file(tmp_path / other / "final.safetensors"), alone)
    together = json.loads((tmp_path / "two" / "reports.json").read_text())
    assert together[-1]["loss"] == pytest.approx(reports[-1]["loss"], rel=1e-3)
    torch.manual_seed(0)
    untrained = load_loss(changes["loss"], load_model(str(tiny_model), device="cpu", dtype=torch.float32)[0])
    layers = {"graded": "layer", "ranknet": "scorer", "fusion": "reader.model.of_loss"}
    before = dict(attrgetter(layers[name])(untrained).named_parameters())
    assert any(not torch.equal(before[key.removeprefix("of_loss.")], alone[key]) for key in own)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_two_ranks_whose_layers_are_compiled(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    (tmp_path / "one").mkdir()
    alone = _train_here(tiny_model, tmp_path / "one", num_epochs=1)
    _train_on_two_ranks(tiny_model, [tmp_path / "two"], num_epochs=1, compile=True)
    together = json.loads((tmp_path / "two" / "reports.json").read_text())
    for one, two in zip(alone, together, strict=True):
        for key in ("loss", "evaluation_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-3)
    assert any(file.suffix == ".so" for file in (tmp_path / "compiled").rglob("*"))


def test_training_moves_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    reports = _train_here(tiny_model, tmp_path)
    untrained = full_tensors(load_model(str(tiny_model), device="cpu", dtype=torch.float32)[0])
    trained = load_file(tmp_path / "final.safetensors")
    assert reports[-1]["evaluation_loss"] < reports[0]["evaluation_loss"]
    # Far beyond the tolerance above, without which "equal" would mean nothing.
    assert max((trained[name] - untrained[name]).abs().max() for name in trained) > 30 * TOLERANCE


def _assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    furthest = max(expected, key=lambda name: float((actual[name] - expected[name]).abs().max()))
    assert float((actual[furthest] - expected[furthest]).abs().max()) <= TOLERANCE, furthest


def _examples(chat: ChatFormat, *, graded: bool = False) -> Examples:
    """Returns queries of one document each, or of three with the grades 2, 1 and 0."""
    draw = np.random.default_rng(0)
    words = "coffee grind water keel mast wind knight rook pawn flour yeast oven gear chain brake".split()
    if not graded:
        return Examples.build(
            (
                example("Find the text.", " ".join(draw.choice(words, 4)), (" ".join(draw.choice(words, 3)), 1.0))
                for _ in range(31)
            ),
            chat,
        )
    texts = [
        TextExample(
            "Find the text.",
            " ".join(draw.choice(words, 4)),
            [Relevant(float(grade), [(" ".join(draw.choice(words, 3)), float(grade))]) for grade in (2, 1, 0)],
        )
        for _ in range(31)
    ]
    return Examples.build(texts, chat)


def _train_here(
    model_folder: Path, folder: Path, *, rank: int = 0, num_ranks: int = 1, **changes: Any
) -> list[dict[str, Any]]:
    """Trains below `folder`, from the checkpoint there if there is one; writes final.safetensors, returns the reports."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(str(model_folder), device="cpu", dtype=torch.float32)
    reports: list[dict[str, Any]] = []
    checkpointer = StorageCheckpointer(str(folder / "checkpoints"), rank=rank, num_ranks=num_ranks)
    settings = replace(SETTINGS, **changes)
    if settings.loss.has_reader:
        groups = [[(f"{i} coffee {j} beans", f"beans {i}") for j in range(2 + i % 3)] for i in range(31)]
        examples = examples_of(groups, tokenizer, FusionSettings(num_latents=settings.loss.num_latents))
    else:
        examples = _examples(ChatFormat.of(tokenizer), graded=settings.loss.needs_negatives)
    train(
        model, examples, settings, checkpointer=checkpointer, report=reports.append, rank=rank, num_ranks=num_ranks
    )  # fmt: skip
    tensors = full_tensors(model, rank=rank)
    if rank == 0:
        (folder / "reports.json").write_text(json.dumps(reports))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "final.safetensors")
    return reports


def _state_of_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = (folder / "checkpoints").glob("step-*")  # the one before is gone
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for key, begin in shard.metadata().items():
                parts.setdefault(key, []).append((int(begin), shard.get_tensor(key)))
    return {
        key: torch.cat([rows for _, rows in sorted(found, key=lambda part: part[0])]) for key, found in parts.items()
    }


def _train_on_two_ranks(model_folder: Path, folders: list[Path], **changes: Any) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)
    torch.multiprocessing.spawn(_rank, (free_port(), model_folder, folders, changes), nprocs=2)


def _rank(rank: int, port: int, model_folder: Path, folders: list[Path], changes: dict[str, Any]) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )  # fmt: skip
    try:
        for folder in folders:
            _train_here(model_folder, folder, rank=rank, num_ranks=2, **changes)
    finally:
        torch.distributed.destroy_process_group()
    # As an interpreter ends, threads of torch's own abort it now and then (pytorch#90549). What this rank did is on the disk.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_restored_optimiser_is_the_saved_one(tiny_model: Path, tmp_path: Path, precision: Any) -> None:
    settings = replace(SETTINGS, precision=precision)

    def fresh() -> tuple[Learner, Examples]:
        model, tokenizer = load_model(str(tiny_model), device="cpu", dtype=torch.float32)
        return Learner(model, settings), _examples(ChatFormat.of(tokenizer))

    learner, examples = fresh()
    for _ in range(2):
        learner.step(learner.prepare(examples, np.arange(8)), 1e-2)
    checkpointer = StorageCheckpointer(str(tmp_path))
    checkpointer.save(learner.weights, learner.optimizer, 2)
    checkpointer.wait()
    other, _ = fresh()
    assert checkpointer.restore(other.weights, other.optimizer) == 2
    for one, two in zip(learner.weights.values(), other.weights.values(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, two)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(learner.optimizer.state[one][key], other.optimizer.state[two][key])
