"""The examples of docs/extending.md: a scheme, a ranker, a loss, an engine and a strategy of somebody else's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny

ROOT = Path(__file__).parents[2]
MOST_LINES = 40


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's examples as modules."""
    folder = tmp_path_factory.mktemp("extending")
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        assert len(code.splitlines()) <= MOST_LINES, name
        (folder / name).write_text(code)
    return folder


@pytest.fixture(scope="module")
def index(examples: Path, collection: Path, tiny_model: Path) -> str:
    """An index made with all of them."""
    tree = tiny.settings(
        str(examples / "index"),
        collection,
        tiny_model,
        docids__scheme="my_scheme:Longest",
        docids__max_words=4,
        queries__engine="my_engine:Questions",
        training__loss={"name": "my_loss:Focal", "gamma": 1.5},
        ranking__name="my_ranker:PerWord",
        evaluation={"dataset": str(collection), "strategies": ["beam"], "baselines": []},
    )
    (examples / "config.yaml").write_text(yaml.safe_dump(tree))
    run(examples, "-m", "jobs.cli", "index", str(examples / "config.yaml"))
    return str(examples / "index")


def run(examples: Path, *arguments: str) -> str:
    """Runs Python where the examples can be imported; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": f"{examples}{os.pathsep}{ROOT}"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=examples, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_corpus_to_an_evaluation(examples: Path, index: str, collection: Path) -> None:
    manifest = json.loads((Path(index) / "index.json").read_text())
    assert manifest["stages"]["docids"]["inputs"]["docids.max_words"] == 4
    assert manifest["stages"]["retriever"]["inputs"]["training.loss"] == {"name": "my_loss:Focal", "gamma": 1.5}
    assert manifest["stages"]["retriever"]["counts"]["loss"] > 0
    command = (
        "-m",
        "jobs.cli",
        "evaluate",
        index,
        "--dataset",
        str(collection),
        "--strategy",
        "beam",
        "--baseline",
        "--json",
    )
    [row] = json.loads(run(examples, *command))["rows"]
    assert row["num_queries"] == 40 and 0 < row["recall@100"] <= 1


def test_search_and_explain(examples: Path, index: str) -> None:
    found = json.loads(run(examples, "-m", "jobs.cli", "search", index, "the history of coffee", "--json"))["hits"]
    assert len(found) == 10 and all(len(hit["docid"].split()) <= 4 for hit in found)
    assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)
    wanted = found[3]["doc_id"]
    arguments = ("-m", "jobs.cli", "explain", index, "the history of coffee", "--doc", wanted, "--json")
    told = json.loads(run(examples, *arguments))
    assert told["wanted"]["doc_id"] == wanted
    log_prob = sum(token["log_prob"] for token in told["wanted"]["tokens"])
    assert told["wanted"]["score"] == pytest.approx(log_prob / len(found[3]["docid"].split()), abs=1e-2)


def test_a_strategy_by_name(examples: Path, index: str) -> None:
    code = f"""
import my_strategy
from zerogr import Retriever
[plain], [wide] = (
    Retriever.load({index!r}).search(["rope"], k=3, strategy=name) for name in ("best_first", "wide_beam")
)
print([hit.doc_id for hit in plain] == [hit.doc_id for hit in wide])
"""
    assert run(examples, "-c", code).strip() == "True"


def test_a_method_of_updating(examples: Path, index: str) -> None:
    (examples / "new.jsonl").write_text(
        json.dumps({"_id": "new", "text": "Quicksilver thermometers of the polar expedition."})
    )
    settings = [
        "--set",
        "update.method={name: my_method:Fade, factor: 0.5}",
        "--set",
        "update.max_forgetting=1",
        "--json",
    ]
    command = ("-m", "jobs.cli", "update", index, "--add", str(examples / "new.jsonl"), *settings)
    done = json.loads(run(examples, *command))
    assert (done["version"], done["added"], done["method"]["method"]) == (1, 1, "my_method:Fade")
    assert (Path(index) / "versions" / "000001" / "retriever" / "changed.safetensors").exists()
