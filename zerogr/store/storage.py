"""Bytes, JSON, Parquet and folders at a URI: a plain path, `file://`, `s3://`, `gs://`, `hf:`, through one code path (fsspec).

What is written is published whole: a local file is written beside its place and renamed over it, an object is one put.
A reader therefore sees the old content or the new, never half. Names that start with a dot are unfinished files and
are invisible to `list_files`.

Whoever may lose the right to change a place asks for a check before each change there (`guarded`).

S3 that answers 5xx, throttles, times out or breaks a connection is asked again, after longer and longer waits, for about
half a minute (one that says SlowDown for minutes); 403 and 404 are answers. What is still wrong then is raised.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from zerogr.errors import Fault, UserError
from zerogr.store import hub
from zerogr.store.local import files_below, remove

_Result = TypeVar("_Result")
_S3_RETRIES = {"mode": "standard", "total_max_attempts": 8}
"""botocore's. A failed attempt is followed by a wait of 0 to 1, 2, 4, ... 20 s; what breaks off in an answer's body is
repeated by s3fs itself."""
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What mounted object storage says of hard links."""
_FOR_A_PERSON = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
"""Errors that time does not mend."""
_EMPTY_FOR_S = 2.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_CODES = ("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded")
"""What S3 servers on disks of their own say when these are full, or a bucket's quota is used up (MinIO, Ceph)."""
_UNFINISHED = r"\..+\.[0-9a-f]{32}"
"""What a file is called until it is renamed: a dot, its name, and what tells writers apart."""
_guards: list[tuple[str, Callable[[str], None]]] = []
"""Paths, and what is asked before anything at or below one is changed."""


def join(uri: str, *parts: str) -> str:
    """Returns the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *parts]) if parts else uri


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the filesystem that serves `uri`, and its path there.

    Raises:
        UserError: No filesystem is known for the scheme, or its package is not installed; the Hugging Face hub does not know
            the data set, or cannot be reached.
    """
    options: dict[str, Any] = {}
    if "://" in uri and not uri.startswith("file://"):
        # Another process may have published since we last looked: a cached listing would hide its shards.
        options["use_listings_cache"] = False
    if uri.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {"retries": _S3_RETRIES}
    try:
        return hub.filesystem(uri) if hub.is_hub(uri) else fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"'{uri}' cannot be opened: {error}; use a path, file://, s3:// or another scheme fsspec knows"
        ) from None


@contextmanager
def guarded(uri: str, check: Callable[[str], None]) -> Iterator[None]:
    """For the length of a block `check` is called before this process changes anything at or below `uri`.

    It is given the path that would be changed, as `filesystem` has it; what it raises keeps the change from being made.
    """
    guard = (filesystem(uri)[1], check)
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def _ask_guards(path: str) -> None:
    for place, check in list(_guards):
        if path == place or path.startswith(f"{place}/"):
            check(path)


def is_local(uri: str) -> bool:
    """Whether `uri` names a file of this machine."""
    return filesystem(uri)[0].protocol[0] == "file"


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def open_binary(uri: str) -> IO[bytes]:
    """Returns a seekable stream of the file's bytes. Raises FileNotFoundError if there is none."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


def read_bytes(uri: str) -> bytes:
    """Returns the file's content. Raises FileNotFoundError if there is none."""
    fs, path = filesystem(uri)
    return fs.cat_file(path)


def read_range(uri: str, begin: int, end: int) -> bytes:
    """Returns the bytes [begin, end) of a file. Raises FileNotFoundError if there is none."""
    fs, path = filesystem(uri)
    return fs.cat_file(path, start=begin, end=end)


def write_bytes(uri: str, data: bytes) -> None:
    """Publishes `data` at `uri`, whole or not at all.

    Raises:
        UserError: The place cannot be written to (permission, missing bucket).
        Fault: The disk is full.
    """
    fs, path = filesystem(uri)
    _ask_guards(path)
    with _as_user_error(uri):
        if is_local(uri):
            with room_at(uri):
                _write_local(Path(path), data, Path.replace)
        else:
            fs.pipe_file(path, data)


def create_json(uri: str, value: Any) -> bool:
    """Publishes a JSON file where there is none; of several callers at once, one is told that it did.

    Raises:
        UserError: The place cannot be written to.
        Fault: The disk is full.
    """
    fs, path = filesystem(uri)
    data = _json(value)
    _ask_guards(path)
    try:
        if is_local(uri):
            with room_at(uri):
                _write_local(Path(path), data, _put_where_nothing_is)
        else:
            fs.pipe_file(path, data, mode="create")
    except OSError as error:
        if exists(uri):  # the answer of S3 to a condition that does not hold is no error of its own
            return False
        with _as_user_error(uri):
            raise error
    return True


@contextmanager
def _as_user_error(uri: str) -> Iterator[None]:
    """Turns what storage says of a file that is to be written in the block into one sentence, where it needs a person."""
    try:
        yield
    except OSError as error:
        answer = getattr(error.__cause__, "response", {}).get("Error", {})
        if answer.get("Code") in _NO_ROOM_CODES:
            raise _no_room(uri, f"the storage is full ({answer['Code']})") from error
        if not isinstance(error, _FOR_A_PERSON):
            raise
        raise UserError(
            f"'{uri}' cannot be written: {error}; check that the place exists and that you may write there"
        ) from error


def _no_room(place: str, why: str) -> Fault:
    return Fault(
        f"'{place}' cannot be written: {why}; make room there and run the same command again, what is published is kept"
    )


