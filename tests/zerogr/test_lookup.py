"""Reading documents from the corpus by their row."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from zerogr.corpus import lookup
from zerogr.corpus.lookup import Lookup
from zerogr.corpus.publishing import SCHEMA
from zerogr.errors import Fault
from zerogr.index.index import Index
from zerogr.index.versions import Layer, Version
from zerogr.store import storage

LAYERS = (
    Layer(number=0, folder="", first_row=0, num_rows=10, shard_size=4),
    Layer(number=2, folder="versions/000002", first_row=10, num_rows=5, shard_size=2),
)


def row_of(row_id: int) -> dict[str, object]:
    return {
        "row_id": row_id, "doc_id": f"d{row_id}", "title": f"title {row_id}", "text": f"text {row_id}" * 100,
        "kind": "text", "metadata": f'{{"row": {row_id}}}',
    }  # fmt: skip


def write_corpus(uri: str) -> None:
    index = Index(uri)
    for layer in LAYERS:
        rows = range(layer.first_row, layer.first_row + layer.num_rows)
        for shard, begin in enumerate(range(0, layer.num_rows, layer.shard_size)):
            table = pa.Table.from_pylist([row_of(row) for row in rows[begin : begin + layer.shard_size]], schema=SCHEMA)
            storage.write_parquet(index.path(layer.folder, "corpus", f"part-{shard:06d}.parquet"), table)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that are read."""
    read: list[str] = []
    original = storage.read_parquet

    def noted(uri: str, columns: list[str] | None = None) -> pa.Table:
        read.append(uri)
        return original(uri, columns)

    monkeypatch.setattr(storage, "read_parquet", noted)
    return read


def lookup_of(uri: str) -> Lookup:
    write_corpus(uri)
    return Lookup(Index(uri), Version(layers=LAYERS))


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_every_row_of_every_layer_and_each_shard_once(
    place: str, s3_server: str, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the shards of one call are more than are read at a time, and none of them is kept."""
    monkeypatch.setattr(lookup, "AT_ONCE", 2)
    monkeypatch.setattr(lookup, "KEPT_BYTES", 0)
    corpus = lookup_of(str(tmp_path) if place == "disk" else f"s3://zerogr/{tmp_path.name}")
    wanted = [14, 0, 9, 1, 14, 12, 3, 10, 4]
    assert [row["doc_id"] for row in corpus.read(wanted)] == [f"d{row}" for row in wanted]
    assert len(reads) == len(set(reads)) == 6
    assert corpus.read(range(15), ["title", "metadata"]) == [
        {"title": f"title {row}", "metadata": f'{{"row": {row}}}'} for row in range(15)
    ]
    assert corpus.read([]) == []


def test_shards_are_kept_up_to_a_size(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = lookup_of(str(tmp_path))
    corpus.read([0, 10])
    corpus.read([3, 11])
    assert len(reads) == 2
    of_one = corpus._num_bytes // 2
    monkeypatch.setattr(lookup, "KEPT_BYTES", 4 * of_one)
    for _ in range(3):
        corpus.read(range(15))
        assert 0 < corpus._num_bytes <= 4 * of_one
        assert corpus._num_bytes == sum(table.nbytes for table in corpus._kept.values())


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    corpus = lookup_of(str(tmp_path))
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(Fault, match=r"corpus/part-000001.parquet' is missing, and what its documents say with it"):
        corpus.read([5])
