"""Arrays on disk: one little-endian file each and a meta.json, memory-mapped by whoever reads them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zerogr.errors import UserError

FORMAT_VERSION = 1


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes one file per array and, last, meta.json with checksums and `meta` into a local folder, made if need be."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        _replace(folder / f"{name}.bin", array.data)
        described[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": _checksum(array)}
    whole = {"format_version": FORMAT_VERSION, **meta, "arrays": described}
    _replace(folder / "meta.json", (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode())


def load_arrays(
    path: str | os.PathLike[str], names: Sequence[str], what: str, *, stage: str, verify: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns (name -> memory map, meta) of saved arrays; nothing is read until it is used.

    Args:
        path: The local folder.
        names: Of the arrays.
        what: They are together, for a person.
        stage: That makes them, for `--rebuild`.
        verify: Also compare every file with its checksum, which reads it whole.

    Raises:
        UserError: A file is missing, has the wrong size, format version or (with `verify`) content.
    """
    folder = Path(path)
    meta = _read_meta(folder / "meta.json", names, what, stage)
    arrays = {}
    for name in names:
        file, described = folder / f"{name}.bin", meta["arrays"][name]
        dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
        expected_bytes = dtype.itemsize * int(np.prod(shape))
        if not file.is_file():
            raise UserError(f"The {what} file {file} is missing; build it again with --rebuild {stage}.")
        if file.stat().st_size != expected_bytes:
            raise UserError(
                f"The {what} file {file} has {file.stat().st_size} bytes where meta.json says {expected_bytes}; "
                f"copy it again or build it again with --rebuild {stage}."
            )
        # A file of no bytes cannot be mapped.
        array = np.memmap(file, dtype=dtype, mode="r", shape=shape) if expected_bytes else np.empty(shape, dtype)
        if verify and _checksum(array) != described["sha256"]:
            raise UserError(
                f"The content of the {what} file {file} does not match its checksum in meta.json; "
                f"copy it again or build it again with --rebuild {stage}."
            )
        arrays[name] = np.asarray(array)  # a plain view of the map: slicing np.memmap objects is slow
    return arrays, meta


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _replace(file: Path, content: bytes | memoryview) -> None:
    """Writes a file whole. The old one is replaced, not overwritten: it may be memory-mapped."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(file)


def _read_meta(file: Path, names: Sequence[str], what: str, stage: str) -> dict[str, Any]:
    """The checked content of meta.json.

    Raises:
        UserError: It is missing, unreadable, or of another format version.
    """
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The {what} file {file} is missing; build it again with --rebuild {stage}.") from None
    except ValueError as error:
        raise UserError(
            f"The {what} file {file} is not JSON ({error}); build it again with --rebuild {stage}."
        ) from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"The {what} in {file.parent} has format version {version!r} where this program reads {FORMAT_VERSION}; "
            f"build it again with --rebuild {stage}."
        )
    if set(meta.get("arrays", {})) != set(names):
        raise UserError(f"The {what} file {file} does not describe a {what}; build it again with --rebuild {stage}.")
    return meta
