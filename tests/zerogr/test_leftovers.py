"""What `zerogr clean` deletes: all that nobody needs, and never what a version refers to that stays."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.corpus.stage import FREQUENCY
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Layer, Version, folder_of, manifest_of, propose, publish
from zerogr.leftovers import Leftover, delete_leftover, find_leftovers
from zerogr.store import storage
from zerogr.store.uploads import unfinished_uploads


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(str(tmp_path / "index"))


def write(index: Index, *names: str) -> None:
    for name in names:
        storage.write_bytes(index.path(name), name.encode())


def finish(index: Index, *stages: str) -> None:
    for stage in stages:
        index.finish(stage, {}, config={}, counts={}, seconds=0)


def clean(index: Index, **options: Any) -> set[str]:
    """Deletes what can be; returns the places."""
    found = find_leftovers(index, **options)
    for leftover in found:
        delete_leftover(index, leftover)
    return {leftover.place for leftover in found}


class TestDeadRuns:
    def test_temporary_files(self, index: Index) -> None:
        write(index, "corpus/part-000000.parquet", "corpus/.keep", "corpus/.part.parquet.swp")
        left = ".part-000001.parquet." + "0f" * 16
        write(index, f"corpus/{left}", f"versions/000001/trie/{left}")
        assert clean(index) == {f"corpus/{left}", f"versions/000001/trie/{left}"}
        names = {path.name for path in Path(index.uri).rglob("*") if path.is_file()}
        assert names == {"part-000000.parquet", ".keep", ".part.parquet.swp"}

    def test_a_write_that_is_killed_leaves_such_a_file(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                write(index, "docids/part-000000.parquet")
        [leftover] = find_leftovers(index)
        assert leftover[:1] == ("temporary file",) and leftover.num_bytes == len("docids/part-000000.parquet")

    def test_work_of_finished_stages(self, index: Index) -> None:
        kept = ["work/document_frequency.bin", "work/lexical/part-000000.parquet", "work/runs/docids-0000.json"]
        kept += ["work/statistics/0-of-2.safetensors", "docids/part-000000.parquet", "work/docids.json"]
        write(index, *kept, "work/docids/part-000000.parquet", "work/docids/part-000001.parquet")
        finish(index, "corpus", "docids", "lexical")
        [leftover] = find_leftovers(index)
        num_bytes = 2 * len("work/docids/part-000000.parquet")
        assert leftover == Leftover("work of a finished stage", "work/docids", 2, num_bytes)
        delete_leftover(index, leftover)
        assert set(storage.list_files(index.uri)) == {*kept, "index.json"}

    def test_attempts_of_an_unfinished_training(self, index: Index) -> None:
        folder = "work/training"
        write(index, f"{folder}/ray/run-1/state", f"{folder}/checkpoints/step-00000002-a/state-0000.safetensors")
        write(index, f"{folder}/checkpoints/step-00000004-b/state-0000.safetensors")
        storage.write_json(index.path(folder, "checkpoints", "latest.json"), {"step": 2, "folder": "step-00000002-a"})
        assert clean(index) == {f"{folder}/ray", f"{folder}/checkpoints/step-00000004-b"}
        assert set(storage.list_files(index.path(folder))) == {
            "checkpoints/latest.json", "checkpoints/step-00000002-a/state-0000.safetensors"
        }  # fmt: skip

    @pytest.mark.integration
    def test_unfinished_uploads(self, s3_server: str) -> None:
        index = Index("s3://zerogr/uploads/index")
        write(index, "corpus/part-000000.parquet")
        fs, _ = storage.filesystem(index.uri)
        for key in ("uploads/index/retriever/model.safetensors", "uploads/index-of-another/model.safetensors"):
            begun = fs.call_s3("create_multipart_upload", Bucket="zerogr", Key=key)
            part = {"Bucket": "zerogr", "Key": key, "UploadId": begun["UploadId"], "PartNumber": 1}
            fs.call_s3("upload_part", **part, Body=b"x" * 1000)
        [leftover] = find_leftovers(index)
        assert leftover[:4] == ("unfinished upload", "retriever/model.safetensors", 1, 1000)
        delete_leftover(index, leftover)
        assert unfinished_uploads(index.uri) == [] and find_leftovers(index) == []
        assert len(unfinished_uploads("s3://zerogr/uploads/index-of-another")) == 1
        assert list(storage.list_files(index.uri)) == ["corpus/part-000000.parquet"]

    def test_uploads_that_may_not_be_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forbidding:
            protocol = ("s3", "s3a")

            def split_path(self, path: str) -> tuple[str, str, None]:
                return "bucket", path, None

            def call_s3(self, *_: object, **__: object) -> None:
                raise PermissionError("Access Denied")

        monkeypatch.setattr(storage, "filesystem", lambda uri: (Forbidding(), "index"))
        with pytest.raises(UserError, match=r"cannot be listed \(Access Denied\); allow s3:ListBucketMultipartUploads"):
            unfinished_uploads("s3://bucket/index")


@dataclass(frozen=True)
class Step:
    """One update of a made-up history, or a return to an older version."""

    adds: bool
    is_whole: bool
    learns: str
    """"", "tensors", "model" or "terms"."""
    back_to: int | None = None
    """Taken modulo the versions there are."""


STEPS = st.builds(
    Step,
    adds=st.booleans(),
    is_whole=st.booleans(),
    learns=st.sampled_from(["", "tensors", "model", "terms"]),
    back_to=st.none() | st.integers(0, 9),
)


def begin(index: Index) -> None:
    """Writes the files of an index that was never updated."""
    write(index, *(f"{folder}/part-000000.parquet" for folder in ("corpus", "docids", "queries")))
    write(index, "trie/meta.json", "retriever/config.json", "statistics/statistics.json")
    finish(index, "corpus", "docids", "queries", "trie", "retriever", "statistics")


def update(index: Index, step: Step) -> None:
    """Writes the files of an update as `zerogr update` does, and publishes its version."""
    before = Version.of(index.manifest())
    number = before.last + 1
    folder = folder_of(number)
    write(index, f"{folder}/update.json", f"{folder}/removed.parquet", f"{folder}/trie/meta.json")
    finish(Index(index.path(folder)), "trie")
    version = replace(
        before, number=number, last=number, removed=folder, base=folder if step.is_whole else before.base,
        addition=None if step.is_whole else folder,
    )  # fmt: skip
    if step.adds:
        write(index, *(f"{folder}/{each}/part-000000.parquet" for each in ("corpus", "docids", "queries", "rejected")))
        write(index, f"{folder}/{FREQUENCY}")
        layer = Layer(number=number, folder=folder, first_row=0, num_rows=1, shard_size=1)
        version = replace(version, layers=(*before.layers, layer))
    if step.learns:
        is_model = step.learns == "model"
        write(index, f"{folder}/sample-64.parquet")
        write(index, f"{folder}/retriever/{'config.json' if is_model else 'changed.safetensors'}")
        version = replace(version, kept=number, states=None, changes=None if is_model else f"{folder}/retriever")
        version = replace(version, retriever=f"{folder}/retriever") if is_model else version
        wanted = {"tensors": "statistics", "terms": "states"}.get(step.learns)
        if wanted:
            write(index, f"{folder}/{wanted}/arrays.bin")
            version = replace(version, **{wanted: f"{folder}/{wanted}"})
    propose(index, version)
    publish(index, number)


def files_of(version: Version) -> set[str]:
    """Returns the files that opening a version, and updating it, reads."""
    shards = {f"{layer.folder}/{each}/part-000000.parquet" for layer in version.layers for each in ("corpus", "docids")}
    shards |= {f"{layer.folder}/queries/part-000000.parquet" for layer in version.layers}
    found = shards | {f"{layer.folder}/{FREQUENCY}" for layer in version.layers[1:]}
    found |= {f"{version.base}/trie/meta.json", f"{version.retriever}/config.json"}
    found |= {f"{version.addition}/trie/meta.json"} if version.addition else set()
    found |= {f"{version.removed}/removed.parquet"} if version.removed else set()
    found |= {f"{version.changes}/changed.safetensors"} if version.changes else set()
    found |= {f"{each}/arrays.bin" for each in (version.statistics, version.states) if each}
    found |= {f"{folder_of(version.kept)}/sample-64.parquet"} if version.kept is not None else set()
    return {name.lstrip("/") for name in found} | {f"{folder_of(version.number)}/version.json"}


class TestOldVersions:
    @settings(max_examples=30, deadline=None)
    @given(steps=st.lists(STEPS, min_size=1, max_size=7), keep=st.integers(1, 4), has_begun=st.booleans())
    def test_every_kept_version_is_whole_and_nothing_else_stays(
        self, steps: list[Step], keep: int, has_begun: bool
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            index = Index(folder)
            begin(index)
            for step in steps:
                update(index, step)
                if step.back_to is not None:
                    publish(index, step.back_to % (Version.of(index.manifest()).last + 1))
            current = Version.of(index.manifest())
            begun = f"{folder_of(current.last + 1)}/corpus/part-000000.parquet"
            if has_begun:
                write(index, begun)
            others = [number for number in range(current.last, 0, -1) if number != current.number]
            numbers = {current.number, *others[: keep - 1], 0}
            versions = {number: Version.of(manifest_of(index, number)) for number in numbers}
            before = storage.list_files(index.uri)

            clean(index, keep_versions=keep)

            left = set(storage.list_files(index.uri))
            needed = set().union(*map(files_of, versions.values()))
            assert needed <= left
            assert {name for name in before if not name.startswith("versions/")} <= left
            own = {folder_of(number) for number in numbers}
            layers = {layer.folder for version in versions.values() for layer in version.layers}
            for name in left - needed:
                is_of_kept = name.startswith(tuple(f"{each}/" for each in own)) or name == begun
                is_of_layer = name.startswith(tuple(f"{each}/" for each in layers if each))
                is_state = name.split("/")[2:3] and name.split("/")[2].startswith(
                    ("trie", "retriever", "statistics", "states", "removed", "kept", "version")
                )
                assert not name.startswith("versions/") or is_of_kept or (is_of_layer and not is_state), name
            assert (begun in left) == has_begun
            assert clean(index, keep_versions=keep) == set(), "a second time there is nothing left to do"
            for number in set(range(1, current.last + 1)) - numbers:
                with pytest.raises(UserError, match=f"has no version {number}"):
                    manifest_of(index, number)

    def test_without_a_number_all_stay(self, index: Index) -> None:
        begin(index)
        for _ in range(3):
            update(index, Step(adds=True, is_whole=False, learns=""))
        assert find_leftovers(index) == []

    def test_interrupted_it_goes_on(self, index: Index) -> None:
        """The manifest of an old version goes first: nobody can open what is half gone, and the rest goes the next time."""
        begin(index)
        for _ in range(3):
            update(index, Step(adds=False, is_whole=True, learns="model"))
        found = find_leftovers(index, keep_versions=1)
        assert found[0].place == f"{folder_of(1)}/version.json"
        delete_leftover(index, found[0])
        clean(index, keep_versions=1)
        assert sorted(path.name for path in Path(index.path("versions")).iterdir()) == ["000000", "000003"]
