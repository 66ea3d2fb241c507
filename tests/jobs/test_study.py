"""The dynamic study as a job: it runs, goes on, and says what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from tests import tiny


def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = tiny.write_collection(tmp_path / "collection")
    tree = tiny.settings(
        str(tmp_path / "index"), collection, tiny.save_model(tmp_path / "model"), docids__scheme="tfidf"
    )
    tree |= {
        "evaluation": {"dataset": str(collection)},
        "update": {"sample_size": 4, "patch_queries": 8},
        "study": {
            "out": str(tmp_path / "study"),
            "num_increments": 2,
            "grids": [{"update.method.name": ["none", "dome"]}],
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["study", "dynamic", str(tmp_path / "config.yaml"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["system"] for row in rows] == ["bm25", "none", "dome"]
    for row in rows:
        assert [step["added"] for step in row["steps"]] == [0, 2, 2]
        assert set(row["new_last"]) == {"hits@1", "hits@10", "hits@100", "mrr@10"}
        assert row["new_last"]["hits@100"] == 1.0, "nothing is lost: all documents are in the trie"
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert "A corpus that grows" in page and page.count("<svg ") > 4 and "layers 0" in page
    results = {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "results").iterdir()}
    assert main(["study", "dynamic", str(tmp_path / "config.yaml")]) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "results").iterdir()} == results
    assert "GA_n" in capsys.readouterr().out
