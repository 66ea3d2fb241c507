"""A generator is fine-tuned, named in a configuration, and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from tests import tiny
from zerogr.index.index import Index

pytestmark = [pytest.mark.integration]


def test_docid_generator_is_trained_and_used(
    collection: Path, tiny_model: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    generators = tmp_path / "generators"
    tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
    tree["tuning"] = {
        "model": str(tiny_model),
        "out": str(generators),
        "num_epochs": 3,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "tasks": [{"name": "tiny", "source": str(collection), "instruction": "Find the text that answers."}],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["train", str(config), "--recipe", "docid_generator"]) == 0
    counts = Index(str(generators)).require("docid_generator").counts
    assert counts["examples"] + counts["held_out"] == 20 and counts["steps"] == 15
    assert (generators / "docid_generator" / "model.safetensors").is_file()
    assert not list(generators.rglob("work/docid_generator/*"))  # no checkpoint stays behind

    capsys.readouterr()
    assert main(["status", str(generators), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "docid_generator": "done",
        "query_generator": "not begun",
    }
    assert main(["train", str(config), "--recipe", "docid_generator"]) == 0  # done before
    assert main(["train", str(config), "--recipe", "query_generator"]) == 2  # no judged queries
    assert "'tiny' names no judged queries" in capsys.readouterr().err
    assert main(["train", str(config), "--recipe", "docid_generator", "--set", "tuning.num_epochs=1"]) == 2
    assert "tuning.num_epochs (3 there, 1 now)" in capsys.readouterr().err
    assert main(["corpus", str(config), "--set", f"index={generators}"]) == 2
    assert "holds generators; give an index a folder of its own: set index" in capsys.readouterr().err

    tuned = ["--set", "docids.engine=transformers", "--set", f"docids.model={generators / 'docid_generator'}"]
    for stage in ("corpus", "docids"):
        assert main([stage, str(config), *tuned]) == 0
    assert Index(str(tmp_path / "index")).require("docids").counts["rows"] == 40
