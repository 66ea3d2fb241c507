"""The same assertions over a folder and over object storage: code that reads an index must not know which it is."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from zerogr.errors import Fault, UserError
from zerogr.store import cache, storage


@pytest.fixture(params=["path", "file", pytest.param("s3", marks=pytest.mark.integration)])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own where nothing is yet."""
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://zerogr/{uuid.uuid4().hex}"
    return str(tmp_path / "place") if request.param == "path" else f"file://{tmp_path / 'place'}"


class TestEverywhere:
    def test_bytes(self, uri: str) -> None:
        file = storage.join(uri, "deep", "er", "file.bin")
        assert not storage.exists(file)
        storage.write_bytes(file, b"one")
        assert storage.exists(file)
        assert storage.read_bytes(file) == b"one"
        storage.write_bytes(file, b"")
        assert storage.read_bytes(file) == b""
        storage.write_bytes(file, b"two")
        with storage.open_binary(file) as stream:
            stream.seek(1)
            assert stream.read() == b"wo"

    def test_what_is_not_there(self, uri: str) -> None:
        missing = storage.join(uri, "missing")
        for read in (storage.read_bytes, storage.read_json, storage.open_binary, storage.read_parquet):
            with pytest.raises(FileNotFoundError):
                read(missing)
        with pytest.raises(FileNotFoundError):
            cache.local_folder(missing)
        assert storage.list_files(missing) == {}
        storage.delete(missing)

    def test_json(self, uri: str) -> None:
        file = storage.join(uri, "a.json")
        storage.write_json(file, {"b": [1, None], "a": "東京"})
        assert storage.read_json(file) == {"b": [1, None], "a": "東京"}
        assert list(storage.read_json(file)) == ["b", "a"]
        assert "東京" in storage.read_bytes(file).decode()

    @pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
    def test_damaged_json(self, uri: str, content: bytes) -> None:
        file = storage.join(uri, "a.json")
        storage.write_bytes(file, content)
        with pytest.raises(UserError, match=r"a\.json' is not valid JSON: "):
            storage.read_json(file)

    def test_list_files(self, uri: str) -> None:
        names = {"b.bin": 1, "a/c.bin": 2, "a/b/d.bin": 3}
        for name, size in names.items():
            storage.write_bytes(storage.join(uri, name), b"x" * size)
        storage.write_bytes(storage.join(uri, "a", ".unfinished"), b"x")
        storage.write_bytes(f"{uri}-sibling/e.bin", b"x")
        assert storage.list_files(uri) == names
        assert list(storage.list_files(uri)) == sorted(names)
        assert storage.list_files(uri + "/") == names
        assert storage.list_files(storage.join(uri, "a")) == {"b/d.bin": 3, "c.bin": 2}

    def test_a_listing_sees_what_was_written_since(self, uri: str) -> None:
        assert storage.list_files(uri) == {}
        for number in range(3):
            storage.write_bytes(storage.join(uri, f"{number}"), b"x")
            assert len(storage.list_files(uri)) == number + 1
        storage.delete(storage.join(uri, "1"))
        assert list(storage.list_files(uri)) == ["0", "2"]

    def test_a_listing_sees_what_another_process_wrote_since(self, uri: str) -> None:
        """A cached listing would hide finished shards, and they would be done again."""
        storage.write_bytes(storage.join(uri, "0"), b"x")
        assert list(storage.list_files(uri)) == ["0"]
        stranger, path = fsspec.core.url_to_fs(uri, skip_instance_cache=True)
        stranger.pipe_file(f"{path}/1", b"x")
        assert list(storage.list_files(uri)) == ["0", "1"]
        assert storage.exists(storage.join(uri, "1"))

    def test_delete(self, uri: str) -> None:
        for name in ("keep", "folder/a", "folder/b/c", "folder2/a"):
            storage.write_bytes(storage.join(uri, name), b"x")
        storage.delete(storage.join(uri, "folder"))
        assert list(storage.list_files(uri)) == ["folder2/a", "keep"]
        assert not storage.exists(storage.join(uri, "folder"))
        storage.delete(storage.join(uri, "keep"))
        assert list(storage.list_files(uri)) == ["folder2/a"]

    def test_upload_folder(self, uri: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "sub").mkdir(parents=True)
        (source / "a.txt").write_bytes(b"a")
        (source / "sub" / "b.txt").write_bytes(b"bb")
        storage.write_bytes(storage.join(uri, "a.txt"), b"older and longer")
        storage.upload_folder(source, uri)
        assert storage.list_files(uri) == {"a.txt": 1, "sub/b.txt": 2}
        assert storage.read_bytes(storage.join(uri, "a.txt")) == b"a"

    def test_local_folder_is_of_the_newest_version(self, uri: str) -> None:
        file = storage.join(uri, "model", "sub", "weights.bin")
        storage.write_bytes(file, b"old")
        first = cache.local_folder(storage.join(uri, "model"))
        assert (first / "sub" / "weights.bin").read_bytes() == b"old"
        assert cache.local_folder(storage.join(uri, "model")) == first
        storage.write_bytes(file, b"new")  # of the same size
        assert (cache.local_folder(storage.join(uri, "model")) / "sub" / "weights.bin").read_bytes() == b"new"

    def test_staging_folder_publishes_at_its_end(self, uri: str) -> None:
        with storage.staging_folder(uri) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a.txt").write_text("a")
            assert storage.list_files(uri) == {}
        assert storage.list_files(uri) == {"sub/a.txt": 1}
        assert not folder.exists()

    def test_staging_folder_publishes_nothing_after_an_error(self, uri: str) -> None:
        with pytest.raises(RuntimeError, match="died"), storage.staging_folder(uri) as folder:
            (folder / "a.txt").write_text("half")
            raise RuntimeError("died")
        assert storage.list_files(uri) == {}
        assert not folder.exists()

    def test_parquet(self, uri: str) -> None:
        table = pa.table({"row_id": [1, 2, 3], "text": ["a", None, "東京"], "list": [["x"], [], None]})
        files = [storage.join(uri, f"part-{i:06d}.parquet") for i in range(2)]
        for file in files:
            storage.write_parquet(file, table)
        assert storage.read_parquet(files[0]) == table
        assert storage.read_parquet(files[0], ["text"]).column_names == ["text"]
        assert storage.parquet_num_rows(files[0]) == 3
        assert storage.read_bytes(files[0]) == storage.read_bytes(files[1])

    def test_damaged_parquet(self, uri: str) -> None:
        file = storage.join(uri, "part.parquet")
        storage.write_bytes(file, b"PAR1 but not really")
        with pytest.raises(UserError, match=r"part\.parquet' is damaged \(.*\); delete it and run the stage again"):
            storage.parquet_num_rows(file)


