"""The table of collections: rows that stay, rows that are measured again, and several kinds in one index."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from benchmarks import experiments, quality
from tests import tiny
from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.store import storage


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
            "chain": "lexical", "hardware": "a", "commit": "b", "command": "c", "num_documents": 7, "num_pairs": 9,
            **dict.fromkeys(quality.COLUMNS, 0),
        }]})
    )  # fmt: skip
    rows = measured(data, tmp_path, ["adi"], monkeypatch)
    assert [(row["collection"], row["system"]) for row in rows] == [
        ("other", "other"), ("adi", "zerogr-beam"), ("adi", "bm25"),
    ]  # fmt: skip
    assert rows[1]["num_queries"] == 40 and rows[1]["recall@100"] == 1 and rows[1]["split"] == "test"
    shown = (tmp_path / "results.md").read_text()
    means = f"{rows[1]['acc@1']:.3f} | {rows[1]['ndcg@10']:.3f} | 1.000 | 40 |"
    assert f"| adi | 40 | {rows[1]['num_pairs']} | zerogr-beam | {means}" in shown
    assert "| other | 7 | 9 | other | 0.000 |" in shown

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


def experiment(title: str, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(
        sys, "argv", ["experiments", title, str(folder), "--command", "c", "--commit", "abc", "--out", str(out)]
    )
    experiments.main()
    found = {each["title"]: each for each in json.loads(out.with_suffix(".json").read_text())["experiments"]}
    assert found[title]["commit"] == "abc"
    assert found[title]["chain"] == "docids"
    return list(found[title]["rows"])


class TestExperiments:
    def test_of_an_ablation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        means = dict.fromkeys(quality.COLUMNS, 0.5)
        tested = {f"p of {metric}": 0.03 for metric in quality.METRICS}
        rows = [
            {"variant": "base", "system": "zerogr-beam", "strategy": "beam", **means, **tested},
            {"variant": "base", "system": "bm25", "strategy": None, **means, **tested},
            {"variant": "docids.scheme=title", "system": "zerogr-beam", "strategy": "beam", **means, **tested},
            {"variant": "docids.scheme=title", "system": "bm25", "strategy": None, **means, **tested},
        ]
        storage.write_parquet(str(tmp_path / "results.parquet"), pa.Table.from_pylist(rows))
        out = tmp_path / "out"
        for _ in range(2):  # written again, it is not there twice
            found = experiment("Docids", tmp_path, out, monkeypatch)
        assert [(row["system"], row["p of acc@1"]) for row in found] == [
            ("base, zerogr-beam", None), ("bm25", None), ("docids.scheme=title, zerogr-beam", 0.03),
        ]  # fmt: skip
        shown = out.with_suffix(".md").read_text()
        assert shown.count("## Docids") == 1
        assert "| docids.scheme=title, zerogr-beam | 0.500 (0.03) | 0.500 (0.03) | 0.500 (0.03) |" in shown
        assert "| bm25 | 0.500 | 0.500 | 0.500 |" in shown

    def test_of_an_evaluation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        means = dict.fromkeys(quality.COLUMNS, 0.25)
        tables = {
            "rows": [{"system": name, **means} for name in ("zerogr-beam", "zerogr-greedy")],
            "differences": [
                {"system": "zerogr-beam", "against": "zerogr-greedy", "metric": metric, "p": 0.5}
                for metric in quality.METRICS
            ],
        }
        (tmp_path / "metrics.json").write_text(json.dumps(tables))
        out = tmp_path / "out"
        (tmp_path / "out.json").write_text(json.dumps({"rows": [], "experiments": []}))
        found = experiment("Decoding", tmp_path, out, monkeypatch)
        assert [row["p of ndcg@10"] for row in found] == [None, 0.5]
        assert "| zerogr-greedy | 0.250 (0.5) |" in out.with_suffix(".md").read_text()

    def test_of_neither(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UserError, match=r"neither results.parquet nor metrics.json"):
            experiment("Nothing", tmp_path, tmp_path / "out", monkeypatch)
