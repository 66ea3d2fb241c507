"""The scheme kmeans from a corpus to an answer: vectors, a tree of clusters, tokens of its own, training and search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from tests import tiny
from tests.published import rows
from zerogr import Retriever
from zerogr.docids.stage import SPARE_CODES
from zerogr.index.index import Index
from zerogr.llm.models import load_tokenizer
from zerogr.store import storage

pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None) -> Any:
    """The configuration of an index that is built."""
    folder = tmp_path_factory.mktemp("kmeans")
    docids = {"docids__scheme": "kmeans", "docids__branching": 4, "docids__leaf_size": 4}
    tree = tiny.settings(str(folder / "index"), with_an_empty_end(collection, folder), tiny_model, **docids)
    tree["training"]["num_epochs"] = 6
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["index", str(folder / "config.yaml")]) == 0
    return tree


def with_an_empty_end(collection: Path, folder: Path) -> Path:
    """Returns a copy whose last rows are rejected: forty documents fill five shards, and a sixth one has none."""
    shutil.copytree(collection, folder / "collection")
    with (folder / "collection" / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "nothing", "title": "", "text": " "}) + "\n")
    return folder / "collection"


def test_a_shard_without_documents_stops_nothing(settings: Any) -> None:
    index = Index(settings["index"])
    assert index.rows_of_shards()[5] == 0
    assert all(storage.parquet_num_rows(index.shard(folder, 5)) == 0 for folder in ("embeddings", "docids", "queries"))


def test_docids_are_paths_and_near_documents_begin_alike(settings: Any) -> None:
    docids = {row["doc_id"]: row["docid"].split(" ") for row in rows(settings["index"], "docids")}
    assert len({tuple(path) for path in docids.values()}) == 40
    assert all(code.isdigit() for path in docids.values() for code in path)
    record = Index(settings["index"]).record("docids")
    assert record is not None
    codes = record.counts["codes"]
    used = [
        1 + max(int(path[level]) for path in docids.values() if len(path) > level) for level in range(len(codes) - 1)
    ]
    assert codes == [used[0], *(number + SPARE_CODES for number in used[1:]), SPARE_CODES + 2]
    firsts = [[docids[f"{topic}-{i}"][0] for i in range(8)] for topic in tiny.TOPICS]
    assert sum(max(map(first.count, first)) for first in firsts) > 25  # of 40; by chance alone about 15


def test_codes_are_tokens_of_the_retriever(settings: Any, tiny_model: Path) -> None:
    before, after = (len(load_tokenizer(folder)) for folder in (str(tiny_model), f"{settings['index']}/retriever"))
    record = Index(settings["index"]).record("docids")
    assert record is not None and after - before == sum(record.counts["codes"])


def test_search_and_explain(settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    index = settings["index"]
    assert main(["search", index, "what about the history of coffee", "-k", "40", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    docid_of = {row["doc_id"]: row["docid"] for row in rows(index, "docids")}
    assert {hit["doc_id"]: hit["docid"] for hit in hits} == docid_of
    found = Retriever.load(index).search(["what about the history of coffee"], strategy="best_first", k=1)[0][0]
    assert main(["explain", index, "what about the history of coffee", "--doc", found.doc_id, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["wanted"]
    assert (
        "".join(token["token"] for token in told["tokens"])
        == "".join(f"<{level}:{code}>" for level, code in enumerate(found.docid.split(" "))) + "<end>"
    )


def test_a_killed_run_goes_on_with_the_same_tree(
    settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = str(tmp_path / "index")
    shutil.copytree(settings["index"], copy)
    before = {row["doc_id"]: row["docid"] for row in rows(copy, "docids")}
    manifest = storage.read_json(f"{copy}/index.json")
    del manifest["stages"]["docids"]
    storage.write_json(
        f"{copy}/index.json", manifest
    )  # the run ended before the stage did, and after its tree was published
    shutil.rmtree(f"{copy}/docids")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "index": copy}))
    assert main(["docids", str(tmp_path / "config.yaml")]) == 0
    assert {row["doc_id"]: row["docid"] for row in rows(copy, "docids")} == before


def test_adapters_cannot_learn_new_tokens(settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(settings["index"], tmp_path / "index")  # the retriever is forgotten first
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "index": str(tmp_path / "index")}))
    command = ["train", str(tmp_path / "config.yaml"), "--rebuild", "retriever", "--set", "training.lora_rank=4"]
    assert main(command) == 2
    assert "adapters do not train; set it to 0" in capsys.readouterr().err


def test_new_documents_are_numbered_behind_their_cluster(
    settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(settings["index"], tmp_path / "index")
    before = {row["doc_id"]: row["docid"] for row in rows(settings["index"], "docids")}
    near = [row for row in tiny.documents() if row["_id"].startswith("chess")][:3]
    new = [{**row, "_id": f"new-{i}", "text": row["text"] + " Again."} for i, row in enumerate(near)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    command = ["update", str(tmp_path / "index"), "--add", str(tmp_path / "new.jsonl")]
    assert main([*command, "--set", "update.max_forgetting=1"]) == 0
    retriever = Retriever.load(str(tmp_path / "index"), device="cpu")
    docids = {hit.doc_id: hit.docid for hit in retriever.search(["chess"], k=100)[0]}
    assert len(docids) == 43 == len(set(docids.values()))
    assert {doc_id: docids[doc_id] for doc_id in before} == before
