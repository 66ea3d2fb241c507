"""A model is pre-trained on links, killed on the way, and named as the retriever of an index."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from jobs.cli import main
from tests import tiny
from tests.processes import kill_with_descendants, running
from zerogr.index.index import Index
from zerogr.index.stage import PRETRAINED
from zerogr.store import storage

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 400
LATEST = f"{PRETRAINED.work[0]}/checkpoints/latest.json"


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with links: each article to the next two on its topic, and to the one after."""
    rows: list[dict[str, Any]] = []
    documents = tiny.documents()
    for number, row in enumerate(documents):
        topic = [each["_id"] for each in documents if each["_id"].split("-")[0] == row["_id"].split("-")[0]]
        place = number % len(topic)
        rows.append(
            {
                "_id": row["_id"],
                "title": row["title"] or row["text"].split(":")[0],
                "sections": [
                    {"text": row["text"], "links": [topic[(place + 1) % 8]]},
                    {"links": [topic[(place + 2) % 8]]},
                ],
                "see_also": [topic[(place + 3) % 8]],
            }
        )
    path = tmp_path_factory.mktemp("articles") / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path, articles: Path, collection: Path, model: Path) -> tuple[Path, str]:
    """Writes a configuration that pre-trains and indexes below a folder; returns where the model goes, and its path."""
    folder.mkdir()
    tree = tiny.settings(str(folder / "index"), collection, model)
    tree["pretraining"] = {"model": str(model), "source": str(articles), "out": str(folder / "pretraining")}
    tree["training"] |= {"num_epochs": 10, "batch_size": 8, "checkpoint_every": 5, "evaluate_every": 100}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "pretraining", str(folder / "config.yaml")


def test_is_killed_and_resumed_and_an_index_begins_with_it(
    articles: Path,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, whole_config = write(tmp_path / "whole", articles, collection, tiny_model)
    torn, torn_config = write(tmp_path / "torn", articles, collection, tiny_model)
    assert main(["pretrain", whole_config]) == 0
    counts = Index(str(whole)).require("pretrained").counts
    assert counts["examples"] + counts["held_out"] == 40 and counts["steps"] == 50
    lines = [json.loads(line) for line in (whole / "work" / "runs" / "pretrained.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]

    latest, deadline = storage.join(str(torn), LATEST), time.monotonic() + DEADLINE_S
    with running("jobs.pretrain", torn_config, log=tmp_path / "driver.log") as driver:
        while not storage.exists(latest):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        kill_with_descendants(driver.pid)
        assert driver.wait() == -signal.SIGKILL
    assert 0 < storage.read_json(latest)["step"] < 50
    assert Index(str(torn)).begun() == ["pretrained"] and not (torn / "pretrained").exists()
    assert main(["pretrain", torn_config, "--set", "pretraining.max_links=3"]) == 2
    assert "pretraining.max_links (32 there, 3 now)" in capsys.readouterr().err
    assert main(["pretrain", torn_config]) == 0
    expected, resumed = (load_file(each / "pretrained" / "model.safetensors") for each in (whole, torn))
    assert all((resumed[name] == expected[name]).all() for name in expected)
    assert not list(torn.rglob("work/pretrained/*"))

    assert main(["pretrain", torn_config]) == 0  # done before
    capsys.readouterr()
    assert main(["status", str(torn), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {"pretrained": "done"}

    begun = ["--set", f"retriever.model={torn / 'pretrained'}", "--set", "training.num_epochs=1"]
    assert main(["index", torn_config, *begun]) == 0
    index = str(tmp_path / "torn" / "index")
    assert (
        Index(index).require("retriever").inputs["retriever.model"]
        != Index(str(torn)).require("pretrained").inputs["pretraining.model"]
    )
    capsys.readouterr()
    assert main(["search", index, "what about the history of coffee", "-k", "40", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 40


def test_a_corpus_without_links_ends_with_one_sentence(
    collection: Path, tiny_model: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "title": row["_id"]} for row in tiny.documents()]  # as BEIR has them
    source = tiny.write_collection(tmp_path / "titled", rows) / "corpus.jsonl"
    out, config = write(tmp_path / "run", source, collection, tiny_model)
    assert main(["pretrain", config]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        last.startswith("zerogr: pretrained: pretraining.source")
        and "none with a first section links to others" in last
    )
    assert Index(str(out)).begun() == []  # the same command with another source is not refused
