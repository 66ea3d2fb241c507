"""The training loop: what is learnt in which step, at which rate, and what is said and kept of it.

A step is a list of example ids, a function of (seed, epoch, position): training resumes exactly from its number of steps,
with as many ranks as there are then, and the loss does not depend on how examples are packed. The loop knows nothing of
Ray or of storage: it is handed a `Checkpointer` and a `report` callback.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from zerogr.progress import Progress
from zerogr.training.checkpoints import Weights
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, batches, epoch_order
from zerogr.training.learner import Learner, TrainingSettings, Work
from zerogr.training.throughput import Cost, Meter

logger = logging.getLogger(__name__)

FIRST_CHECKPOINT_MINUTES = 2.0
"""So early there is one, however seldom others are wanted."""
REPORT_EVERY = 10
"""Steps between two lines of the log, and two questions whether a machine is about to be taken away."""


class Checkpointer(Protocol):
    """Where checkpoints go. All ranks call all; each writes its own shards."""

    def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Stores the state after `step` optimiser steps."""

    def wait(self) -> None:
        """Returns when what was saved is stored."""

    def restore(self, weights: Weights, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest state into weights and optimiser; returns its step, 0 if there is none."""


def learning_rate_at(step: int, num_steps: int, settings: TrainingSettings) -> float:
    """Returns the rate of optimiser step `step` (from 0): a linear warm-up, then constant or linear decay to zero."""
    num_warmup = int(settings.warmup_fraction * num_steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (num_steps - step) / (num_steps - num_warmup)


def train(
    model: Any,
    examples: Examples,
    settings: TrainingSettings,
    *,
    checkpointer: Checkpointer,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    is_ending: Callable[[], bool] = lambda: False,
    choices: Choices | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_ranks: int = 1,
) -> dict[str, Any]:
    """Trains `model` in place and returns the final counts and losses.

    Every rank calls this with the same examples and takes every `num_ranks`-th example of each step.

    Args:
        model: Causal LM in fp32; with several ranks it is sharded here, after which its parameters are DTensors.
        examples: All pairs; a share is held out for the evaluation loss.
        settings: See `TrainingSettings`.
        checkpointer: Saves and restores.
        report: Called on every rank with a line of the log, after every `REPORT_EVERY` steps, every evaluation and at the
            end: {"step", "epoch", "loss" (mean since the last line), "learning_rate", "gradient_norm",
            "useful_tokens_per_s", "tokens_per_s", "padding", "memory_bytes"}, with "mfu" where the device's peak is
            known, and after an evaluation with "evaluation_loss" and, with choices, "evaluation_acc@1".
        is_ending: Asked before every `REPORT_EVERY`-th step, on every rank before the same ones: whether a machine is about to
            be taken away. The first time one is, a checkpoint follows the step.
        choices: What the trie of all docids leaves open, if docids are learnt; needed where `normalise` is allowed.
        device: Where this rank computes.
        rank, num_ranks: Of this process, from 0, and of the job.

    Raises:
        ValueError: There is no example.
        FloatingPointError: The loss is not a number any more.
    """
    if not len(examples):
        raise ValueError("there is no example to train on")
    cost = Cost(model)  # before it is sharded
    learner = Learner(model, settings, device=device, rank=rank, num_ranks=num_ranks)
    run = _Run(learner, examples, settings, choices, report, is_first=rank == 0)
    first_step = checkpointer.restore(learner.weights, learner.optimizer)
    if first_step:
        learner.use_weights()
        logger.info("resuming after step %d of %d", first_step, run.num_steps)
    run.start(first_step, Meter(cost, torch.device(device), num_ranks, learner.dtype))
    was_ending = False
    clock = _Clock(settings.checkpoint_minutes, has_saved=first_step > 0)
    for ids, work in _ahead(run.prepare, _steps(run.training_ids, settings, first_step)):
        is_due = rank == 0 and clock.is_due()  # clocks differ: rank 0's counts
        is_last_chance = run.step % REPORT_EVERY == 0 and is_ending() and not was_ending
        was_ending |= is_last_chance
        must_save = run.take(ids, work, must_save=is_due or is_last_chance)
        if (must_save or run.step % settings.checkpoint_every == 0) and run.step < run.num_steps:
            checkpointer.save(learner.weights, learner.optimizer, run.step)
            clock.saved()
    checkpointer.wait()
    learner.release()
    return run.finish()


class _Clock:
    """When a checkpoint is due by the time that has passed."""

    def __init__(self, minutes: float, *, has_saved: bool) -> None:
        self._usual, self._saved_at = minutes, time.monotonic()
        self._minutes = minutes if has_saved else min(minutes, FIRST_CHECKPOINT_MINUTES)

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._saved_at >= 60 * self._minutes

    def saved(self) -> None:
        """Begins to count anew."""
        self._saved_at, self._minutes = time.monotonic(), self._usual


class _Run:
    """The steps of one call of `train`, and what is known of them."""

    def __init__(
        self,
        learner: Learner,
        examples: Examples,
        settings: TrainingSettings,
        choices: Choices | None,
        report: Callable[[dict[str, Any]], None],
        *,
        is_first: bool,
    ) -> None:
        self._learner, self._examples, self._settings, self._report = learner, examples, settings, report
        self._choices, self._is_first = choices, is_first
        self.training_ids, self._held_out = examples.split(settings.evaluation_fraction, settings.seed)
        self._steps_per_epoch = -(-len(self.training_ids) // settings.batch_size)
        self.num_steps = self._steps_per_epoch * settings.num_epochs
        self._losses: deque[float] = deque(maxlen=50)
        self._unreported: list[float] = []
        self._evaluation: dict[str, float] = {}
        self._rates: dict[str, Any] = {}

    def start(self, step: int, meter: Meter) -> None:
        """Begins, or goes on after so many steps."""
        self.step = self._first_step = step
        self._meter = meter
        progress = Progress("training", total=self.num_steps, unit="steps", done=step) if self._is_first else None
        self._progress = progress

    def prepare(self, ids: np.ndarray) -> Work:
        """Returns the work of a step."""
        return self._learner.prepare(
            self._examples, ids, self._choices if self._learner.normalisation.needs_choices else None
        )

    def take(self, ids: np.ndarray, work: Work, *, must_save: bool) -> bool:
        """Takes a step, reports it, and returns whether a rank wants a checkpoint. Raises FloatingPointError."""
        learning_rate = learning_rate_at(self.step, self.num_steps, self._settings)
        self._learner.progress = self.step / self.num_steps
        taken = self._learner.step(work, learning_rate, must_save=must_save)
        for what, value in (("loss", taken.loss), ("norm of the gradient", taken.gradient_norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {what} is {value} at step {self.step + 1}; lower the learning rate (it is "
                    f"{self._settings.learning_rate}) and run again with --rebuild"
                )
        self.step += 1
        self._losses.append(taken.loss)
        self._unreported.append(taken.loss)
        self._meter.add(
            useful=self._examples.num_tokens_of(ids),
            tokens=taken.num_tokens,
            padding=taken.num_padding,
            in_head=self._learner.normalisation.num_in_head(self._examples.num_predicting_of(ids)),
        )
        must_evaluate = self.step % self._settings.evaluate_every == 0 or self.step == self.num_steps
        if must_evaluate or self.step % REPORT_EVERY == 0:
            self._say(learning_rate, taken.gradient_norm, must_evaluate=must_evaluate)
        if self._progress:
            self._progress.advance(1, _in_words({"loss": float(np.mean(self._losses)), **self._rates}))
        return taken.must_save

    def _say(self, learning_rate: float, gradient_norm: float, *, must_evaluate: bool) -> None:
        """Reports the steps since the last line."""
        self._rates = self._meter.read()
        line = {
            "step": self.step,
            "epoch": round(self.step / self._steps_per_epoch, 4),
            "loss": round(float(np.mean(self._unreported)), 5),
            "learning_rate": learning_rate,
            "gradient_norm": round(gradient_norm, 5),
            **self._rates,
        }
        if must_evaluate:
            self._evaluation = self._learner.evaluate(self._examples, self._held_out, self._choices)
            line |= self._evaluation
            if self._is_first:
                logger.info("step %d of %d: %s", self.step, self.num_steps, _in_words(line))
            self._meter.skip()  # evaluating is not training
        self._report(line)
        self._unreported.clear()

    def finish(self) -> dict[str, Any]:
        """Returns what the whole came to."""
        if self._progress:
            self._progress.close()
        return {
            "examples": len(self.training_ids),
            "held_out": len(self._held_out),
            "steps": self.num_steps,
            "loss": round(float(np.mean(self._losses)), 4) if self._losses else None,
            "evaluation_loss": None,
            **self._evaluation,
            "useful_tokens_per_s": round(self._meter.useful_tokens_per_s) if self.step > self._first_step else None,
        }


def _steps(training_ids: np.ndarray, settings: TrainingSettings, first_step: int) -> Iterator[np.ndarray]:
    """Yields the example ids of every step from `first_step` on."""
    epoch, step = divmod(first_step, -(-len(training_ids) // settings.batch_size))
    while epoch < settings.num_epochs:
        yield from batches(
            epoch_order(training_ids, settings.seed, epoch), settings.batch_size, step * settings.batch_size
        )
        epoch, step = epoch + 1, 0


def _ahead(prepare: Callable[[np.ndarray], Work], steps: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Work]]:
    """Yields every step with its work; a thread prepares the next one's meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        waiting: tuple[np.ndarray, Future[Work]] | None = None
        for ids in steps:
            following = (ids, thread.submit(prepare, ids))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield waiting[0], waiting[1].result()


def _in_words(line: dict[str, Any]) -> str:
    """Returns what a person wants to see of a line of the log."""
    words = [f"loss {line['loss']:.3f}"]
    if "evaluation_loss" in line:
        words.append(f"evaluation loss {line['evaluation_loss']:.3f}")
    if "evaluation_acc@1" in line:
        words.append(f"Acc@1 {line['evaluation_acc@1']:.3f} of held-out queries")
    if "useful_tokens_per_s" in line:
        words.append(f"{line['useful_tokens_per_s']:,.0f} useful tokens/s ({line['padding']:.0%} padding)")
    if "mfu" in line:
        words.append(f"MFU {line['mfu']:.0%}")
    if "memory_bytes" in line:
        words.append(f"{line['memory_bytes'] / 2**30:.1f} GiB")
    return ", ".join(words)
