"""The same job on a disk and in object storage: the same bytes, the same answers."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import status
from jobs.cli import main
from tests import tiny
from tests.published import contents
from zerogr.index.index import Index
from zerogr.index.lease import FOLDER as LEASE
from zerogr.store import storage

pytestmark = pytest.mark.integration

LANGUAGE_MODEL = {
    "docids__engine": "transformers",
    "docids__max_tokens": 8,
    "queries__engine": "transformers",
    "queries__max_tokens": 8,
}


def test_same_bytes_with_the_fake_engine(tiny_index: str, remote_index: str) -> None:
    folders = ("corpus", "docids", "queries", "trie", "retriever")
    local, remote = contents(tiny_index, *folders), contents(remote_index, *folders)
    assert local.keys() == remote.keys() and len(local) > 20
    assert [name for name in local if local[name] != remote[name]] == []
    assert Index(remote_index).begun() == []


def test_same_bytes_with_a_language_model(
    s3_server: str, tmp_path: Path, collection: Path, tiny_model: Path, local_ray: None
) -> None:
    indexes = [str(tmp_path / "local"), "s3://zerogr/indexes/language-model"]
    for uri in indexes:
        config = _write(tmp_path, uri, collection, tiny_model, **LANGUAGE_MODEL)
        for stage in ("corpus", "docids", "queries", "trie"):
            assert main([stage, config]) == 0
    local, remote = (contents(uri, "docids", "queries", "trie") for uri in indexes)
    assert local.keys() == remote.keys() and len(local) > 12
    assert [name for name in local if local[name] != remote[name]] == []
    assert Index(indexes[1]).require("docids").counts["output_tokens"] > 0


def test_second_run_does_nothing(remote_index: str, tmp_path: Path, collection: Path, tiny_model: Path) -> None:
    fs, path = storage.filesystem(remote_index)

    def modified() -> dict[str, Any]:
        found = fs.find(path, detail=True).items()
        return {name: info["LastModified"] for name, info in found if LEASE not in name}

    before = modified()
    config = _write(tmp_path, remote_index, collection, tiny_model, corpus__source="s3://zerogr/collection")
    assert main(["index", config]) == 0
    assert modified() == before


def test_changed_seed_is_refused(
    remote_index: str, tmp_path: Path, collection: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _write(tmp_path, remote_index, collection, tiny_model, corpus__source="s3://zerogr/collection", seed=7)
    assert main(["index", config]) == 2
    assert "seed (0 there, 7 now)" in capsys.readouterr().err


def test_search_answers_the_same(
    tiny_index: str,
    remote_index: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path))
    for strategy in ("beam", "reverse_annealing"):
        answers = [
            _json(["search", uri, "espresso and beans", "-k", "15", "--strategy", strategy, "--json"], capsys)["hits"]
            for uri in (tiny_index, remote_index)
        ]
        assert answers[0] == answers[1] and len(answers[0]) == 15


TIMES = ("ms_per_query", "seconds_to_index")


def test_evaluate_measures_the_same(
    tiny_index: str,
    remote_index: str,
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    tables, runs = [], []
    for uri, dataset, out in (
        (tiny_index, str(collection), str(tmp_path / "out")),
        (remote_index, "s3://zerogr/collection", "s3://zerogr/out"),
    ):
        command = ["evaluate", uri, "--dataset", dataset, "--strategy", "beam", "--k", "10", "--out", out, "--json"]
        table = _json(command, capsys)["rows"]
        tables.append([{key: value for key, value in row.items() if key not in TIMES} for row in table])
        runs.append({name: storage.read_bytes(f"{out}/{name}") for name in ("zerogr-beam.run", "bm25.run")})
        assert storage.read_json(f"{out}/metrics.json")["rows"] == table
    assert tables[0] == tables[1]
    assert runs[0] == runs[1]


def test_status(remote_index: str, tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
    local, remote = (_json(["status", uri, "--json"], capsys)["stages"] for uri in (tiny_index, remote_index))
    for stage in ("docids", "queries", "trie", "retriever"):
        assert remote[stage]["state"] == "done" and remote[stage]["files"] == local[stage]["files"]


def test_status_of_a_stage_whose_job_has_died(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index("s3://zerogr/indexes/stuck")
    index.begin("corpus", {"seed": 0})
    assert _json(["status", index.uri, "--json"], capsys)["stages"]["corpus"] == {"state": "unfinished", "shards": 0}
    now = time.time()
    monkeypatch.setattr(status.time, "time", lambda: now + 7200)
    assert 7100 < _json(["status", index.uri, "--json"], capsys)["stages"]["corpus"]["silent_seconds"] < 7300


def test_missing_bucket_is_the_users_mistake(
    s3_server: str, tmp_path: Path, collection: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus", _write(tmp_path, "s3://no-such-bucket/index", collection, tiny_model)]) == 2
    assert "'s3://no-such-bucket/index/" in capsys.readouterr().err
    assert main(["status", "s3://zerogr/nothing"]) == 2
    assert "there is no index at 's3://zerogr/nothing'" in capsys.readouterr().err


def _write(folder: Path, index: str, collection: Path, model: Path, **changes: Any) -> str:
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny.settings(index, collection, model, **changes)))
    return str(folder / "config.yaml")


def _json(command: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main(command) == 0
    return json.loads(capsys.readouterr().out)


def test_an_update_is_the_same(
    tiny_index: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    local, remote = str(tmp_path / "index"), "s3://zerogr/indexes/updated"
    shutil.copytree(tiny_index, local)
    storage.upload_folder(Path(local), remote)
    (tmp_path / "new.jsonl").write_text(
        json.dumps({"_id": "new", "text": "Quicksilver thermometers of a polar expedition."})
    )
    (tmp_path / "gone.txt").write_text("chess-0\n")
    answers = []
    for uri in (local, remote):
        options = ["--add", str(tmp_path / "new.jsonl"), "--remove", str(tmp_path / "gone.txt"), "--method", "memit"]
        done = _json(["update", uri, *options, "--set", "update.max_forgetting=1", "--json"], capsys)
        assert (done["version"], done["added"], done["removed"]) == (1, 1, 1)
        answers.append(_json(["search", uri, "thermometers of chess", "-k", "40", "--json"], capsys)["hits"])
        again = _json(["update", uri, *options, "--set", "update.max_forgetting=1", "--json"], capsys)
        assert again["done_before"]
    found = {hit["doc_id"] for hit in answers[0]}
    assert answers[0] == answers[1] and "new" in found and "chess-0" not in found
