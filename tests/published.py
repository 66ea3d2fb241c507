"""What stands in an index: the files of a folder with their content, and with what tells a file from its successor."""

from __future__ import annotations

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
    """Returns every finished file of a local index, or of some of its folders, by its path in the index.

    The lease is left out: every command that may change the index takes it, also one that finds nothing to do.
    """
    found = {}
    for folder in folders or ("",):
        for name in storage.list_files(storage.join(index, folder) if folder else index):
            path = Path(index, folder, name)
            if path.is_relative_to(Path(index, FOLDER)):
                continue
            stat = path.stat()
            found[f"{folder}/{name}" if folder else name] = File(path.read_bytes(), stat.st_ino, stat.st_mtime_ns)
    return found


def contents(index: str, *folders: str) -> dict[str, bytes]:
    """Returns {path in the index: bytes} of some folders of an index, local or remote."""
    return {
        f"{folder}/{name}": storage.read_bytes(storage.join(index, folder, name))
        for folder in folders
        for name in storage.list_files(storage.join(index, folder))
    }


def rows(index: str, folder: str) -> list[dict[str, Any]]:
    """Returns the rows of all shards of a folder, in order."""
    return [
        row
        for name in storage.list_files(storage.join(index, folder))
        if name.endswith(".parquet")
        for row in storage.read_parquet(storage.join(index, folder, name)).to_pylist()
    ]
