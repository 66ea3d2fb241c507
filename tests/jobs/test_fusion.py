"""The scheme fusion from a corpus to an answer: its model is trained under Ray Train and names every document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from tests import tiny
from tests.published import files, rows
from zerogr.index.index import Index

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def test_from_a_corpus_to_an_answer(
    collection: Path, tiny_model: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    index, config = str(tmp_path / "index"), tmp_path / "config.yaml"
    docids = {
        "docids__scheme": "fusion", "docids__model": str(tiny_model), "docids__learning_rate": 3e-3,
        "docids__group_size": 8, "docids__num_latents": 2, "training__num_epochs": 1,
    }  # fmt: skip
    config.write_text(yaml.safe_dump(tiny.settings(index, collection, tiny_model, **docids)))
    assert main(["index", str(config)]) == 0
    counts = Index(index).require("scheme").counts
    assert counts["examples"] + counts["held_out"] == 20 and counts["steps"] == 10
    found = {row["doc_id"]: row for row in rows(index, "docids")}
    assert len(found) == 40 == len({row["docid"] for row in found.values()})
    assert {row["source"] for row in found.values()} <= {"lm", "repaired", "resolved"}
    assert Path(index, "scheme", "bridge.safetensors").is_file() and not Path(index, "work", "scheme").exists()

    capsys.readouterr()
    assert main(["search", index, "what about the history of coffee", "-k", "40", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["doc_id"]: hit["docid"] for hit in hits} == {doc_id: row["docid"] for doc_id, row in found.items()}

    before = files(index)
    assert main(["index", str(config)]) == 0
    assert files(index) == before

    # New documents are named by the model that the index has.
    new = [{**row, "_id": f"new-{i}", "text": f"{row['text']} Again."} for i, row in enumerate(tiny.documents()[:3])]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    assert main(["update", index, "--add", str(tmp_path / "new.jsonl"), "--set", "update.max_forgetting=1"]) == 0
    added = {row["doc_id"]: row["docid"] for row in rows(f"{index}/versions/000001", "docids")}
    assert added.keys() == {"new-0", "new-1", "new-2"}
    assert not set(added.values()) & {row["docid"] for row in found.values()}

    # Docids made again are the same, and by the same model.
    assert main(["docids", str(config), "--rebuild", "docids"]) == 0
    assert files(index, "scheme") == {name: file for name, file in before.items() if name.startswith("scheme/")}
    assert {row["doc_id"]: row["docid"] for row in rows(index, "docids")} == {
        doc_id: row["docid"] for doc_id, row in found.items()
    }
    assert main(["scheme", str(config), "--set", "docids.beta=0"]) == 2
    assert "docids.beta (30.0 there, 0.0 now)" in capsys.readouterr().err


def test_a_scheme_without_a_fit_has_no_such_stage(
    collection: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny.settings(str(tmp_path / "index"), collection, tiny_model)))
    assert main(["scheme", str(config)]) == 2
    assert (
        "docids.scheme keywords makes nothing of the whole corpus; go on with `zerogr docids`"
        in capsys.readouterr().err
    )
