"""The documents of an index as a memory map: what reading them gives, in one file per machine, and none of it in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.search.answer import Documents
from zerogr.store import storage
from zerogr.trie import opened
from zerogr.trie.opened import DOCUMENTS, map_documents, read_documents

NUM_ROWS = 20_000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """With the docids of a corpus in three shards, and a cache of its own."""
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    index = Index(str(tmp_path / "index"))
    for shard, rows in enumerate(np.array_split(np.arange(NUM_ROWS), 3)):
        storage.write_parquet(index.shard("docids", shard), table_of(rows.tolist()))
    return index


def table_of(rows: list[int]) -> pa.Table:
    return pa.table(
        {"row_id": rows, "doc_id": [f"d{row}" for row in rows], "docid": [f"wing slipstream {row}" for row in rows]},
        schema=opened.DOCUMENTS_SCHEMA,
    )


def updated(index: Index) -> Version:
    """Returns a version with documents that were added to the base."""
    storage.write_parquet(index.path("versions/000001/trie", DOCUMENTS), table_of(list(range(NUM_ROWS, NUM_ROWS + 10))))
    return Version(number=1, addition="versions/000001")


def test_a_map_holds_what_is_read(index: Index) -> None:
    for version in (Version(), updated(index)):
        mapped, read = map_documents(index, version), read_documents(index, version)
        assert mapped.equals(read)
        assert all(column.num_chunks == 1 for column in mapped.columns)


def test_documents_are_named_without_being_loaded(index: Index) -> None:
    map_documents(index, Version())
    before = pa.total_allocated_bytes()
    documents = Documents.of(map_documents(index, Version()), np.empty(0, np.int64))
    assert pa.total_allocated_bytes() - before < NUM_ROWS, "less than a byte for a document"
    assert documents.names(12_345) == ("d12345", "wing slipstream 12345")
    assert documents.rows_of(["d7", "d19999", "nobody"]).tolist() == [7, 19_999]


def test_the_second_time_nothing_is_read(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    first = map_documents(index, Version())

    def refuse(*_: Any) -> None:
        raise AssertionError("the Parquet files were read again")

    monkeypatch.setattr(opened, "read_documents", refuse)
    assert map_documents(index, Version()).equals(first)


def test_docids_that_were_published_anew_are_mapped_anew(index: Index) -> None:
    map_documents(index, Version())
    shard = index.shard("docids", 0)
    storage.write_parquet(shard, table_of(list(range(100, 200))))
    os.utime(shard, (1, 1))
    assert map_documents(index, Version()).equals(read_documents(index, Version()))


def test_an_index_without_a_docid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    index = Index(str(tmp_path / "index"))
    storage.write_parquet(index.shard("docids", 0), opened.DOCUMENTS_SCHEMA.empty_table())
    assert len(Documents.of(map_documents(index, Version()), np.empty(0, np.int64))) == 0
