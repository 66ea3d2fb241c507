"""The training loop: cross-entropy on docid tokens, one process or one of several ranks under FSDP2.

Only the hidden states that predict a docid token reach the output head: with a 49k vocabulary and 12 targets among 40
tokens that saves two thirds of its products and of the logits' memory. Weights, gradients and AdamW stay fp32; matrix
products run in bf16 (`precision`). A step is a list of example ids, a function of (seed, epoch, position), so training
resumes exactly from (step) and the loss does not depend on how examples are packed.

The loop knows nothing of Ray or of storage: it is handed a `Checkpointer` and a `report` callback.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from zerogr.progress import Progress
from zerogr.training.checkpoints import trainable
from zerogr.training.examples import Examples, PackedBatch, batches, epoch_order, pack

logger = logging.getLogger(__name__)

ASK_EVERY = 10
"""Steps between two questions whether the machine is about to be taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """What the loop needs to know; `zerogr.config.TrainingConfig` documents the fields."""

    num_epochs: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "linear"] = "linear"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    lora_rank: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    row_tokens: int = 256
    evaluation_fraction: float = 0.02
    evaluate_every: int = 200
    checkpoint_every: int = 200
    seed: int = 0


class Checkpointer(Protocol):
    """Where checkpoints go. All ranks call both; only rank 0 writes."""

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Stores the state after `step` optimiser steps."""

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest state into model and optimiser; returns its step, 0 if there is none."""


class SelectedTargetLoss(nn.Module):
    """A causal LM that returns the summed cross-entropy of selected target positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Returns the sum over the batch's targets of weight x -log p(target), fp32 scalar."""
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        states = decoder(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        )
        selected = states.last_hidden_state.flatten(0, 1)[batch.target_index]  # [M, D]
        losses = functional.cross_entropy(head(selected).float(), batch.targets, reduction="none")
        return (losses * batch.weights).sum()


