"""The whole chain, twice, and every way in which a finished or half-finished index must refuse or go on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from jobs.hosts import Hosts
from tests import tiny
from tests.published import files, rows
from zerogr import Retriever
from zerogr.config.file import validate_config
from zerogr.docids.prompts import DOCID_USER
from zerogr.docids.schemes.keywords import check_docids
from zerogr.index.index import Index
from zerogr.index.stage import INDEX
from zerogr.llm import prompts
from zerogr.store import storage

pytestmark = pytest.mark.integration

BUILT = ("corpus", "docids", "queries", "trie", "retriever")


@pytest.fixture
def config(tiny_index: str) -> str:
    """The config file that `tiny_index` was made with."""
    return str(Path(tiny_index).parent / "config.yaml")


@pytest.fixture
def copied(tiny_index: str, tmp_path: Path) -> str:
    """A copy of `tiny_index` that a test may change."""
    shutil.copytree(tiny_index, tmp_path / "index")
    return str(tmp_path / "index")


def test_every_stage_is_made(tiny_index: str) -> None:
    index = Index(tiny_index)
    assert [stage for stage in [each.name for each in INDEX.stages] if index.record(stage)] == list(BUILT)
    assert index.begun() == []
    assert [row["doc_id"] for row in rows(tiny_index, "corpus")] == [row["_id"] for row in tiny.documents()]
    for folder in ("docids", "queries"):
        assert [(row["row_id"], row["doc_id"]) for row in rows(tiny_index, folder)] == [
            (i, row["_id"]) for i, row in enumerate(tiny.documents())
        ]
    assert len({row["docid"] for row in rows(tiny_index, "docids")}) == 40  # no two documents have the same content
    config = validate_config(index.manifest()["config"])
    assert check_docids(config, index) == {}
    assert all(row["spans"] and len(row["spans"]) <= 4 for row in rows(tiny_index, "queries"))
    counts = index.require("queries").counts
    assert counts["rows"] == 40 and counts["output_tokens"] > 0
    assert counts["queries"] == sum(len(row["queries"]) for row in rows(tiny_index, "queries"))


def test_second_run_does_nothing(tiny_index: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, manifest = files(tiny_index), Index(tiny_index).manifest()
    assert main(["index", config]) == 0
    assert files(tiny_index) == before
    assert Index(tiny_index).manifest() == manifest
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == tiny_index
    assert [line.split()[0] for line in printed[1:]] == list(BUILT)


@pytest.mark.parametrize("command", ["corpus", "docids", "queries", "trie", "train"])
def test_a_finished_stage_is_left_alone(tiny_index: str, config: str, command: str) -> None:
    before = files(tiny_index)
    assert main([command, config]) == 0
    assert files(tiny_index) == before


def test_compute_may_change(tiny_index: str, config: str) -> None:
    before = files(tiny_index)
    assert main(["index", config, "--set", "compute.num_engine_workers=7", "--set", "decoding.k=3"]) == 0
    assert files(tiny_index) == before


def test_status(tiny_index: str, copied: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", tiny_index, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["index"] == tiny_index
    assert list(status["stages"]) == list(BUILT)  # not what no stage of this configuration is
    for stage in BUILT:
        assert status["stages"][stage]["state"] == "done"
        assert status["stages"][stage]["fingerprint"] == Index(tiny_index).require(stage).fingerprint
        assert status["stages"][stage]["files"] > 0
    assert status["stages"]["docids"]["rows_per_second"] > 0

    assert main(["status", tiny_index]) == 0
    text = capsys.readouterr().out
    assert status["stages"]["trie"]["fingerprint"] in text and "rows 40" in text

    index = Index(copied)
    inputs = index.require("queries").inputs
    index.rebuild("queries")
    index.begin("queries", inputs)
    shutil.copy(Path(tiny_index, "queries", "part-000001.parquet"), _folder(copied, "queries"))
    assert main(["status", copied, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["queries"] == {"state": "unfinished", "shards": 1, "of": 5}
    assert main(["status", copied]) == 0
    text = capsys.readouterr().out
    assert "unfinished: 1 of 5 shards" in text and "STUCK" not in text


def test_status_says_where_shards_were_made(tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", tiny_index, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    for stage in ("docids", "queries"):
        assert stages[stage]["hosts"] == {socket.gethostname(): [0, 1, 2, 3, 4]}
    assert "hosts" not in stages["trie"]


def test_status_says_what_is_stuck(copied: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage whose job has died looks like one that runs, until its last file is old."""
    index = Index(copied)
    inputs = {stage: index.require(stage).inputs for stage in ("queries", "retriever")}
    index.rebuild("queries")
    for stage in inputs:
        index.begin(stage, inputs[stage])
    Hosts(index, "queries").write()  # nothing to note, no file
    hosts = Hosts(index, "queries")
    hosts.add("gpu-7", 1)
    hosts.write()
    shutil.copy(Path(copied, "docids", "part-000001.parquet"), _folder(copied, "queries"))

    old = time.time() - 2 * 3600
    for path in Path(copied).rglob("*"):
        os.utime(path, (old, old))
    os.utime(Path(copied, "work", "retriever.json"))
    assert main(["status", copied, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert 7200 <= stages["queries"].pop("silent_seconds") < 7800
    assert stages["queries"] == {"state": "unfinished", "shards": 1, "of": 5, "hosts": {"gpu-7": [1]}}
    assert stages["retriever"] == {"state": "unfinished"}

    os.utime(Path(copied, "work", "retriever.json"), (old, old))
    assert main(["status", copied]) == 0
    lines = capsys.readouterr().out.splitlines()
    [queries] = [number for number, line in enumerate(lines) if line.startswith("  queries")]
    assert lines[queries].endswith("STUCK? nothing was written for 2h00m: see whether its job still runs")
    assert lines[queries + 1].strip() == "gpu-7: 1 shards"
    [retriever] = [line for line in lines if line.startswith("  retriever")]
    assert "unfinished; STUCK?" in retriever

    Path(copied, "queries", "part-000001.parquet").touch()  # it goes on
    assert main(["status", copied, "--json"]) == 0
    assert "silent_seconds" not in json.loads(capsys.readouterr().out)["stages"]["queries"]


def test_search(tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", tiny_index, "espresso and beans", "-k", "7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(answer) == ["hits", "took_ms"] and answer["took_ms"] > 0
    assert [sorted(hit) for hit in answer["hits"]] == [["doc_id", "docid", "rank", "score"]] * 7
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5, 6, 7]
    assert len({hit["doc_id"] for hit in answer["hits"]}) == 7
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    docid_of = {row["doc_id"]: row["docid"] for row in rows(tiny_index, "docids")}
    assert all(docid_of[hit["doc_id"]] == hit["docid"] for hit in answer["hits"])

    hits = Retriever.load(tiny_index).search(["espresso and beans"], k=7)[0]
    assert [hit.doc_id for hit in hits] == [hit["doc_id"] for hit in answer["hits"]]

    assert main(["search", tiny_index, "espresso and beans"]) == 0
    ranks = [line for line in capsys.readouterr().out.splitlines() if line[:3].strip()]
    assert len(ranks) == 10  # the index's own k


def test_search_finds_every_document(tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
    for strategy in ("beam", "reverse_annealing"):
        assert main(["search", tiny_index, "rope", "-k", "1000", "--strategy", strategy, "--json"]) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        assert {hit["doc_id"] for hit in hits} == {row["_id"] for row in tiny.documents()}
        assert len(hits) == 40


class TestRefusals:
    """Rows of two different runs in one index would be searched without anybody noticing."""

    def test_changed_seed(self, tiny_index: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        error = self._refused(tiny_index, ["index", config, "--set", "seed=7"], capsys)
        assert "stage 'docids'" in error and "seed (0 there, 7 now)" in error and "--rebuild docids" in error

    def test_changed_prompt(
        self, tiny_index: str, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(DOCID_USER, "brief", DOCID_USER["brief"] + " Think first.")
        error = self._refused(tiny_index, ["index", config], capsys)
        assert "stage 'docids'" in error and "docids.prompt" in error and "seed" not in error

    def test_changed_query_prompt(
        self, tiny_index: str, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prompts, "QUERY_PREFILL", "Q:")
        error = self._refused(tiny_index, ["index", config], capsys)
        assert "stage 'queries'" in error and "queries.prompt" in error

    def test_changed_instruction(self, tiny_index: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        error = self._refused(tiny_index, ["queries", config, "--set", "instruction=Find it."], capsys)
        assert 'instruction ("Find the text that answers." there, "Find it." now)' in error

    def test_changed_training(self, tiny_index: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        error = self._refused(tiny_index, ["train", config, "--set", "training.learning_rate=1e-4"], capsys)
        assert "training.learning_rate (0.003 there, 0.0001 now)" in error

    def test_changed_corpus(
        self, tiny_index: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = tiny.write_collection(tmp_path, tiny.documents()[:-1])
        error = self._refused(tiny_index, ["index", config, "--set", f"corpus.source={other}"], capsys)
        assert "stage 'corpus'" in error and "corpus.source" in error

    def test_changed_retriever_weights(
        self, tiny_index: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = tiny.save_model(tmp_path, seed=1)
        error = self._refused(tiny_index, ["index", config, "--set", f"retriever.model={other}"], capsys)
        assert "stage 'retriever'" in error and "retriever.model" in error

    def test_unfinished_stage_refuses_too(self, copied: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        index = Index(copied)
        inputs = index.require("docids").inputs
        index.rebuild("docids")
        index.begin("docids", {**inputs, "docids.temperature": 1.9})
        error = self._refused(copied, ["docids", config, "--set", f"index={copied}"], capsys)
        assert "docids.temperature (1.9 there, 0.3 now)" in error

    @staticmethod
    def _refused(index: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        before = files(index)
        capsys.readouterr()
        assert main(command) == 2
        assert files(index) == before
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error


def test_rebuild_makes_a_stage_and_what_follows_again(copied: str, config: str) -> None:
    before = files(copied)
    assert main(["index", config, "--set", f"index={copied}", "--rebuild", "queries"]) == 0
    after = files(copied)
    assert after.keys() == before.keys()
    redone = {name.split("/")[0] for name in before if after[name] != before[name] and "/" in name}
    assert redone - {"work"} == {"queries", "retriever"}
    # The same seeds give the same rows, and the same rows the same weights.
    differing = {name for name in before if after[name].content != before[name].content}
    assert differing == {"index.json", "work/runs/queries-0000.json", "work/runs/retriever.jsonl"}  # what it cost


class TestRejectedRows:
    """A row that the engine cannot process must neither stop the job nor vanish without a trace."""

    def test_are_listed_and_left_out(
        self, tiny_model: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config, index = self._write(tiny_model, tmp_path, num_bad=1)
        assert main(["index", config]) == 0
        rejected = rows(index, "rejected")
        assert {row["doc_id"] for row in rejected} == {"bad-0"}
        assert {(row["stage"], row["reason"]) for row in rejected} == {
            ("docids", "engine_error"),
            ("queries", "engine_error"),
        }
        assert all("<<fail>>" in row["detail"] for row in rejected)
        assert "rejected/docids-part-000005.parquet" in files(index, "rejected")
        assert Index(index).require("docids").counts["rejected"] == 1
        assert len(rows(index, "corpus")) == 41
        for folder in ("docids", "queries"):
            assert [row["doc_id"] for row in rows(index, folder)] == [row["_id"] for row in tiny.documents()]

        retriever = Retriever.load(index)
        assert retriever.num_documents == Index(index).require("trie").counts["rows"] == 40
        assert "bad-0" not in {hit.doc_id for hit in retriever.search(["anything"], k=100)[0]}
        capsys.readouterr()
        assert main(["status", index, "--json"]) == 0
        stages = json.loads(capsys.readouterr().out)["stages"]
        assert stages["docids"]["rejected"] == stages["queries"]["rejected"] == {"engine_error": 1}

        before = files(index)
        assert main(["index", config]) == 0
        assert files(index) == before

    def test_too_many_fail_the_stage_with_their_reasons(
        self, tiny_model: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config, index = self._write(tiny_model, tmp_path, num_bad=5)
        assert main(["docids", config, "--set", "compute.max_rejected_fraction=0.1"]) == 2  # no corpus stage yet
        assert main(["corpus", config]) == 0
        capsys.readouterr()
        assert main(["docids", config, "--set", "compute.max_rejected_fraction=0.1"]) == 2
        error = capsys.readouterr().err
        assert "rejected 5 of 45 rows (engine_error 5)" in error and "max_rejected_fraction = 0.1" in error
        assert Index(index).record("docids") is None
        # The user accepts the loss: nothing is generated again.
        candidates = files(index, "work/docids")
        assert len(candidates) == 6
        assert main(["docids", config, "--set", "compute.max_rejected_fraction=0.2"]) == 0
        assert files(index, "work/docids") == candidates
        assert Index(index).require("docids").counts["rows"] == 40

    @staticmethod
    def _write(tiny_model: Path, folder: Path, *, num_bad: int) -> tuple[str, str]:
        bad: list[dict[str, Any]] = [
            {"_id": f"bad-{i}", "title": "", "text": f"About <<fail>> number {i}: tea leaves"} for i in range(num_bad)
        ]
        collection = tiny.write_collection(folder / "collection", [*tiny.documents(), *bad])
        index = str(folder / "index")
        (folder / "config.yaml").write_text(yaml.safe_dump(tiny.settings(index, collection, tiny_model)))
        return str(folder / "config.yaml"), index


def _folder(index: str, name: str) -> Path:
    folder = Path(index, name)
    folder.mkdir(exist_ok=True)
    return folder


def test_queries_of_a_rejected_document_train_nothing(copied: str) -> None:
    from zerogr.training.recipes.retriever import RetrieverRecipe

    index = Index(copied)

    def asked() -> list[str]:
        recipe = RetrieverRecipe(validate_config({"index": copied}))
        return sorted(example.query for part in recipe.text_examples() for example in part)

    before = asked()
    table = storage.read_parquet(index.shard("docids", 0))
    storage.write_parquet(index.shard("docids", 0), table.slice(1))
    [of_first, *_] = storage.read_parquet(index.shard("queries", 0)).to_pylist()
    assert of_first["row_id"] == table.column("row_id")[0].as_py() and of_first["spans"]
    assert sorted([*asked(), *of_first["queries"], *of_first["spans"]]) == before
