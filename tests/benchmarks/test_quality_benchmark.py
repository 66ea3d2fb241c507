"""The table of collections: rows that stay, rows that are measured again, and several kinds in one index."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import quality
from tests import tiny
from zerogr.corpus.collection import Collection


def measured(data: Path, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs the benchmark; returns the rows of its file."""
    command = ["quality", str(data), "--collections", *names, "--work", str(tmp_path / "work")]
    command += ["--config", str(tmp_path / "config.yaml"), "--baselines", "bm25", "--out", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", command)
    quality.main()
    return json.loads((tmp_path / "results.json").read_text())["rows"]


@pytest.mark.integration
def test_rows_of_other_collections_stay(
    collection: Path, tiny_model: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(collection, data / "adi")
    tree = tiny.settings("unused", collection, tiny_model, evaluation__strategies=["beam"], evaluation__k=40)
    del tree["index"], tree["instruction"], tree["corpus"]["source"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "results.json").write_text(
        json.dumps({"rows": [dict.fromkeys(["collection", "split", "system"], "other") | {
            "hardware": "a", "commit": "b", "command": "c", **dict.fromkeys(quality.COLUMNS, 0),
        }]})
    )  # fmt: skip
    rows = measured(data, tmp_path, ["adi"], monkeypatch)
    assert [(row["collection"], row["system"]) for row in rows] == [
        ("other", "other"), ("adi", "zerogr-beam"), ("adi", "bm25"),
    ]  # fmt: skip
    assert rows[1]["num_queries"] == 40 and rows[1]["recall@100"] == 1 and rows[1]["split"] == "test"
    shown = (tmp_path / "results.md").read_text()
    assert f"| adi | zerogr-beam | {rows[1]['acc@1']:.3f} | {rows[1]['ndcg@10']:.3f} | 1.000 | 40 |" in shown
    assert "| other | other | 0.000 |" in shown

    again = measured(data, tmp_path, ["adi"], monkeypatch)
    assert [{**row, "command": None} for row in again] == [{**row, "command": None} for row in rows]


def test_mixed_collection_keeps_ids_apart_and_instructions(collection: Path, tmp_path: Path) -> None:
    for name in quality.MIXED:
        shutil.copytree(collection, tmp_path / name)
        split = quality.COLLECTIONS[name][0]
        (tmp_path / name / "qrels" / "test.tsv").rename(tmp_path / name / "qrels" / f"{split}.tsv")
    quality.write_mixed(tmp_path, tmp_path / "mixed")
    rows = [json.loads(line) for line in (tmp_path / "mixed" / "corpus.jsonl").read_text().splitlines()]
    assert len({row["_id"] for row in rows}) == 120
    mixed = Collection.load(str(tmp_path / "mixed"))
    assert len(mixed.queries) == 120
    for query_id, query in mixed.queries.items():
        name, _, own = query_id.partition("-")
        assert query.instruction == quality.COLLECTIONS[name][1]
        number = int(own.removeprefix("q"))
        assert mixed.qrels[query_id] == {f"{name}-{tiny.documents()[number]['_id']}": 1}
