"""An index that updates of the tests start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from jobs import index as index_job
from tests import tiny
from zerogr.config.file import load_config


@pytest.fixture(scope="session")
def before_updates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished index of the first 32 documents, and files of the others."""
    folder = tmp_path_factory.mktemp("update")
    rows = tiny.documents()
    collection = tiny.write_collection(folder / "collection", rows[:32])
    for number, row in enumerate(rows[32:]):
        (folder / f"new-{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[32:]), encoding="utf-8")
    model = tiny.save_model(folder / "model")
    tree = tiny.settings(str(folder / "index"), collection, model, training__num_epochs=12, docids__scheme="tfidf")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    index_job.run(load_config(str(folder / "config.yaml")))
    return folder


@pytest.fixture
def place(before_updates: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for file in before_updates.glob("new*.jsonl"):
        shutil.copy(file, tmp_path)
    shutil.copytree(before_updates / "index", tmp_path / "index")
    return tmp_path