def shard_model(module: SelectedTargetLoss, device: torch.device | str, num_ranks: int) -> None:
    """Shards the module over all ranks in place with FSDP2, one unit per decoder layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (num_ranks,))
    for layer in module.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def learning_rate_at(step: int, num_steps: int, settings: TrainingSettings) -> float:
    """Returns the rate of optimiser step `step` (from 0): a linear warm-up, then constant or linear decay to zero."""
    num_warmup = int(settings.warmup_fraction * num_steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (num_steps - step) / (num_steps - num_warmup)


def train(
    model: nn.Module,
    examples: Examples,
    settings: TrainingSettings,
    *,
    checkpointer: Checkpointer,
    report: Callable[[dict[str, Any]], None],
    is_ending: Callable[[], bool] = lambda: False,
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
        report: Called with {"step", "loss", ...} after every evaluation and at the end, on every rank.
        is_ending: Asked after every `ASK_EVERY` steps, on every rank: whether a machine is about to be taken away. The first
            time it is, a checkpoint follows at once.
        device: Where this rank computes.
        rank: Of this process, from 0.
        num_ranks: Of the job.

    Raises:
        ValueError: There is no example.
        FloatingPointError: The loss is not a number any more.
    """
    if not len(examples):
        raise ValueError("there is no example to train on")
    training_ids, held_out = examples.split(settings.evaluation_fraction, settings.seed)
    steps_per_epoch = -(-len(training_ids) // settings.batch_size)
    num_steps = steps_per_epoch * settings.num_epochs
    module = SelectedTargetLoss(model.to(device).train())
    if num_ranks > 1:
        shard_model(module, device, num_ranks)
    optimizer = torch.optim.AdamW(
        trainable(module).values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    first_step = step = checkpointer.restore(module, optimizer)
    if step:
        logger.info("resuming after step %d of %d", step, num_steps)
    progress = Progress("training", total=num_steps, unit="steps", done=step) if rank == 0 else None
    start, num_tokens, losses, evaluation_loss = time.monotonic(), 0, [], None
    was_ending = False

    for epoch in range(step // steps_per_epoch, settings.num_epochs):
        order = epoch_order(training_ids, settings.seed, epoch)
        for ids in batches(order, settings.batch_size, (step % steps_per_epoch) * settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, num_steps, settings)
            loss = _step(module, optimizer, examples, ids, settings, device=device, rank=rank, num_ranks=num_ranks)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step + 1}; lower the learning rate (it is {settings.learning_rate}) "
                    f"and run again with --rebuild"
                )
            step += 1
            losses.append(loss)
            num_tokens += int((examples.offsets[ids + 1] - examples.offsets[ids]).sum())
            if progress:
                progress.advance(
                    1, f"loss {np.mean(losses[-20:]):.3f}, {num_tokens / (time.monotonic() - start):,.0f} tokens/s"
                )
            if step % settings.evaluate_every == 0 or step == num_steps:
                evaluation_loss = evaluate_loss(
                    module, examples, held_out, settings, device=device, rank=rank, num_ranks=num_ranks
                )
                metrics = {
                    "step": step,
                    "loss": float(np.mean(losses[-settings.evaluate_every :])),
                    "evaluation_loss": evaluation_loss,
                }
                report(metrics)
                if rank == 0:
                    logger.info(
                        "step %d of %d: loss %.4f, evaluation loss %s",
                        step,
                        num_steps,
                        metrics["loss"],
                        evaluation_loss,
                    )
            must_save = step % settings.checkpoint_every == 0
            if step % ASK_EVERY == 0 and not was_ending and is_ending():
                must_save = was_ending = True
            if must_save and step < num_steps:
                checkpointer.save(module, optimizer, step)
    if progress:
        progress.close()
    seconds = time.monotonic() - start
    return {
        "examples": len(training_ids),
        "held_out": len(held_out),
        "steps": num_steps,
        "loss": round(float(np.mean(losses[-50:])), 4) if losses else None,
        "evaluation_loss": evaluation_loss,
        "tokens_per_second": round(num_tokens / seconds) if step > first_step else None,
    }


def _step(
    module: SelectedTargetLoss,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    ids: np.ndarray,
    settings: TrainingSettings,
    *,
    device: torch.device | str,
    rank: int,
    num_ranks: int,
) -> float:
    """Takes one optimiser step and returns the mean loss per target token, over all ranks."""
    total, num_targets = _loss_of(module, examples, ids, settings, device=device, rank=rank, num_ranks=num_ranks)
    # FSDP averages gradients over the ranks: times num_ranks they are the sum, and the loss the mean over all targets.
    (total * (num_ranks / num_targets)).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), settings.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _sum_over_ranks(total.detach(), num_ranks) / num_targets


def _loss_of(
    module: SelectedTargetLoss,
    examples: Examples,
    ids: np.ndarray,
    settings: TrainingSettings,
    *,
    device: torch.device | str,
    rank: int,
    num_ranks: int,
) -> tuple[torch.Tensor, float]:
    """Returns (this rank's summed loss, weighted targets of all ranks).

    A rank without an example computes one that counts nothing.
    """
    own = ids[rank::num_ranks]
    batch = pack(examples, own if len(own) else ids[:1], settings.row_tokens).to(device)
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        total = module(batch)
    return total * float(len(own) > 0), examples.num_targets_of(ids)


def evaluate_loss(
    module: SelectedTargetLoss,
    examples: Examples,
    ids: np.ndarray,
    settings: TrainingSettings,
    *,
    device: torch.device | str,
    rank: int = 0,
    num_ranks: int = 1,
) -> float | None:
    """Returns the mean loss per target token of the given examples; None if there are none."""
    if not len(ids):
        return None
    module.eval()
    total, num_targets = 0.0, 0.0
    with torch.no_grad():
        for step_ids in batches(ids, settings.batch_size):
            loss, count = _loss_of(module, examples, step_ids, settings, device=device, rank=rank, num_ranks=num_ranks)
            total += _sum_over_ranks(loss, num_ranks)
            num_targets += count
    if num_ranks > 1:
        # Without a backward pass FSDP leaves the root's parameters gathered: plain tensors that the optimiser has never seen.
        module.reshard()  # type: ignore[operator]
    module.train()
    return round(total / num_targets, 4)


def _sum_over_ranks(value: torch.Tensor, num_ranks: int) -> float:
    if num_ranks > 1:
        torch.distributed.all_reduce(value)
    return float(value)
