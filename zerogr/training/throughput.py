"""How fast training goes: tokens per second, the share of the device's peak, memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from zerogr.machine import peak_resident_bytes
from zerogr.training.peaks import PEAK_FLOPS


def peak_flops(device: torch.device) -> float | None:
    """Returns the products and sums per second that the device can do in bf16; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    fitting = [beginning for beginning in PEAK_FLOPS if name.startswith(beginning)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory in use so far: of the device, or of this process where it computes on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


class Cost:
    """The products of a model's training step: 6 per parameter and token, 4 where only adapters are trained.

    The output head counts where it gives logits over the whole vocabulary; attention scores and padding do not.
    """

    def __init__(self, model: Any) -> None:
        """`model` is not sharded yet."""
        self._head = model.get_output_embeddings().weight.numel()
        lookup = model.get_input_embeddings().weight.numel()
        self._body = sum(parameter.numel() for parameter in model.get_decoder().parameters()) - lookup
        trains_all = all(parameter.requires_grad for parameter in model.parameters())
        self._factor = 6 if trains_all else 4

    def flops(self, num_tokens: float, num_predicting: float) -> float:
        """Returns products and sums of the given tokens through the body and positions through the head."""
        return self._factor * (self._body * num_tokens + self._head * num_predicting)


class Meter:
    """Counts steps between two readings."""

    def __init__(self, cost: Cost, device: torch.device, num_ranks: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self._cost, self._device = cost, device
        peak = peak_flops(device) if dtype == torch.bfloat16 else None
        self._peak = peak * num_ranks if peak else None
        self._all_useful, self._all_seconds = 0, 0.0
        self.skip()

    def skip(self) -> None:
        """Forgets what was counted, and the time, since the last reading."""
        self._start = time.monotonic()
        self._useful = self._tokens = self._padding = self._in_head = 0

    def add(self, *, useful: int, tokens: int, padding: int, in_head: int) -> None:
        """Counts a step: tokens as each example stands alone, tokens of the model, padding, positions that `Cost` counts."""
        self._useful += useful
        self._tokens += tokens
        self._padding += padding
        self._in_head += in_head

    def read(self) -> dict[str, float]:
        """Returns the rates since the last reading, and the most memory so far."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        readings = {
            "useful_tokens_per_s": round(self._useful / seconds, 1),
            "tokens_per_s": round((self._tokens + self._padding) / seconds, 1),
            "padding": round(self._padding / max(self._tokens + self._padding, 1), 4),
            "memory_bytes": peak_memory_bytes(self._device),
        }
        if self._peak:
            readings["mfu"] = round(self._cost.flops(self._tokens, self._in_head) / seconds / self._peak, 4)
        self._all_useful += self._useful
        self._all_seconds += seconds
        self.skip()
        return readings

    @property
    def useful_tokens_per_s(self) -> float:
        """The rate over all readings."""
        return self._all_useful / max(self._all_seconds, 1e-9)
