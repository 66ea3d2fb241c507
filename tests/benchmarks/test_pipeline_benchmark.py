"""The pipeline benchmark: a check that finds nothing is worth something only if it would find what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import pipeline
from zerogr.docids.resolve import key_of
from zerogr.docids.stage import FOLDER, PROPOSAL_SCHEMA
from zerogr.index.index import Index
from zerogr.store import storage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3,000 proposals in three shards."""
    path = tmp_path_factory.mktemp("proposals")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "PROPOSAL_SHARD", 1000)
        patched.setattr(pipeline, "DOCUMENTS_PER_TOPIC", 3000)
        patched.setattr(pipeline, "DUPLICATES", 0.05)
        patched.setattr(pipeline, "ZIPF_EXPONENT", 2.0)
        for piece in range(3):
            pipeline.write_proposals(str(path), 3000, piece)
    return str(path)


def test_proposals_are_what_the_stage_would_write(folder: str) -> None:
    tables = [storage.read_parquet(Index(folder).shard(FOLDER, piece)) for piece in range(3)]
    assert all(table.schema.remove_metadata() == PROPOSAL_SCHEMA for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["row_id"] for row in rows] == list(range(3000))
    for row in rows:
        assert row["keys"] == [key_of(candidate) for candidate in row["candidates"]]
        assert set(row["candidates"][0].split(" ")) <= set(row["own"])
    num_duplicates = len(rows) - len({row["content"] for row in rows})
    assert 0.03 < num_duplicates / len(rows) < 0.07


def test_resolution_leaves_no_collision_and_the_check_would_see_one(folder: str) -> None:
    runs = [pipeline.resolve_all(folder, num_workers) | pipeline.published(folder) for num_workers in (1, 2)]
    assert runs[0]["digest"] == runs[1]["digest"]
    counts = runs[0]["counts"]
    assert counts == runs[1]["counts"]
    assert min(counts[f"resolved_by_{way}"] for way in ("candidate", "terms", "ordinal")) > 0
    assert (runs[0]["collisions_left"], runs[0]["duplicates_apart"]) == (0, 0)

    place = Index(folder).shard("docids", 1)
    rows = storage.read_parquet(place).to_pylist()
    contents = storage.read_parquet(Index(folder).shard(FOLDER, 1), ["content"]).column("content").to_pylist()
    alone = [i for i, content in enumerate(contents) if contents.count(content) == 1][:2]
    rows[alone[0]]["docid"] = rows[alone[1]]["docid"]
    storage.write_parquet(place, pa.Table.from_pylist(rows))
    spoilt = pipeline.published(folder)
    assert spoilt["collisions_left"] == 1
    assert spoilt["digest"] != runs[0]["digest"]


def test_documents_are_json_lines(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    pipeline.write_documents(str(tmp_path), 20, 0)
    rows = [json.loads(line) for line in (tmp_path / "corpus" / "000000.jsonl").read_text().splitlines()]
    assert [row["_id"] for row in rows] == [str(row) for row in range(20)]
    assert all(len(row["title"].split()) == 6 and len(row["text"].split()) == 61 for row in rows)
