"""Why an eager pass of 30 layers takes 33 to 95 ms: launches, or attention that is planned anew for every shape?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import torch

from benchmarks.gpu.shapes import model_of, seconds


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times eager passes over prompts of one length and of ever new ones, with cuDNN's attention and without."""
    shape, dtype = ("toy", torch.float32) if arguments.dry_run else ("135M", torch.bfloat16)
    model, rows = model_of(shape, device, dtype), []
    for is_cudnn_on in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(is_cudnn_on)
        for is_new in (False, True):
            lengths = count(64 if is_cudnn_on else 65, int(is_new))
            taken = seconds(device, partial(_forward, model, lengths, device), rounds=8, warm_ups=2)
            rows.append({"cudnn": is_cudnn_on, "every pass has a new length": is_new, "ms": 1e3 * taken})
    torch.backends.cuda.enable_cudnn_sdp(True)
    return rows


@torch.inference_mode()
def _forward(model: Any, lengths: Iterator[int], device: torch.device) -> None:
    model(torch.ones(8, next(lengths), dtype=torch.int64, device=device), logits_to_keep=1)
