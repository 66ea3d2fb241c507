"""Training examples on disk: memory-mapped by all ranks of a machine, published once for all machines.

The first process of a machine that asks writes them, one part of the corpus at a time, so that memory stays flat; the others
wait for it. A run that is resumed finds them where it left them. An example takes 4 bytes per token, 20 more, 16 per document
and 12 per answer: 30 queries for each of 10M documents, 60 tokens each with their docid, are 85 GB.

Where several machines train, the parts are tokenised before, by all of them together, and each machine fetches what is
published instead of tokenising everything anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from zerogr.store import cache, storage
from zerogr.training.examples import Examples

_ARRAYS = {
    "task": np.int32,
    "query_tokens": np.int32,
    "query_offsets": np.int64,
    "first_document": np.int64,
    "grades": np.float32,
    "teacher": np.float32,
    "first_answer": np.int64,
    "weights": np.float32,
    "answer_tokens": np.int32,
    "answer_offsets": np.int64,
}
_INTO = {
    "query_offsets": "query_tokens",
    "first_document": "grades",
    "first_answer": "weights",
    "answer_offsets": "answer_tokens",
}
"""Offsets, and the array that each points into."""
_PREFIXES = "prefixes.json"
_SUFFIX = ".safetensors"


class ExampleFiles:
    """One set of examples in the machine's cache."""

    def __init__(self, key: str) -> None:
        """`key` stands for what they are made from."""
        self.folder = cache.cache_folder() / "examples" / key

    def open(self, parts: Callable[[], Iterable[Examples]]) -> Examples:
        """Returns the examples as memory maps.

        Args:
            parts: Called if nobody wrote them before; yields them in their order, part by part.

        Raises:
            OSError: The disk is full, or may not be written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however it ends
            if not self.folder.exists():
                unfinished = self.folder.with_suffix(".part")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                _write(unfinished, parts())
                unfinished.rename(self.folder)
        prefixes = json.loads((self.folder / _PREFIXES).read_text())
        return Examples(prefixes, **{name: _map(self.folder / name, dtype) for name, dtype in _ARRAYS.items()})

    def delete(self) -> None:
        """Frees the disk. Who has them open keeps them."""
        with contextlib.suppress(FileNotFoundError):  # another rank was faster
            unfinished = self.folder.rename(self.folder.with_suffix(f".{os.getpid()}.part"))
            shutil.rmtree(unfinished)


class PublishedExamples:
    """The parts of one set of examples below a URI."""

    def __init__(self, folder: str) -> None:
        """`folder` names what they are made from, too."""
        self._folder = folder

    def names(self) -> set[str]:
        """Returns which parts are there."""
        return {name.removesuffix(_SUFFIX) for name in storage.list_files(self._folder)}

    def write(self, name: str, part: Examples) -> None:
        """Publishes a part, whole or not at all."""
        arrays = {name: np.ascontiguousarray(getattr(part, name), dtype) for name, dtype in _ARRAYS.items()}
        storage.write_bytes(self._uri(name), save_arrays(arrays, {"prefixes": json.dumps(part.prefixes)}))

    def read(self, name: str) -> Examples:
        """Returns a part.

        Raises:
            FileNotFoundError: It is not there.
        """
        data = storage.read_bytes(self._uri(name))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return Examples(json.loads(header["__metadata__"]["prefixes"]), **load_arrays(data))

    def _uri(self, name: str) -> str:
        return storage.join(self._folder, f"{name}{_SUFFIX}")


def _write(folder: Path, parts: Iterable[Examples]) -> None:
    tasks: dict[tuple[int, ...], int] = {}
    ends = dict.fromkeys(_INTO.values(), 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _ARRAYS}
        for name in _INTO:
            files[name].write(np.zeros(1, dtype=np.int64).data)
        for part in parts:
            number = np.array([tasks.setdefault(tuple(prefix), len(tasks)) for prefix in part.prefixes], dtype=np.int32)
            arrays = {name: getattr(part, name) for name in _ARRAYS}
            arrays["task"] = number[part.task] if len(part) else part.task
            arrays |= {name: arrays[name][1:] + ends[into] for name, into in _INTO.items()}
            ends = {into: ends[into] + len(arrays[into]) for into in ends}
            for name, array in arrays.items():
                files[name].write(np.ascontiguousarray(array, dtype=_ARRAYS[name]).data)
    (folder / _PREFIXES).write_text(json.dumps([list(prefix) for prefix in tasks]))


def _map(file: Path, dtype: type) -> np.ndarray:
    # A file of no bytes cannot be mapped; a plain view of a map is faster to slice than the map itself.
    return np.asarray(np.memmap(file, dtype=dtype, mode="r")) if file.stat().st_size else np.empty(0, dtype)