@contextmanager
def room_at(place: str) -> Iterator[None]:
    """Turns the errors of a disk that is full, or may not be written, in the block into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise UserError(
                f"'{place}' cannot be written: {str(error.strerror).lower()}; choose another place (corpora and indexes are "
                "named in the configuration, the cache in ZEROGR_CACHE), or make it writable"
            ) from error
        if error.errno not in _NO_ROOM:
            raise
        raise _no_room(place, str(error.strerror).lower()) from error


def _write_local(path: Path, data: bytes, publish: Callable[[Path, Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _put_where_nothing_is(unfinished: Path, target: Path) -> None:
    try:
        os.link(unfinished, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        target.touch(exist_ok=False)
        unfinished.replace(target)


def read_json(uri: str) -> Any:
    """Returns the parsed file. Raises FileNotFoundError if there is none, UserError if it is not JSON.

    Where a disk has no hard links, a file that `create_json` makes is empty for a moment: that is waited for.
    """
    deadline = time.monotonic() + _EMPTY_FOR_S
    while not (data := read_bytes(uri)) and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"'{uri}' is not valid JSON: {error}") from None


def write_json(uri: str, value: Any) -> None:
    """Publishes `value` as indented JSON, keys in the order given."""
    write_bytes(uri, _json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def list_files(uri: str) -> dict[str, int]:
    """Returns {name relative to `uri`: bytes} of every finished file below it; empty if there is no such folder."""
    return {name: size for name, size in _find(uri).items() if not name.rpartition("/")[2].startswith(".")}


def list_unfinished(uri: str) -> dict[str, int]:
    """Returns the same of the files that somebody is writing here, or has left when its process was killed."""
    return {name: size for name, size in _find(uri).items() if re.fullmatch(_UNFINISHED, name.rpartition("/")[2])}


def _find(uri: str) -> dict[str, int]:
    fs, path = filesystem(uri)
    if fs.protocol[0] == "file":
        return dict(sorted(files_below(path).items()))
    try:
        with hub.in_one_sentence(uri):
            found = fs.find(path, detail=True)
    except FileNotFoundError:
        return {}
    names = {name[len(path) :].lstrip("/"): int(info["size"]) for name, info in found.items()}
    return {name: size for name, size in sorted(names.items()) if name}


def delete(uri: str) -> None:
    """Removes the file or folder at `uri`; nothing happens if there is none."""
    fs, path = filesystem(uri)
    _ask_guards(path)
    if fs.protocol[0] == "file":
        remove(path)
    elif fs.exists(path):
        fs.rm(path, recursive=True)


def for_each(function: Callable[[str], _Result], uris: Sequence[str]) -> Iterator[_Result]:
    """Yields what a function that reads makes of every URI, in their order; many at a time, because storage answers late."""
    if len(uris) < 2 or is_local(uris[0]):
        yield from map(function, uris)
        return
    with ThreadPoolExecutor(32) as threads:
        yield from threads.map(function, uris)


def upload_folder(folder: Path, uri: str) -> None:
    """Publishes every file below the local `folder` under `uri`, each whole."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = join(uri, file.relative_to(folder).as_posix())
        fs, path = filesystem(target)
        _ask_guards(path)
        if is_local(target):
            with room_at(target):
                _copy_local(file, Path(path))
        else:
            with _as_user_error(target):
                fs.put_file(str(file), path)


def _copy_local(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(target)
    try:
        shutil.copyfile(source, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def version_tag(info: dict[str, Any]) -> str:
    """Returns what tells a file's content from another's of the same size, of what its filesystem says about it.

    An ETag in object storage; on the Hugging Face hub git's hash of the content, which for large files is of their SHA-256;
    else the time of the last change.
    """
    return str(next((info[key] for key in ("ETag", "etag", "blob_id", "xet_hash") if info.get(key)), info.get("mtime")))


def state_of(uri: str) -> tuple[int, str]:
    """Returns a file's size in bytes and its `version_tag`. Raises FileNotFoundError if there is none."""
    fs, path = filesystem(uri)
    info = fs.info(path)
    return int(info["size"]), version_tag(info)


@contextmanager
def staging_folder(uri: str) -> Iterator[Path]:
    """Yields an empty local folder whose files are published under `uri` when the block ends without an error."""
    with tempfile.TemporaryDirectory(prefix="zerogr-") as temporary:
        with room_at(temporary):
            yield Path(temporary)
        upload_folder(Path(temporary), uri)


def write_parquet(uri: str, table: pa.Table) -> None:
    """Publishes `table` as one Parquet file. The same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(uri, buffer.getvalue())


def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Returns the file as a table, with only `columns` if given."""
    with open_binary(uri) as file:
        # Without threads of Arrow's: an interpreter that ends soon after they were started is aborted by them (pyarrow 26, four
        # times in five), and whoever wants many files at once reads many files at once. pre_buffer has threads of its own.
        return pq.read_table(file, columns=columns, use_threads=False, pre_buffer=False)


def parquet_footer(uri: str) -> pq.FileMetaData:
    """Returns the file's footer: row count and metadata. Raises UserError if the file is damaged."""
    try:
        with open_binary(uri) as file:
            return pq.ParquetFile(file).metadata
    except pa.ArrowInvalid as error:
        raise UserError(f"'{uri}' is damaged ({error}); delete it and run the stage again") from None


def parquet_num_rows(uri: str) -> int:
    """Returns the row count in the file's footer. Raises UserError if the file is damaged."""
    return int(parquet_footer(uri).num_rows)
