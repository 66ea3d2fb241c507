"""Checkpoints: weights and AdamW state as safetensors, whole tensors under their parameters' names.

Because tensors are stored whole, a checkpoint of two ranks is read by one and the other way round. Rank 0 gathers them in
host memory, 12 bytes per trained parameter, and a thread writes them while training goes on. `latest.json` is written last and
names the only complete one; older ones are deleted.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from zerogr.store import cache, storage

logger = logging.getLogger(__name__)
Weights = Mapping[str, nn.Parameter]
"""What an optimiser moves, fp32, by name."""
_STATE = ("exp_avg", "exp_avg_sq")


class StorageCheckpointer:
    """Keeps the newest checkpoint of a run below a URI."""

    def __init__(self, uri: str, *, rank: int = 0) -> None:
        self._uri, self._rank = uri, rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Takes a copy of the state after `step` steps; a thread publishes it, then forgets the others.

        Raises:
            Exception: What kept the one before from being published, such as a Fault for a full disk.
        """
        self.wait()  # two copies would be twice the memory
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in weights.items():
            for key, tensor in (
                ("weights", parameter.detach()),
                *((key, optimizer.state[parameter][key]) for key in _STATE),
            ):
                gathered = whole(tensor)  # on all ranks, one at a time
                if not self._rank:
                    tensors[f"{key}/{name}"] = gathered.to("cpu", copy=True).contiguous()
        if self._rank:
            return
        self._writing = self._thread.submit(self._publish, tensors, step)

    def wait(self) -> None:
        """Waits until what was saved last is published; raises what kept it from that."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def _publish(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        name = f"step-{step:08d}"
        with storage.staging_folder(storage.join(self._uri, name)) as folder:
            save_tensors(tensors, folder / "state.safetensors")
        storage.write_json(storage.join(self._uri, "latest.json"), {"step": step, "folder": name})
        for other in {file.partition("/")[0] for file in storage.list_files(self._uri)} - {name, "latest.json"}:
            storage.delete(storage.join(self._uri, other))  # also what a killed run left half written
        logger.info("checkpoint after step %d", step)

    def restore(self, weights: Weights, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest checkpoint into weights and optimiser; returns its step, 0 if there is none."""
        latest = _latest(self._uri)
        if latest is None:
            return 0
        from safetensors import safe_open

        folder = cache.local_folder(storage.join(self._uri, latest["folder"]))
        with safe_open(str(folder / "state.safetensors"), "pt") as file, torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(_like(file.get_tensor(f"weights/{name}"), parameter))
                state: dict[str, Any] = {key: _like(file.get_tensor(f"{key}/{name}"), parameter) for key in _STATE}
                done = torch.tensor(float(latest["step"]), device=parameter.device)  # where the fused AdamW wants it
                optimizer.state[parameter] = {"step": done, **state}
        return int(latest["step"])


def _latest(uri: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(storage.join(uri, "latest.json"))
    except FileNotFoundError:
        return None


def latest_step(uri: str) -> int:
    """Returns the steps behind the newest checkpoint below a URI; 0 if there is none."""
    latest = _latest(uri)
    return int(latest["step"]) if latest else 0


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Writes a safetensors file. Raises OSError as any other writer would: the library says it in words of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file)
    except SafetensorError as error:
        if f"code: {errno.ENOSPC}," in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name: all of them, or the adapters."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def full_tensors(model: nn.Module, *, rank: int = 0) -> dict[str, torch.Tensor]:
    """Returns the model's trained parameters, whole, by name, on rank 0; nothing elsewhere, where all must call it too."""
    tensors = {}
    for name, parameter in trainable(model).items():
        gathered = whole(parameter.detach())
        if not rank:
            tensors[name] = gathered.cpu()
    return tensors


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that FSDP may have sharded. With several ranks all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor laid out like `parameter`."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
