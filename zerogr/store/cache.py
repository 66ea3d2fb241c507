"""The one cache of a machine: folders of object storage, converted models, tokenised examples.

It is `$ZEROGR_CACHE`, else `~/.cache/zerogr`. A folder enters it by one rename, so that a reader never sees half of it; of
processes that want the same one, the first fills it and the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from zerogr.errors import UserError
from zerogr.store import storage


def cache_folder() -> Path:
    """Returns where downloads, converted models and training examples are kept."""
    return Path(os.environ.get("ZEROGR_CACHE") or "~/.cache/zerogr").expanduser()


def make_folder(folder: Path) -> None:
    """Makes a folder of the cache. Raises UserError if it, or something above it, is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"the cache cannot be made at '{folder}': it lies in a file; set ZEROGR_CACHE to a folder"
        ) from None


def cached(target: Path, fill: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache; where it does not exist, `fill` writes its files into an empty folder first.

    Raises:
        Fault: The disk is full.
    """
    if target.exists():
        return target
    with storage.room_at(str(target)):
        make_folder(target.parent)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however it ends
            if not target.exists():
                unfinished = target.parent / f".{target.name}.part"
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                unfinished.mkdir()
                try:
                    fill(unfinished)
                    unfinished.rename(target)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    return target


def version(uri: str) -> str:
    """Returns a name for what lies below `uri` now: a hash of the files' names, sizes and version tags."""
    fs, path = storage.filesystem(uri)
    found = [
        (name, info["size"], storage.version_tag(info)) for name, info in sorted(fs.find(path, detail=True).items())
    ]
    return hashlib.sha256(repr((uri, found)).encode()).hexdigest()[:24]


def local_folder(uri: str, is_wanted: Callable[[str], bool] = lambda _: True) -> Path:
    """Returns a local folder with the files below `uri`: the place itself, or a cached download of this very version.

    The cache is keyed by `version`, so a folder published anew is fetched anew.

    Args:
        uri: The folder.
        is_wanted: Of the names below it, those that are downloaded; always the same for one folder.

    Raises:
        FileNotFoundError: There are no files below `uri`.
        Fault: The disk is full.
    """
    fs, path = storage.filesystem(uri)
    if storage.is_local(uri):
        if not Path(path).is_dir():
            raise FileNotFoundError(uri)
        return Path(path)
    names = {name: below for name in fs.find(path) if is_wanted(below := name[len(path) :].lstrip("/"))}
    if not names:
        raise FileNotFoundError(uri)

    def download(folder: Path) -> None:
        for name, below in names.items():
            (folder / below).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(name, str(folder / below))

    return cached(_download_of(uri), download)


def forget(uri: str) -> None:
    """Frees the disk of what `local_folder` has downloaded, if anything. Who has its files open keeps them."""
    if not storage.is_local(uri):
        shutil.rmtree(_download_of(uri), ignore_errors=True)  # another process may be faster


def _download_of(uri: str) -> Path:
    return cache_folder() / "downloads" / version(uri)
