from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.zerogr.test_examples import load, loss_alone, loss_of, make_examples
from zerogr.store import storage
from zerogr.training import loop
from zerogr.training.checkpoints import StorageCheckpointer, Weights, full_tensors, latest_step
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, batches, epoch_order
from zerogr.training.learner import Learner, TrainingSettings, Work
from zerogr.training.loop import learning_rate_at, train
from zerogr.training.packing import PackedBatch
from zerogr.training.sizes import Sizes

SETTINGS = TrainingSettings(
    num_epochs=2,
    batch_size=4,
    learning_rate=1e-2,
    precision="fp32",
    evaluation_fraction=0.1,
    evaluate_every=5,
    checkpoint_every=3,
    weight_decay=0.01,
)


pytestmark = pytest.mark.usefixtures("one_thread")


class NoCheckpoints:
    def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
        pass

    def wait(self) -> None:
        pass

    def restore(self, weights: Weights, optimizer: torch.optim.Optimizer) -> int:
        return 0


class TestOrder:
    def test_an_epoch_takes_every_example_once(self) -> None:
        ids = np.array([2, 3, 5, 7, 11, 13, 17])
        orders = [epoch_order(ids, 0, epoch) for epoch in range(3)]
        assert all(sorted(order) == ids.tolist() for order in orders)
        assert not np.array_equal(orders[0], orders[1])
        assert np.array_equal(orders[1], epoch_order(ids, 0, 1))
        assert not np.array_equal(orders[0], epoch_order(ids, 1, 0))

    def test_batches_go_on_where_they_stopped(self) -> None:
        order = np.arange(10)
        whole = [batch.tolist() for batch in batches(order, 4)]
        assert whole == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert [batch.tolist() for batch in batches(order, 4, start=4)] == whole[1:]

    def test_training_sees_every_example_once_per_epoch_even_when_interrupted(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        prepared: dict[int, list[int]] = {}
        prepare, take_step = Learner.prepare, Learner.step

        def note_ids(self: Learner, examples: Examples, ids: np.ndarray, choices: Choices | None) -> Work:
            work = prepare(self, examples, ids, choices)
            prepared[id(work)] = ids.tolist()
            return work

        def note_step(self: Learner, work: Work, *arguments: Any, **options: Any) -> Any:
            seen.extend(prepared.pop(id(work)))
            return take_step(self, work, *arguments, **options)

        monkeypatch.setattr(Learner, "prepare", note_ids)
        monkeypatch.setattr(Learner, "step", note_step)
        monkeypatch.setattr(Learner, "evaluate", lambda *_: {})
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        training_ids, held_out = examples.split(SETTINGS.evaluation_fraction, SETTINGS.seed)
        interrupted_at = 6
        with pytest.raises(KeyboardInterrupt):
            run(model, examples, DiesAfter(interrupted_at, str(tmp_path)))
        run(load(tiny_model)[0], examples, StorageCheckpointer(str(tmp_path)))
        assert Counter(seen) == Counter({int(i): SETTINGS.num_epochs for i in training_ids})
        assert not set(seen) & set(held_out.tolist())


class DiesAfter(StorageCheckpointer):
    """A checkpointer whose process is killed right after a checkpoint."""

    def __init__(self, step: int, uri: str) -> None:
        super().__init__(uri)
        self._last = step

    def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
        super().save(weights, optimizer, step)
        if step == self._last:
            self.wait()
            raise KeyboardInterrupt


def run(model: Any, examples: Examples, checkpointer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], Any]:
    """Trains; returns the weights, the reports and the final counts."""
    reports: list[dict[str, Any]] = []
    counts = train(model, examples, SETTINGS, checkpointer=checkpointer, report=reports.append)
    return full_tensors(model), reports, counts


