"""What stands in an index: the files of a folder with their content, and with what tells a file from its successor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerogr.index.lease import FOLDER
from zerogr.store import storage


class File(NamedTuple):
    """A published file. One made again has another inode or, where the number is given out again, another time."""

    content: bytes
    inode: int
    modified_ns: int


def files(index: str, *folders: str) -> dict[str, File]:
    """Returns every finished file of a local index, or of some of its folders, by its path in the index."""
    found = {}
    for name in _names(index, folders or ("",)):
        path = Path(index, name)
        stat = path.stat()
        found[name] = File(path.read_bytes(), stat.st_ino, stat.st_mtime_ns)
    return found


def contents(index: str, *folders: str) -> dict[str, bytes]:
    """Returns {path in the index: bytes} of some folders of an index, local or remote."""
    return {name: storage.read_bytes(storage.join(index, name)) for name in _names(index, folders)}


def _names(index: str, folders: Sequence[str]) -> list[str]:
    """Returns the files of folders, but for the lease: who may change the index takes it, also if there is nothing to do."""
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in storage.list_files(f"{index}/{folder}")]
    return [name for name in names if f"/{FOLDER}/" not in f"/{name}"]


def rows(index: str, folder: str) -> list[dict[str, Any]]:
    """Returns the rows of all shards of a folder, in order."""
    return [
        row
        for name in storage.list_files(storage.join(index, folder))
        if name.endswith(".parquet")
        for row in storage.read_parquet(storage.join(index, folder, name)).to_pylist()
    ]
