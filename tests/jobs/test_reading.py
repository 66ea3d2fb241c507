"""The corpus job over Ray Data: what many readers publish is what one stream publishes."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import jobs.corpus
from tests.published import contents, files
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus import splits
from zerogr.corpus.stage import FREQUENCY
from zerogr.corpus.survey import FOLDER
from zerogr.errors import Fault, UserError
from zerogr.index.index import Index, StageRecord
from zerogr.store import storage

NUM_DOCUMENTS = 90
FOLDERS = ("corpus", "rejected")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of JSON Lines; every tenth doc_id is that of another row, and one row is none."""
    rows = [{"_id": f"d{i - i % 10 // 9}", "text": f"text of document {i}"} for i in range(NUM_DOCUMENTS)]
    lines = [json.dumps(row) for row in rows]
    lines[50] = "no JSON"
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus.jsonl"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte is a large source, which is cut into many parts."""
    monkeypatch.setattr(splits, "SMALL_BYTES", 1000)
    monkeypatch.setattr(splits, "SPLIT_BYTES", 700)


def config_of(folder: Path, source: Path, *, readers: int, **corpus: Any) -> Config:
    tree = {
        "index": str(folder),
        "corpus": {"source": str(source), "shard_size": 7, **corpus},
        "compute": {"num_reading_workers": readers, "max_rejected_fraction": 0.5},
    }
    return validate_config(tree)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are read one after the other in this process, by workers that could have been sent to another."""

    def run_here(stage: str, index: Index, pending: dict[int, int], total: int, make: Any, *_: Any, **__: Any) -> None:
        assert stage == "corpus" and sum(pending.values()) <= total
        worker = pickle.loads(pickle.dumps(make))()
        for split in pending:
            worker(split)

    monkeypatch.setattr(jobs.corpus, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(jobs.corpus, "run_pending", run_here)


def assert_many_are_one(folder: Path, source: Path) -> StageRecord:
    """Reads a source by one and by several, whose driver dies at the end of the first run; returns the record of the latter."""
    one = config_of(folder / "one", source, readers=1)
    expected = jobs.corpus.run(one)
    many = config_of(folder / "many", source, readers=2)

    def die(*_: Any) -> None:
        raise Fault("the driver has died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.corpus, "finish_corpus", die)
        with pytest.raises(Fault, match="died"):
            jobs.corpus.run(many)
    index = Index(many.index)
    assert index.begun() == ["corpus"] and storage.list_files(index.path(FOLDER))
    before = files(many.index)
    record = jobs.corpus.run(many)
    assert record.counts == expected.counts
    assert contents(many.index, *FOLDERS) == contents(one.index, *FOLDERS)
    frequencies = [storage.read_bytes(Index(config.index).path(FREQUENCY)) for config in (one, many)]
    assert frequencies[0] == frequencies[1]
    assert not storage.list_files(index.path(FOLDER))
    after = files(many.index)
    assert all(after[name] == before[name] for name in after if name.startswith("corpus/"))
    assert jobs.corpus.run(many).counts == record.counts and files(many.index) == after
    return record


def test_many_readers_are_one_stream(tmp_path: Path, source: Path, large: None, without_ray: None) -> None:
    assert_many_are_one(tmp_path, source)


@pytest.mark.integration
def test_many_readers_on_ray_are_one_stream(tmp_path: Path, source: Path, large: None, local_ray: None) -> None:
    record = assert_many_are_one(tmp_path, source)
    assert record.effort["rows"] == record.counts["rows"]


def test_a_mistake_binds_nobody(tmp_path: Path, source: Path, large: None, without_ray: None) -> None:
    config = config_of(tmp_path / "index", source, readers=2, doc_id_column="key")
    with pytest.raises(UserError, match="has no column 'key'; it has _id, text"):
        jobs.corpus.run(config)
    assert Index(config.index).begun() == []
    assert jobs.corpus.run(config_of(tmp_path / "index", source, readers=2)).counts["rows"] > 0


def test_a_small_source_is_read_here(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.corpus, "run_pending", None)
    assert jobs.corpus.run(config_of(tmp_path / "index", source, readers=8)).counts["rows"] > 0


@pytest.mark.parametrize(
    ("readers", "cores", "address", "source", "index", "can"),
    [
        (0, 2, "", "/data/corpus.jsonl", "/data/index", True),
        (0, 1, "", "/data/corpus.jsonl", "/data/index", False),
        (1, 8, "", "/data/corpus.jsonl", "/data/index", False),
        (3, 1, "", "/data/corpus.jsonl", "/data/index", True),
        (0, 1, "ray://head", "/data/corpus.jsonl", "memory://index", False),  # the nodes do not see the driver's disk
        (0, 1, "ray://head", "/shared/corpus.jsonl", "/shared/index", True),
        (0, 1, "ray://head", "memory://corpus.jsonl", "memory://index", True),
    ],
)
def test_who_can_help(
    readers: int, cores: int, address: str, source: str, index: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(jobs.corpus, "num_cores", lambda: cores)
    tree = {"index": index, "corpus": {"source": source}, "compute": {"num_reading_workers": readers}}
    parts = splits.Splits("jsonl", [splits.SourceFile(source, 1, "")], [[], []], [1, 1])
    assert jobs.corpus._can_share(validate_config(tree), parts) is can