class TestResume:
    """A run on spot machines is interrupted a dozen times: small differences would make every index another one."""

    @pytest.mark.parametrize("step", [3, 6, 9])
    def test_gives_exactly_the_weights_of_an_undisturbed_run(self, tiny_model: Path, tmp_path: Path, step: int) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        expected, reports, counts = run(model, examples, StorageCheckpointer(str(tmp_path / "undisturbed")))
        assert counts["steps"] == 10

        with pytest.raises(KeyboardInterrupt):
            run(load(tiny_model)[0], examples, DiesAfter(step, str(tmp_path / "killed")))
        weights, later, resumed = run(load(tiny_model)[0], examples, StorageCheckpointer(str(tmp_path / "killed")))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert [report["step"] for report in later] == [number for number in (5, 10) if number > step]
        assert later[-1]["evaluation_loss"] == reports[-1]["evaluation_loss"]
        assert resumed["evaluation_loss"] == counts["evaluation_loss"]

        start = full_tensors(load(tiny_model)[0])
        assert any((expected[name] - start[name]).abs().max() > 1e-3 for name in start)

    def test_from_nothing(self, tiny_model: Path, tmp_path: Path) -> None:
        learner = Learner(load(tiny_model)[0], SETTINGS)
        assert StorageCheckpointer(str(tmp_path)).restore(learner.weights, learner.optimizer) == 0
        assert not learner.optimizer.state

    def test_only_the_newest_checkpoint_is_kept(self, tiny_model: Path, tmp_path: Path) -> None:
        model, chat = load(tiny_model)
        (tmp_path / "step-00000002").mkdir()
        (tmp_path / "step-00000002" / "state.safetensors").write_bytes(b"of a run that was killed as it wrote this")
        run(model, make_examples(chat), StorageCheckpointer(str(tmp_path)))
        latest, state = sorted(storage.list_files(str(tmp_path)))
        assert latest == "latest.json" and re.fullmatch(r"step-00000009-\w{8}/state-0000\.safetensors", state)

    def test_killed_while_saving_it_goes_on_from_the_one_before(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        expected, _, _ = run(model, examples, NoCheckpoints())
        publish = storage.write_json

        def die_at_six(uri: str, value: Any) -> None:
            if value["step"] == 6:
                raise KeyboardInterrupt
            publish(uri, value)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage, "write_json", die_at_six)
            run(load(tiny_model)[0], examples, StorageCheckpointer(str(tmp_path)))
        assert storage.read_json(str(tmp_path / "latest.json"))["step"] == 3
        weights, _, _ = run(load(tiny_model)[0], examples, StorageCheckpointer(str(tmp_path)))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    def test_a_machine_that_is_about_to_go_leaves_a_checkpoint(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, chat = load(tiny_model)
        examples, steps = make_examples(chat), []

        class Noting(StorageCheckpointer):
            def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
                steps.append(step)
                super().save(weights, optimizer, step)

        monkeypatch.setattr(loop, "REPORT_EVERY", 2)
        answers = iter([False, False, True, True, True])
        checkpointer = Noting(str(tmp_path))
        train(
            model, examples, SETTINGS, checkpointer=checkpointer, report=lambda _: None, is_ending=lambda: next(answers)
        )
        assert steps == [3, 5, 6, 9]  # every third, and once when it was told

    def test_slow_steps_are_kept_by_the_clock(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
        steps = []
        take_step = Learner.step

        def slow_step(self: Learner, *arguments: Any, **options: Any) -> Any:
            now[0] += 45
            return take_step(self, *arguments, **options)

        class Noting(StorageCheckpointer):
            def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
                steps.append(step)

        monkeypatch.setattr(Learner, "step", slow_step)
        model, chat = load(tiny_model)
        settings = replace(SETTINGS, checkpoint_every=1000, checkpoint_minutes=2)
        train(model, make_examples(chat), settings, checkpointer=Noting(str(tmp_path)))
        assert steps == [4, 8]  # the step after two minutes, and two minutes later again

    def test_the_first_comes_after_two_minutes_however_seldom_others_do(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
        clock = loop._Clock(60, has_saved=False)
        now[0] = 119
        assert not clock.is_due()
        now[0] = 120
        assert clock.is_due()
        clock.saved()
        now[0] = 120 + 60 * 59
        assert not clock.is_due()
        assert not loop._Clock(60, has_saved=True).is_due()

    def test_it_is_complete_when_the_files_of_all_ranks_are_there(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(StorageCheckpointer, "_new_folder", lambda self, step: f"step-{step}")
        model, chat = load(tiny_model)
        learner = Learner(model, SETTINGS)
        learner.step(learner.prepare(make_examples(chat), np.arange(4)), 1e-3)
        first, second = (StorageCheckpointer(str(tmp_path), rank=rank, num_ranks=2) for rank in range(2))
        first.save(learner.weights, learner.optimizer, 1)
        time.sleep(0.5)
        assert not latest_step(str(tmp_path))
        second.save(learner.weights, learner.optimizer, 1)
        second.wait()
        first.wait()
        assert latest_step(str(tmp_path)) == 1


class TestLearningRate:
    def test_linear_by_hand(self) -> None:
        settings = TrainingSettings(num_epochs=1, batch_size=1, learning_rate=1.0, warmup_fraction=0.2)
        rates = [learning_rate_at(step, 10, settings) for step in range(10)]
        assert rates == pytest.approx([1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])

    def test_constant_by_hand(self) -> None:
        settings = TrainingSettings(
            num_epochs=1, batch_size=1, learning_rate=2.0, warmup_fraction=0.5, schedule="constant"
        )
        assert [learning_rate_at(step, 4, settings) for step in range(4)] == [1, 2, 2, 2]

    def test_without_warm_up(self) -> None:
        settings = TrainingSettings(num_epochs=1, batch_size=1, learning_rate=1.0, warmup_fraction=0)
        assert [learning_rate_at(step, 2, settings) for step in range(2)] == [1, 0.5]


class TestLoop:
    def test_of_nothing(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        examples = Examples.build([], chat)
        assert len(examples) == 0
        with pytest.raises(ValueError, match="no example to train on"):
            train(model, examples, SETTINGS, checkpointer=NoCheckpoints(), report=lambda _: None)

    def test_it_learns(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        _, reports, counts = run(model, make_examples(chat), NoCheckpoints())
        assert [report["step"] for report in reports] == [5, 10]
        assert reports[-1]["loss"] < reports[0]["loss"] < math.log(512)
        assert reports[-1]["useful_tokens_per_s"] > 0 and reports[-1]["memory_bytes"] > 0
        assert (counts["examples"], counts["held_out"], counts["steps"]) == (17, 2, 10)
        assert counts["evaluation_loss"] == reports[-1]["evaluation_loss"]

    def test_a_loss_that_is_no_number_stops_it(self, tiny_model: Path, tmp_path: Path) -> None:
        model, chat = load(tiny_model)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
        with pytest.raises(FloatingPointError) as caught:
            run(model, make_examples(chat), StorageCheckpointer(str(tmp_path)))
        assert str(caught.value) == (
            "the loss is nan at step 1; lower the learning rate (it is 0.01) and run again with --rebuild"
        )
        assert storage.list_files(str(tmp_path)) == {}  # and no checkpoint to go on from

    def test_a_gradient_that_is_no_number_stops_it_before_the_weights_are(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, chat = load(tiny_model)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        with pytest.raises(
            FloatingPointError, match="the norm of the gradient is inf at step 1; lower the learning rate"
        ):
            run(model, make_examples(chat), StorageCheckpointer(str(tmp_path)))
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())

    def test_evaluation_loss_is_the_mean_over_target_tokens(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        ids = np.array([0, 5, 6, 7, 9])
        with torch.no_grad():
            alone = [float(loss_alone(model, examples, int(i))) for i in ids]
        learner = Learner(model, SETTINGS)
        assert learner.evaluate(examples, ids) == {
            "evaluation_loss": pytest.approx(sum(alone) / examples.num_targets_of(ids), abs=1e-4)
        }
        assert learner.evaluate(examples, ids[:0]) == {}
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_ranks_share_the_examples_of_a_step(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        ids = np.array([0, 5, 6, 7, 9])

        def of_rank(ids: np.ndarray, rank: int, num_ranks: int) -> Work:
            learner = Learner.__new__(Learner)  # FSDP wants the other ranks; the sharing out of work does not
            learner._settings, learner._rank, learner._num_ranks = SETTINGS, rank, num_ranks
            learner._sizes, learner._device = Sizes(256, 4096), torch.device("cpu")
            return learner.prepare(examples, ids)

        def loss(batches: Sequence[PackedBatch]) -> float:
            return sum(float(loss_of(model, batch).detach()) for batch in batches)

        whole = of_rank(ids, 0, 1)
        shares = [of_rank(ids, rank, 3) for rank in range(3)]
        assert sum(loss(share.passes) for share in shares) == pytest.approx(loss(whole.passes), rel=1e-5)
        assert [share.num_targets for share in shares] == [whole.num_targets] * 3
        assert of_rank(ids[:1], 1, 2).passes == []  # more ranks than examples
        assert whole.idle is None and all(share.idle is not None for share in shares)
