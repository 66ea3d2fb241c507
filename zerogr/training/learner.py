"""One optimiser step, on one rank or on one of several under FSDP2.

Only the hidden states that predict an answer's token reach the output head, each once, and where the trie constrains them only
the tokens that it allows anywhere: with a 49k vocabulary and 2 targets among 30 tokens that saves nine tenths and more of the
head's products and of the logits' memory. In bf16 the model computes with bf16 weights,
of which the optimiser moves fp32 masters; gradients are summed in fp32, over the passes of a step and over the ranks. Under
autocast, which keeps fp32 activations and casts them for every product, a step took 1.4 times the time of one CPU core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from zerogr.config.base import LossSettings
from zerogr.llm.models import fastest_dtype
from zerogr.training.attention import BLOCKS, PACKED, register_packed
from zerogr.training.checkpoints import trainable, whole
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, batches
from zerogr.training.loss import Seen, load_loss
from zerogr.training.losses.cross_entropy import CrossEntropySettings
from zerogr.training.normalisation import NORMALISATIONS, Normalisation
from zerogr.training.packing import PackedBatch, passes
from zerogr.training.sizes import sizes_for


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """What training needs to know; `zerogr.config.tree.TrainingConfig` and `ComputeConfig` document the fields."""

    num_epochs: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "linear"] = "linear"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    loss: LossSettings = CrossEntropySettings()
    normalise: Literal["allowed", "vocabulary"] = "vocabulary"
    lora_rank: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    row_tokens: int | None = None
    pass_tokens: int | None = None
    activation_checkpointing: bool = False
    block_attention: bool = False
    compile: bool = False
    evaluation_fraction: float = 0.02
    evaluate_every: int = 200
    checkpoint_every: int = 100
    checkpoint_minutes: float = 10.0
    seed: int = 0
    sharpness: float = 0.0
    """Radius of sharpness-aware steps (Foret et al. 2021), on one rank alone; 0 = ordinary ones."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step came to, over all ranks."""

    loss: float
    """The mean over the target tokens."""
    gradient_norm: float
    """Before clipping. If it is not finite, the step was not taken."""
    num_tokens: int
    """Tokens that went through the model, without padding."""
    num_padding: int
    """Padding that went with them."""
    must_save: bool
    """Whether any rank wants a checkpoint."""


@dataclass(frozen=True, slots=True)
class Work:
    """The examples of one optimiser step, as this rank computes them."""

    passes: list[PackedBatch]
    idle: PackedBatch | None
    """A pass that counts nothing, for a rank with fewer than others; None where there are no others."""
    num_targets: float
    """Of all ranks, weighted."""


class Outputs(NamedTuple):
    """What a model makes of a batch."""

    logits: torch.Tensor
    """Of the predicting positions, as the normalisation has them."""
    states: torch.Tensor
    """[R * L, H]: the last hidden states."""


