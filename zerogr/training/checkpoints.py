"""Checkpoints: weights and AdamW state as safetensors, every rank its own shards.

A rank copies what it holds to host memory, 12 bytes per parameter shared by all ranks, and a thread publishes it while
training goes on. Files say which rows of each tensor they hold, so that a checkpoint of two ranks is read by one and the other
way round. `latest.json` is written last, when the files of all ranks are there, and names the only complete checkpoint; older
ones are deleted. torch's own sharded format keeps a pickle beside the tensors, and nothing is unpickled from storage here.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from zerogr.errors import Fault
from zerogr.store import cache, storage

logger = logging.getLogger(__name__)
Weights = Mapping[str, nn.Parameter]
"""What an optimiser moves, fp32, by name."""
CHECKPOINTS, ATTEMPTS = "checkpoints", "ray"
"""In the working folder of a stage that is trained: its checkpoints, and what Ray Train keeps of the attempts of one run."""
_STATE = ("exp_avg", "exp_avg_sq")
_OTHERS_WITHIN_S = 1800.0
"""So long rank 0 waits for the files of the others."""


class StorageCheckpointer:
    """Keeps the newest checkpoint of a run below a URI."""

    def __init__(self, uri: str, *, rank: int = 0, num_ranks: int = 1) -> None:
        self._uri, self._rank, self._num_ranks = uri, rank, num_ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Takes a copy of the state after `step` steps; a thread publishes it, then forgets the others.

        Raises:
            Exception: What kept the one before from being published, such as a Fault for a full disk.
        """
        self.wait()  # two copies would be twice the memory
        tensors: dict[str, torch.Tensor] = {}
        rows: dict[str, str] = {}
        for name, parameter in weights.items():
            state = optimizer.state[parameter]
            for key, tensor in (("weights", parameter.detach()), *((key, state[key]) for key in _STATE)):
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                if local.numel():
                    tensors[f"{key}/{name}"] = local.to("cpu", copy=True).contiguous()
                    rows[f"{key}/{name}"] = str(_rows_of(parameter)[0])
        self._writing = self._thread.submit(self._publish, tensors, rows, step, self._new_folder(step))

    def wait(self) -> None:
        """Waits until what was saved last is published; raises what kept it from that."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def _new_folder(self, step: int) -> str:
        """Returns the folder of a checkpoint, the same on all ranks; none that a killed run has begun."""
        token = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(secrets.randbits(63)))
        if self._num_ranks > 1:
            if torch.distributed.get_backend() == "nccl":
                token = token.cuda()
            torch.distributed.broadcast(token, 0)
        return f"step-{step:08d}-{int(token):08x}"

    def _publish(self, tensors: dict[str, torch.Tensor], rows: dict[str, str], step: int, name: str) -> None:
        with storage.staging_folder(storage.join(self._uri, name)) as folder:
            save_tensors(tensors, folder / f"state-{self._rank:04d}.safetensors", rows)
        if self._rank:
            return
        deadline = time.monotonic() + _OTHERS_WITHIN_S
        while len(storage.list_files(storage.join(self._uri, name))) < self._num_ranks:
            if time.monotonic() > deadline:
                raise Fault(f"'{self._uri}/{name}' lacks the files of some of {self._num_ranks} ranks")
            time.sleep(0.2)
        storage.write_json(storage.join(self._uri, "latest.json"), {"step": step, "folder": name})
        for other in superseded(self._uri):
            storage.delete(storage.join(self._uri, other))
        logger.info("checkpoint after step %d", step)

    def restore(self, weights: Weights, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest checkpoint into weights and optimiser; returns its step, 0 if there is none."""
        latest = _latest(self._uri)
        if latest is None:
            return 0
        uri = storage.join(self._uri, latest["folder"])
        with _Shards(cache.local_folder(uri)) as shards, torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(shards.read(f"weights/{name}", parameter))
                state: dict[str, Any] = {key: shards.read(f"{key}/{name}", parameter) for key in _STATE}
                done = torch.tensor(float(latest["step"]), device=parameter.device)  # where the fused AdamW wants it
                optimizer.state[parameter] = {"step": done, **state}
        if self._num_ranks > 1:
            torch.distributed.barrier()  # the ranks of a machine share what was downloaded
        cache.forget(uri)
        return int(latest["step"])


class _Shards:
    """The files of a checkpoint, of however many ranks."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._stack = ExitStack()
        files = [self._stack.enter_context(safe_open(str(file), "pt")) for file in sorted(folder.glob("*.safetensors"))]
        self._parts: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in files:
            for key, begin in file.metadata().items():
                self._parts[key].append((int(begin), file))

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, key: str, parameter: torch.Tensor) -> torch.Tensor:
        """Returns a tensor laid out like a parameter, of which this rank reads the rows that it holds."""
        first, last = _rows_of(parameter)
        parts = []
        for begin, file in sorted(self._parts[key], key=lambda part: part[0]):
            stored = file.get_slice(key)
            shape = stored.get_shape()
            if not shape:
                parts.append(file.get_tensor(key))
            elif max(first, begin) < min(last, begin + shape[0]):
                parts.append(stored[max(first - begin, 0) : min(last - begin, shape[0])])
        whole = torch.cat(parts) if len(parts) != 1 else parts[0]
        if not isinstance(parameter, DTensor):
            return whole.to(parameter.device)
        return DTensor.from_local(
            whole.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip


def _rows_of(parameter: torch.Tensor) -> tuple[int, int]:
    """Returns the first row of a parameter that this rank holds, and one past the last; FSDP2 cuts rows as `chunk` does."""
    if not parameter.dim():
        return 0, 1
    if not isinstance(parameter, DTensor):
        return 0, parameter.shape[0]
    rows = -(-parameter.shape[0] // parameter.device_mesh.size())
    first = min(rows * parameter.device_mesh.get_local_rank(), parameter.shape[0])
    return first, first + parameter.to_local().shape[0]


def _latest(uri: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(storage.join(uri, "latest.json"))
    except FileNotFoundError:
        return None


def latest_step(uri: str) -> int:
    """Returns the steps behind the newest checkpoint below a URI; 0 if there is none."""
    latest = _latest(uri)
    return int(latest["step"]) if latest else 0


def superseded(uri: str) -> list[str]:
    """Returns what lies below a URI beside the newest checkpoint: older ones, and what a killed run left half written."""
    latest = _latest(uri)
    newest = {"latest.json", latest["folder"]} if latest else set()
    return sorted({file.partition("/")[0] for file in storage.list_files(uri)} - newest)


def save_tensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, with texts in its header.

    Raises:
        OSError: As any other writer would; the library says it in words of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata)
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
