"""Storage that fails now and then, and storage that is full. The first is asked again, and the rows are those of an undisturbed
run; the second ends the stage with a sentence, and once there is room the rerun finishes."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import s3fs
from botocore.retries.standard import ExponentialBackoff

from jobs.cli import main
from tests.chaos.conftest import Case, Mount
from tests.chaos.engines import through, use
from tests.chaos.faulty_s3 import PASSING, FaultyS3, faulty_s3
from tests.chaos.settings import write_config
from tests.published import contents, files
from zerogr.docids.stage import FOLDER
from zerogr.errors import Fault, UserError
from zerogr.index.driver import lease_of
from zerogr.index.index import Index, shards_in
from zerogr.index.lease import find_lease, holder_of
from zerogr.store import storage

pytestmark = [pytest.mark.integration]

TABLE = pa.table({"row_id": list(range(1000)), "text": [f"text {i}" for i in range(1000)]})


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A faulty S3 server in front of the sound one. This process knows no other, and does not wait between its requests."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)
    with faulty_s3(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "write": lambda uri: storage.write_parquet(f"{uri}/new.parquet", TABLE),
    "read": lambda uri: storage.read_parquet(f"{uri}/old.parquet").num_rows,
    "bytes": lambda uri: len(storage.read_bytes(f"{uri}/old.parquet")),
    "footer": lambda uri: storage.parquet_num_rows(f"{uri}/old.parquet"),
    "list": lambda uri: list(storage.list_files(uri)),
    "exists": lambda uri: storage.exists(f"{uri}/old.parquet"),
    "delete": lambda uri: storage.delete(f"{uri}/old.parquet"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_fault_is_asked_again(fault: str, proxy: FaultyS3) -> None:
    uri = f"s3://zerogr/passing/{fault}"
    for operation in OPERATIONS.values():
        storage.write_parquet(f"{uri}/old.parquet", TABLE)
        undisturbed = operation(uri)
        storage.write_parquet(f"{uri}/old.parquet", TABLE)
        proxy.requests.clear()
        # The first request of each kind: some operations begin with a HEAD.
        proxy.fault = lambda method, before: fault if not before[method] else None
        assert operation(uri) == undisturbed
        assert any(met for _, _, met in proxy.requests)
        proxy.fault = lambda method, before: None
    assert storage.read_parquet(f"{uri}/new.parquet") == TABLE


@pytest.mark.parametrize("fault", PASSING)
def test_a_lease_is_taken_and_given_back(fault: str, proxy: FaultyS3) -> None:
    """An answer that is lost makes the next one say that the lease is taken, by the driver itself."""
    index = Index(f"s3://zerogr/leased/{fault}")
    proxy.fault = lambda method, before: fault if not before[method] else None
    for _ in range(2):
        proxy.requests.clear()
        with lease_of(index):
            storage.write_bytes(index.path("file"), b"content")
        assert any(met for _, _, met in proxy.requests)
    proxy.fault = lambda method, before: None
    assert holder_of(index) is None and find_lease(index).number == 2


def test_patience_ends(proxy: FaultyS3) -> None:
    proxy.fault = lambda method, before: "500" if before[method] < 7 else None
    storage.write_bytes("s3://zerogr/staying", b"content")
    assert [fault for _, _, fault in proxy.requests] == ["500"] * 7 + [None]
    proxy.fault = lambda method, before: "500"
    with pytest.raises(OSError, match="on purpose"):
        storage.write_bytes("s3://zerogr/staying", b"other content")
    assert [fault for _, _, fault in proxy.requests[8:]] == ["500"] * 8
    proxy.fault = lambda method, before: None
    assert storage.read_bytes("s3://zerogr/staying") == b"content"


def test_answers_are_not_asked_again(proxy: FaultyS3) -> None:
    proxy.fault = lambda method, before: "403"
    with pytest.raises(UserError, match="s3://zerogr/forbidden' cannot be written"):
        storage.write_bytes("s3://zerogr/forbidden", b"")
    with pytest.raises(PermissionError):
        storage.read_bytes("s3://zerogr/forbidden")
    with pytest.raises(PermissionError):
        storage.list_files("s3://zerogr/forbidden")
    proxy.fault = lambda method, before: None
    with pytest.raises(UserError, match="s3://no-such-bucket/file' cannot be written"):
        storage.write_bytes("s3://no-such-bucket/file", b"")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("s3://zerogr/no-such-key")
    assert not storage.exists("s3://zerogr/no-such-key")
    for method, path in {(method, path) for method, path, _ in proxy.requests}:
        assert [(m, p) for m, p, _ in proxy.requests].count((method, path)) <= 2, (method, path)


@pytest.mark.parametrize(("fault", "code"), [("full", "XMinioStorageFull"), ("quota", "QuotaExceeded")])
def test_full_storage_is_one_sentence(fault: str, code: str, proxy: FaultyS3, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    proxy.fault = lambda method, before: fault if method == "PUT" else None
    sentence = f"' cannot be written: the storage is full \\({code}\\); make room there and run the same command again"
    with pytest.raises(Fault, match=f"'s3://zerogr/full/bytes{sentence}"):
        storage.write_bytes("s3://zerogr/full/bytes", b"content")
    with pytest.raises(Fault, match=f"'s3://zerogr/full/created.json{sentence}"):
        storage.create_json("s3://zerogr/full/created.json", {})
    with pytest.raises(Fault, match=f"'s3://zerogr/full/folder/file{sentence}"):
        storage.upload_folder(tmp_path, "s3://zerogr/full/folder")
    proxy.fault = lambda method, before: None
    assert storage.list_files("s3://zerogr/full") == {}


def test_generating_stages_on_failing_s3(
    case: Case,
    proxy: FaultyS3,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fifth request meets a fault, each kind in its turn, in the driver and in the engine's process."""

    def fault(method: str, before: Counter[str]) -> str | None:
        turn, place = divmod(before.total(), 5)
        return PASSING[turn % len(PASSING)] if place == 4 else None

    proxy.fault = fault
    index = f"s3://zerogr/{tmp_path.name}"  # of its own for every case
    config = write_config(index, collection, tiny_model, tmp_path, **case.changes)
    assert main(["corpus", config]) == 0
    for stage in ("docids", "queries"):
        use(monkeypatch, stage, partial(through, endpoint=proxy.endpoint))
        assert main([stage, config]) == 0
    met = [fault for _, _, fault in proxy.requests]
    assert set(PASSING) <= set(met) and met.count(None) == len(met) - len(met) // 5
    proxy.fault = lambda method, before: None
    folders = ("corpus", "docids", FOLDER, "queries", "rejected")
    assert contents(index, *folders) == contents(case.undisturbed, *folders)