class SelectedTargets(nn.Module):
    """A causal LM whose head is computed at predicting positions alone."""

    def __init__(
        self,
        model: Any,
        normalisation: Normalisation = NORMALISATIONS["vocabulary"],
        *,
        by_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.model, self._by_blocks = model, by_blocks
        self._normalisation = normalisation

    def forward(self, batch: PackedBatch) -> Outputs:
        """Returns what the model makes of a batch."""
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        mask = batch.blocks() if self._by_blocks else batch.mask()
        found = decoder(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask, use_cache=False)
        states = found.last_hidden_state.flatten(0, 1)
        return Outputs(self._normalisation.logits(states[batch.predicting], head, batch), states)


class Learner:
    """A model, its optimiser and its precision. Every rank has one and calls the same methods with the same arguments."""

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Takes over `model`, a causal LM in fp32; with several ranks its parameters become DTensors."""
        self._settings, self._device, self._rank, self._num_ranks = settings, torch.device(device), rank, num_ranks
        self._sizes = sizes_for(
            model, settings.row_tokens, settings.pass_tokens, device=self._device, num_ranks=num_ranks
        )
        self.normalisation, self.progress = NORMALISATIONS[settings.normalise], 0.0
        """`progress`: the share of all steps that are done, for losses that change on the way."""
        self._attention = model.config._attn_implementation
        self._has_reader = settings.loss.has_reader
        by_blocks = settings.block_attention and self._device.type == "cuda" and self._attention == "sdpa"
        by_blocks = by_blocks and not self._has_reader  # which has no packed rows
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)  # every rank draws the same
            self._loss = load_loss(settings.loss, model)
        self._module: Any = SelectedTargets(model.to(device).train(), self.normalisation, by_blocks=by_blocks)
        if self._has_reader:
            self._module = self._loss.reader.train()
        if by_blocks or (
            self._device.type == "cpu" and self._attention == "sdpa"
        ):  # a model that needs another kind keeps it
            register_packed()
            model.set_attn_implementation(BLOCKS if by_blocks else PACKED)
        if settings.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        dtypes = {"auto": fastest_dtype(self._device), "bf16": torch.bfloat16, "fp32": torch.float32}
        self.dtype = dtypes[settings.precision]
        """Of the model's computations."""
        if settings.compile:  # layer by layer: all are one piece of code, and FSDP gathers between them
            for layer in model.get_decoder().layers:
                layer.compile(dynamic=True)  # rows and passes are of all lengths
        if num_ranks > 1:
            _shard(self._module, self._device, num_ranks, self.dtype)
        self._trained = trainable(self._module)
        self.weights = self._trained
        """What the optimiser moves, fp32, by name: the parameters, or the masters of bf16 ones."""
        self._has_masters = self.dtype == torch.bfloat16 and num_ranks == 1
        if self._has_masters:
            self.weights = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in self._trained.items()}
            _cast(self._module, torch.bfloat16)
        self._sums: dict[str, torch.Tensor] = {}
        """Where the masters' gradients are summed, fp32, step after step in the same memory."""
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )

    def prepare(self, examples: Examples, ids: np.ndarray, choices: Choices | None = None) -> Work:
        """Returns the work of one step: of the given examples, this rank has every `num_ranks`-th. Needs no other rank.

        `choices` is needed where the normalisation needs them.
        """
        own = ids[self._rank :: self._num_ranks]

        def pack(ids: np.ndarray) -> list[PackedBatch]:
            places = self._settings.loss.needs_states
            return passes(examples, ids, choices=choices, places=places, **self._sizes._asdict())

        idle = None
        if self._num_ranks > 1:
            (idle,) = pack(ids[:1])
        packed = pack(own)
        if self._device.type == "cuda":
            packed = [batch.pinned() for batch in packed]
        return Work(packed, idle, examples.num_targets_of(ids))

    def step(self, work: Work, learning_rate: float, *, must_save: bool = False) -> Step:
        """Takes one optimiser step; `must_save` is this rank's word for the others."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        moved = self._ascend(work) if self._settings.sharpness else []
        total, num_tokens, num_padding = self._accumulate(work)
        if moved:
            with torch.no_grad():
                torch._foreach_sub_(list(self.weights.values()), moved)
        gradient = whole(nn.utils.clip_grad_norm_(self.weights.values(), self._settings.max_gradient_norm))
        # The one place of a step where the host waits for the device.
        loss_sum, norm = torch.stack([total, gradient.to(total)]).tolist()
        if math.isfinite(norm):  # else the weights stay as they are, for whoever wants to know how it came
            self.optimizer.step()
            self.use_weights()
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, tokens_sum, padding_sum, num_wishes = self._sum_over_ranks(
            loss_sum, num_tokens, num_padding, must_save
        )
        mean = loss_sum / work.num_targets
        return Step(mean, norm, int(tokens_sum), int(padding_sum), must_save=num_wishes > 0)

    def _accumulate(self, work: Work) -> tuple[torch.Tensor, int, int]:
        """Adds up the gradients of a step; returns its summed loss, its tokens and their padding."""
        total, num_tokens, num_padding = torch.zeros((), device=self._device), 0, 0
        for packed in self._passes(work):
            num_tokens += (tokens := packed.num_tokens)
            num_padding += packed.tokens.numel() - tokens
            batch = packed.to(self._device)
            loss = self._summed_loss(self._module(batch), batch) * (packed is not work.idle)
            # FSDP averages gradients over the ranks: times num_ranks they are the sum, and the loss the mean over targets.
            (loss * (self._num_ranks / work.num_targets)).backward()  # type: ignore[no-untyped-call]
            self._collect_gradients()
            total += loss.detach()
        return total, num_tokens, num_padding

    def _ascend(self, work: Work) -> list[torch.Tensor]:
        """Moves the weights to where the loss is worst near by, to first order; returns by how much."""
        if self._num_ranks > 1:
            raise ValueError("sharpness-aware steps are taken on one rank alone")
        self._accumulate(work)
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
            for weight in self.weights.values()
        ]
        norm = torch.stack(torch._foreach_norm(gradients)).norm().clamp(min=1e-12)
        torch._foreach_mul_(gradients, self._settings.sharpness / norm)
        with torch.no_grad():
            torch._foreach_add_(list(self.weights.values()), gradients)
        self.use_weights()
        self.optimizer.zero_grad(set_to_none=True)
        return gradients

    def evaluate(self, examples: Examples, ids: np.ndarray, choices: Choices | None = None) -> dict[str, float]:
        """Returns the mean loss per target token of the given examples, and with `choices` also their Acc@1.

        Acc@1 is that of greedy decoding under the trie (`greedy_hits`). {} if there is no example.
        """
        if not len(ids):
            return {}
        self._module.eval()
        total = num_targets = num_hits = 0.0
        with torch.no_grad():
            for step_ids in batches(ids, self._settings.batch_size):
                work = self.prepare(examples, step_ids, choices)
                for packed in self._passes(work):
                    batch = packed.to(self._device)
                    outputs = self._module(batch)
                    if packed is work.idle:
                        continue
                    total += float(self._summed_loss(outputs, batch))
                    if choices:
                        num_hits += greedy_hits(self.normalisation.over_columns(outputs.logits, batch), batch)
                num_targets += work.num_targets
        if self._num_ranks > 1:
            # Without a backward pass FSDP leaves the root's parameters gathered: plain tensors the optimiser has never seen.
            self._module.reshard()
        self._module.train()
        total, num_hits = self._sum_over_ranks(total, num_hits)
        accuracy = {"evaluation_acc@1": round(num_hits / len(ids), 4)} if choices else {}
        return {"evaluation_loss": round(total / num_targets, 4), **accuracy}

    def _summed_loss(self, outputs: tuple[torch.Tensor, torch.Tensor], batch: PackedBatch) -> torch.Tensor:
        log_probs, states = outputs  # of the loss's reader; `Outputs` begin with logits
        if not self._has_reader:
            log_probs = self.normalisation.log_probs(log_probs, batch)
        loss: torch.Tensor = self._loss(Seen(batch, log_probs, states, self.progress))
        return loss

    def use_weights(self) -> None:
        """Makes the model compute with `weights`; to be called when they were changed from outside."""
        if self._has_masters:
            with torch.no_grad():
                torch._foreach_copy_(list(self._trained.values()), list(self.weights.values()))

    def release(self) -> None:
        """Leaves the trained weights in the model, in fp32, and lets go of it."""
        self._module.model.set_attn_implementation(self._attention)
        if self._has_masters:
            _cast(self._module, torch.float32)
            self.use_weights()

    def _passes(self, work: Work) -> list[PackedBatch]:
        """Returns what goes through the model at a time: as many passes on every rank, since all take part in each."""
        if work.idle is None:
            return work.passes
        most = torch.tensor(len(work.passes), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return work.passes + [work.idle] * (int(most) - len(work.passes))

    def _collect_gradients(self) -> None:
        """Adds the gradients of a pass to those of the masters."""
        if not self._has_masters:
            return
        given = {name: parameter.grad for name, parameter in self._trained.items() if parameter.grad is not None}
        for name in given.keys() - self._sums.keys():
            self._sums[name] = torch.zeros_like(self.weights[name])
        sums = [self._sums[name] for name in given]
        if any(self.weights[name].grad is not None for name in given):
            torch._foreach_add_(sums, list(given.values()))
        else:
            torch._foreach_zero_(list(self._sums.values()))
            torch._foreach_copy_(sums, list(given.values()))
        for name in given:
            self.weights[name].grad, self._trained[name].grad = self._sums[name], None

    def _sum_over_ranks(self, *values: float) -> list[float]:
        if self._num_ranks == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(summed)
        return summed.tolist()


def greedy_hits(logits: torch.Tensor, batch: PackedBatch) -> int:
    """Returns how many of a batch's examples greedy decoding under the trie answers rightly, with any of their answers.

    One forward pass with the answers in place tells: decoding finds one if and only if, behind every prefix of it, the
    likeliest of the allowed tokens is its next one.

    Args:
        logits: [P, C], over the batch's columns.
        batch: What they were computed from, packed with the trie's choices.
    """
    allowed = logits.float().masked_fill(~batch.is_allowed(), -torch.inf)
    is_right = (batch.grades > 0)[batch.document]
    is_right[batch.answer[allowed.argmax(-1)[batch.predicted_by] != batch.column]] = False
    return len(set(batch.example[batch.document[is_right]].tolist()))


def _shard(module: SelectedTargets, device: torch.device, num_ranks: int, dtype: torch.dtype) -> None:
    """Shards the module over all ranks in place with FSDP2, one unit per decoder layer; computes in `dtype`, sums in fp32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (num_ranks,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in module.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters and not the buffers: rotary frequencies stay fp32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
