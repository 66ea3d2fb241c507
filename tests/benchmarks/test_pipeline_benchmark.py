"""The pipeline benchmark: a check that finds nothing is worth something only if it would find what there is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import pipeline, stages, synthetic
from zerogr.corpus.document import Document
from zerogr.corpus.readers import read_corpus
from zerogr.docids.resolve import key_of
from zerogr.docids.stage import FOLDER, PROPOSAL_SCHEMA
from zerogr.index.index import Index
from zerogr.store import storage

EXTRA = ("examples", "mapped_s", "loaded_s", "first_search_s", "later_search_s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3,000 proposals in three shards."""
    path = tmp_path_factory.mktemp("proposals")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(synthetic, "PIECE", 1000)
        patched.setattr(synthetic, "DOCUMENTS_PER_TOPIC", 3000)
        patched.setattr(synthetic, "DUPLICATES", 0.05)
        patched.setattr(synthetic, "ZIPF_EXPONENT", 2.0)
        for piece in range(3):
            synthetic.write_proposals(str(path), 3000, piece)
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


def test_documents_are_in_three_scripts_with_duplicates_and_garbage(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for piece in range(2):
        synthetic.write_documents(str(tmp_path), 14_000, piece)
    config = pipeline.config_of(str(tmp_path), shard_size=100).corpus
    rows = list(read_corpus(config))
    documents = [row for row in rows if isinstance(row, Document)]
    assert len(rows) - len(documents) + sum(doc.text.endswith("of the same name") for doc in documents) == 14
    assert synthetic.num_garbage(14_000) == 14
    usable = {row.doc_id: row for row in reversed(documents)}  # of two with one name the first
    assert list(map(int, sorted(usable, key=int))) == list(range(14_000))
    lengths = {len(row.text.split()) for row in usable.values()}
    assert lengths == {61, 2}  # Han stands without spaces
    cyrillic = sum(any("\u0430" <= letter <= "\u044f" for letter in row.text) for row in usable.values())
    assert 600 < cyrillic < 800
    assert 50 < 14_000 - len({(row.title, row.text) for row in usable.values()}) < 250


def test_an_ended_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is not done again, seconds are counted on, and only the figures are kept."""
    monkeypatch.setattr(pipeline, "SMALLEST", 20)
    monkeypatch.setattr(pipeline, "COMPARED", 20)
    folder = tmp_path / "20"
    folder.mkdir()
    finished = {stage: {"seconds": 1.0, "all_bytes": 5, "driver_bytes": 4} for stage in stages.STAGES[:-2]}
    (folder / stages.FIGURES).write_text(json.dumps(finished))
    monkeypatch.setattr(stages, "LOOK_EVERY_S", 0.01)
    (folder / "opening.watch.json").write_text(json.dumps({"seconds": 1000.0, "all_bytes": 1}))
    begun = []
    for name in ("_examples", "_opening"):
        monkeypatch.setattr(stages, name, lambda _, name=name: begun.append(name) or dict.fromkeys(EXTRA, 1.0))
    monkeypatch.setattr(stages, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(pipeline, "in_fresh_process", lambda function, *arguments: function(*arguments))
    found = pipeline.pipeline(20, tmp_path)
    assert begun == ["_examples", "_opening"]
    assert (found["corpus_documents_per_s"], found["corpus_share_of_rate"]) == (20.0, 1.0)
    assert [row["stage"] for row in found["stages"]] == list(stages.STAGES)
    assert 1000 <= found["stages"][-1]["seconds"] < 1060
    assert found["stages"][-1]["all_bytes"] > 2**20  # this process alone
    assert [path.name for path in folder.iterdir()] == [stages.FIGURES]
    begun.clear()
    assert pipeline.pipeline(20, tmp_path) == found
    assert not begun


def test_sizes() -> None:
    assert pipeline.sizes(5_000) == [5_000]
    assert pipeline.sizes(1_000_000) == [10_000, 100_000, 1_000_000]
    assert pipeline.sizes(2_000_000) == [10_000, 100_000, 1_000_000, 2_000_000]