def test_full_disk_ends_the_stage(
    case: Case,
    mount: Mount,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_disk = mount(2**20)
    index = str(small_disk / "index")
    config = write_config(index, collection, tiny_model, tmp_path, **case.changes)
    assert main(["corpus", config]) == 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    (small_disk / "ballast").write_bytes(b"x" * (free - 40 * 2**10))  # room for a few shards

    assert main(["docids", config]) == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("zerogr: stage 'docids' gave up at shard ")
    assert f"'{index}/{FOLDER}/part-00000" in last_line
    assert last_line.endswith(
        "cannot be written: no space left on device; make room there and run the same command again, what is published is kept"
    )
    published = files(index, FOLDER)
    assert 1 <= len(published) < 5
    assert not list(Path(index).rglob(".*"))
    for shard in shards_in(f"{index}/{FOLDER}"):
        assert storage.parquet_num_rows(Index(index).shard(FOLDER, shard)) == 8

    (small_disk / "ballast").unlink()
    assert main(["docids", config]) == 0
    assert {name: file for name, file in files(index).items() if name in published} == published
    assert contents(index, "docids", FOLDER) == contents(case.undisturbed, "docids", FOLDER)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_leaves_the_old_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    storage.write_bytes(str(tmp_path / "file"), b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"new")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_room)
        patch.setattr("shutil.copyfile", no_room)
        with pytest.raises(Fault, match=f"'{tmp_path}/file' cannot be written: .*; make room there"):
            storage.write_bytes(str(tmp_path / "file"), b"new")
        with pytest.raises(Fault, match=f"'{tmp_path}/published/a' cannot be written: .*; make room there"):
            storage.upload_folder(tmp_path / "folder", str(tmp_path / "published"))
    assert storage.read_bytes(str(tmp_path / "file")) == b"old"
    assert not list(tmp_path.rglob(".*")) and not list((tmp_path / "published").iterdir())


def test_disk_that_fills_up_while_files_are_staged(tmp_path: Path) -> None:
    with (
        pytest.raises(Fault, match="no space left on device"),
        storage.staging_folder(str(tmp_path / "trie")) as staging,
    ):
        (staging / "half").write_bytes(b"half")
        Path("/dev/full").write_bytes(b"the other half")
    assert not (tmp_path / "trie").exists()


def test_other_errors_of_a_disk_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        storage.write_bytes(str(tmp_path / "file"), b"new")
    assert not list(tmp_path.iterdir())