@pytest.mark.parametrize("step", ["write", "replace"])
class TestDyingWriters:
    """A shard is finished when its file exists: a half-written file would be taken for a finished shard for ever."""

    @pytest.fixture
    def dies(self, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def die(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        if step == "replace":
            monkeypatch.setattr(os, "replace", die)
            monkeypatch.setattr(Path, "replace", die)
            return

        def copy_half(_source: str, target: str) -> None:
            with open(target, "wb") as file:
                file.write(b"ha")
            die()

        monkeypatch.setattr(os, "fsync", die)
        monkeypatch.setattr("shutil.copyfile", copy_half)

    def test_the_old_content_stays_and_nothing_else_is_seen(self, tmp_path: Path, dies: None) -> None:
        place = tmp_path / "place"
        place.mkdir()
        (place / "file").write_bytes(b"old")
        source = tmp_path / "source"
        source.mkdir()
        (source / "file").write_bytes(b"new")
        with pytest.raises(Fault, match="no space left"):
            storage.write_bytes(str(place / "file"), b"new")
        with pytest.raises(Fault, match="no space left"):
            storage.upload_folder(source, str(place))
        with pytest.raises(Fault, match="no space left"):
            storage.write_parquet(str(place / "part-000000.parquet"), pa.table({"a": [1]}))
        assert storage.list_files(str(place)) == {"file": 3}
        assert (place / "file").read_bytes() == b"old"
        assert os.listdir(place) == ["file"]  # and no rubbish either

    def test_what_a_killed_writer_leaves_is_invisible(self, tmp_path: Path, dies: None) -> None:
        """`kill -9` runs no `finally`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(Fault, match="no space left"):
                storage.write_bytes(str(tmp_path / "part-000000.parquet"), b"new")
        assert len(os.listdir(tmp_path)) == 1
        assert storage.list_files(str(tmp_path)) == {}


class TestMistakes:
    def test_unknown_scheme(self) -> None:
        for call in (storage.exists, storage.read_bytes, storage.list_files, storage.is_local):
            with pytest.raises(UserError, match=r"^'foo://bucket/x' cannot be opened: .*use a path, file://, s3://"):
                call("foo://bucket/x")

    @pytest.mark.parametrize("name", ["file/x", "file/x/y", "folder"])
    def test_unwritable_place(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_text("I am no folder")
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError) as caught:
            storage.write_bytes(str(tmp_path / name), b"x")
        assert str(caught.value).startswith(f"'{tmp_path / name}' cannot be written: ")
        assert str(caught.value).endswith("; check that the place exists and that you may write there")

    def test_forbidden_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so no mode bits would do
        with pytest.raises(UserError, match=r"cannot be written: permission denied; choose another place"):
            storage.write_bytes(str(tmp_path / "x"), b"x")

    @pytest.mark.integration
    def test_missing_bucket(self, s3_server: str) -> None:
        uri = "s3://no-such-bucket/index/a.json"
        assert storage.list_files("s3://no-such-bucket/index") == {}
        with pytest.raises(FileNotFoundError):
            storage.read_json(uri)
        with pytest.raises(UserError, match=r"^'s3://no-such-bucket/index/a\.json' cannot be written: "):
            storage.write_json(uri, {})


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://bucket/index",), "s3://bucket/index"),
        (("s3://bucket/index/", "a", "b"), "s3://bucket/index/a/b"),
        (("relative", "a"), "relative/a"),
        (("/", "a"), "/a"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


@pytest.mark.parametrize(("uri", "local"), [("a/b", True), ("/a", True), ("file:///a", True), ("memory://a", False)])
def test_is_local(uri: str, local: bool) -> None:
    assert storage.is_local(uri) is local


def test_relative_paths_are_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_json("index/a.json", [1])
    assert json.loads((tmp_path / "index" / "a.json").read_text()) == [1]
    assert list(storage.list_files("index")) == ["a.json"]


def test_an_interpreter_that_has_read_a_table_ends_in_peace(tmp_path: Path) -> None:
    file = str(tmp_path / "table.parquet")
    storage.write_parquet(file, pa.table({"a": ["x"] * 1000, "b": range(1000)}))
    script = f"from zerogr.store import storage; assert storage.read_parquet({file!r}).num_rows == 1000"
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")


class TestAFolderThatCannotBeRead:
    """It is never taken for an empty one: a corpus would lose files without a word."""

    @pytest.mark.parametrize(
        ("number", "kind", "message"),
        [
            (errno.EACCES, UserError, "folder '.*secret' may not be read; give yourself the right"),
            (errno.EIO, Fault, "folder '.*secret' cannot be read: input/output error"),
        ],
    )
    def test_is_an_error(
        self, number: int, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "rows.jsonl").write_text("{}")
        (tmp_path / "a.jsonl").write_text("{}")
        assert storage.list_files(str(tmp_path)) == {"a.jsonl": 2, "secret/rows.jsonl": 2}
        real = os.scandir

        def scandir(path: str) -> Any:
            if str(path).endswith("secret"):
                raise OSError(number, os.strerror(number), path)
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(kind, match=message):
            storage.list_files(str(tmp_path))

    def test_what_is_not_there_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
        for name in ("missing", "file", "nowhere"):
            assert storage.list_files(str(tmp_path / name)) == {}
        assert storage.list_files(str(tmp_path)) == {"file": 1}


def test_deleting_needs_no_working_folder(tmp_path: Path) -> None:
    """A job's own can go under its feet; nothing that has an absolute path may care."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "below").mkdir(parents=True)
    (tmp_path / "there" / "below" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    script = (
        f"import os; from zerogr.store import storage; os.chdir({str(tmp_path / 'here')!r}); "
        f"os.rmdir({str(tmp_path / 'here')!r}); "
        f"[storage.delete(f'{tmp_path}/{{name}}') for name in ('missing', 'link', 'there/below/file/x', 'there')]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(tmp_path.iterdir())


class TestCached:
    def test_of_two_that_race_one_fills_and_the_other_waits(self, tmp_path: Path) -> None:
        target, has_begun, may_end, fills = tmp_path / "kept" / "raced", Event(), Event(), []

        def fill(folder: Path) -> None:
            fills.append(folder)
            (folder / "file").write_text("half")
            has_begun.set()
            assert may_end.wait(60)
            (folder / "file").write_text("whole")

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(cache.cached, target, fill)
            assert has_begun.wait(60)
            second = threads.submit(cache.cached, target, fill)
            may_end.set()
            assert first.result() == second.result() == target
        assert len(fills) == 1 and (target / "file").read_text() == "whole"
        assert [path.name for path in target.parent.iterdir() if path.is_dir()] == ["raced"]

    def test_what_a_killed_process_has_left_is_deleted(self, tmp_path: Path) -> None:
        script = (
            "import os, pathlib; from zerogr.store import cache; "
            f"cache.cached(pathlib.Path({str(tmp_path / 'x')!r}), lambda folder: ((folder / 'old').touch(), os._exit(9)))"
        )
        assert subprocess.run([sys.executable, "-c", script], timeout=600).returncode == 9
        target = cache.cached(tmp_path / "x", lambda folder: (folder / "new").touch())
        assert [path.name for path in target.iterdir()] == ["new"]
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["x"]

    def test_a_failed_copy_leaves_nothing(self, tmp_path: Path) -> None:
        def fail(_folder: Path) -> None:
            raise RuntimeError("connection lost")

        with pytest.raises(RuntimeError):
            cache.cached(tmp_path / "kept" / "half", fail)
        assert not any(path.is_dir() for path in (tmp_path / "kept").iterdir())
