"""`zerogr distil` from the command line: twice, interrupted, refused, and what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from tests import tiny
from tests.published import contents, files, rows
from zerogr.docids.prompts import DOCID_USER
from zerogr.index.index import Index
from zerogr.llm import prompts
from zerogr.store import storage

ROOT = Path(__file__).parents[2]
PUBLISHED = ("docids", "queries", "rejected")
INSTRUCTIONS = {"drinks": "Find the drink.", "boats": "Find the boat."}


def _documents() -> list[dict[str, Any]]:
    """Returns documents with enough terms for the fake engine, which draws from the prompt's words, to name some of them."""
    terms = " ".join(tiny.TOPICS.values())
    return [{**row, "text": f"{row['text']} {terms} {terms}"} for row in tiny.documents()]


def _tree(out: str, folder: Path, **distil: Any) -> dict[str, Any]:
    """Returns the configuration of two tasks: 40 documents with another key in JSON Lines, and 10 of 40 in a BEIR folder."""
    collection = tiny.write_collection(folder / "collection", _documents())
    renamed = [{"key": row["_id"], "title": row["title"], "body": row["text"]} for row in _documents()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    columns = {"doc_id_column": "key", "text_column": "body"}
    tasks = [
        {"name": "drinks", "source": str(folder / "rows.jsonl"), "instruction": INSTRUCTIONS["drinks"], **columns},
        {"name": "boats", "source": str(collection), "instruction": INSTRUCTIONS["boats"], "max_documents": 10},
    ]
    settings = {"out": out, "tasks": tasks, "shard_size": 8, "candidates": 12, "num_queries_per_document": 6}
    lax = {"min_words": 1, "min_core_terms": 1, "max_foreign_words": 2}  # the fake engine is no great teacher
    return {
        "index": str(folder / "index"),
        "compute": {"num_cpus_per_engine": 1},
        "docids": lax,
        "distil": {"engine": "fake", **settings, **distil},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Returns a function that writes a config file and returns its path."""

    def write(out: str = "", **distil: Any) -> str:
        tree = _tree(out or str(tmp_path / "teacher"), tmp_path, **distil)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        return str(tmp_path / "config.yaml")

    return write


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    """The URI of finished teacher data; the config file lies beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "config.yaml").write_text(yaml.safe_dump(_tree(str(folder / "teacher"), folder)))
    assert main(["distil", str(folder / "config.yaml")]) == 0
    return str(folder / "teacher")


@pytest.fixture
def config(teacher: str) -> str:
    """The config file that `teacher` was made with."""
    return str(Path(teacher).parent / "config.yaml")


@pytest.fixture
def copied(teacher: str, tmp_path: Path) -> str:
    """A copy of `teacher` that a test may change."""
    shutil.copytree(teacher, tmp_path / "copied")
    return str(tmp_path / "copied")


def _forget(uri: str) -> None:
    """Takes the finished stage out of the manifest and leaves it begun: what a killed run leaves behind."""
    index = Index(uri)
    inputs = index.require("distil").inputs
    storage.delete(index.path("index.json"))
    assert index.begun() == ["distil"] and index.begin("distil", inputs)


@pytest.mark.integration
class TestRun:
    def test_rows_account_for_every_document_of_every_task(self, teacher: str) -> None:
        assert len(storage.list_files(f"{teacher}/docids")) == len(storage.list_files(f"{teacher}/queries")) == 5 + 2
        documents = {row["_id"]: row for row in _documents()}
        for stage in ("docids", "queries"):
            pairs = rows(teacher, stage)
            assert pairs
            seen = {(row["task"], row["doc_id"]) for row in pairs}
            seen |= {(row["task"], row["doc_id"]) for row in rows(teacher, "rejected") if row["stage"] == stage}
            assert {doc_id for task, doc_id in seen if task == "drinks"} == set(documents)
            sampled = {doc_id for task, doc_id in seen if task == "boats"}
            assert len(sampled) == 10 and sampled < set(documents)
            unique = {(row["task"], row["doc_id"], row["completion"]) for row in pairs}
            assert len(unique) == len(pairs)
            for row in pairs:
                assert documents[row["doc_id"]]["text"] in row["prompt"]
        for row in rows(teacher, "queries"):
            assert row["instruction"] == INSTRUCTIONS[row["task"]] and row["instruction"] in row["prompt"]
            assert row["prefill"] == prompts.QUERY_PREFILL

    def test_the_record_and_what_is_printed(
        self, teacher: str, config: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = Index(teacher).require("distil").counts
        assert (counts["rows"], counts["rejected"]) == (50, 0)
        for stage in ("docids", "queries"):
            pairs = rows(teacher, stage)
            assert counts[stage] == len(pairs)
            for task in INSTRUCTIONS:
                assert counts["tasks"][task][stage] == sum(row["task"] == task for row in pairs)
        invalid = [row for row in rows(teacher, "rejected") if row["stage"] == "docids"]
        assert counts["valid_docids"] == pytest.approx(1 - len(invalid) / (50 * 12), abs=1e-4)
        assert counts["prompt_tokens"] > 0 and counts["output_tokens"] > 0
        broken = sum("function_word" in row["reason"].split("+") for row in invalid)
        assert counts["rejected_by"]["function_word"] == broken > 0

        capsys.readouterr()
        assert main(["distil", config]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == [teacher] and lines[1][0] == "distil"
        assert lines[2][:3] == ["drinks", "40", "documents"] and lines[3][:3] == ["boats", "10", "documents"]
        assert lines[4][:2] == ["valid:", f"{counts['valid_docids']:.1%}"]
        assert f"function word {broken}" in " ".join(lines[1])

    def test_second_run_does_nothing(self, teacher: str, config: str) -> None:
        before = files(teacher)
        assert main(["distil", config, "--set", "compute.engine_batch_size=2"]) == 0
        assert files(teacher) == before

    def test_status(self, teacher: str, copied: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["status", teacher, "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert list(status["stages"]) == ["distil"]
        assert status["stages"]["distil"]["state"] == "done" and status["stages"]["distil"]["files"] == 14
        _forget(copied)
        assert main(["status", copied]) == 0
        assert "unfinished: 7 shards" in capsys.readouterr().out

    def test_what_was_interrupted_goes_on(self, teacher: str, copied: str, config: str) -> None:
        _forget(copied)
        lost = [f"docids/part-00000{i}.parquet" for i in (0, 3, 6)] + ["queries/part-000003.parquet"]
        lost += [f"queries/part-00000{i}.parquet" for i in (1, 6)] + ["rejected/distil-part-000006.parquet"]
        for name in lost:
            storage.delete(f"{copied}/{name}")
        before = files(copied)
        assert main(["distil", config, "--set", f"distil.out={copied}"]) == 0
        assert contents(copied, *PUBLISHED) == contents(teacher, *PUBLISHED)
        after = files(copied)
        untouched = [name for name in before if name.split(".")[0][-1] in "245" and name.startswith(PUBLISHED)]
        assert len(untouched) == 3 * 3 and all(after[name] == before[name] for name in untouched)
        one, other = (Index(uri).require("distil") for uri in (teacher, copied))
        assert (one.counts, one.fingerprint, one.files) == (other.counts, other.fingerprint, other.files)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("seed=7", "seed (0 there, 7 now)"),
            ("distil.temperature=1.5", "distil.temperature (0.7 there, 1.5 now)"),
            ("docids.max_words=9", "docids.max_words (8 there, 9 now)"),
        ],
    )
    def test_other_settings_are_refused(
        self, teacher: str, config: str, change: str, named: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = self._refused(teacher, ["distil", config, "--set", change], capsys)
        assert "stage 'distil'" in error and named in error and "--rebuild distil" in error

    def test_another_prompt_or_instruction_is_refused(
        self, teacher: str, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = yaml.safe_load(Path(config).read_text())
        tree["distil"]["tasks"][1]["instruction"] = "Find the ship."
        other = Path(config).with_name("other.yaml")
        other.write_text(yaml.safe_dump(tree))
        error = self._refused(teacher, ["distil", str(other)], capsys)
        assert 'tasks.boats.instruction ("Find the boat." there, "Find the ship." now)' in error
        monkeypatch.setitem(DOCID_USER, "brief", DOCID_USER["brief"] + " Think first.")
        error = self._refused(teacher, ["distil", config], capsys)
        assert "docids.prompt" in error and "seed" not in error

    @pytest.mark.parametrize("option", [["--rebuild"], ["--rebuild", "distil"]])
    def test_rebuild_makes_it_anew(self, teacher: str, copied: str, config: str, option: list[str]) -> None:
        before = files(copied)
        assert main(["distil", config, "--set", f"distil.out={copied}", *option]) == 0
        after = files(copied)
        assert all(after[name] != before[name] for name in before if name.startswith(PUBLISHED))
        assert all(after[name] == before[name] for name in before if name.startswith("work/corpora"))
        assert contents(copied, *PUBLISHED) == contents(teacher, *PUBLISHED)

    def test_on_object_storage(self, teacher: str, config: str, s3_server: str) -> None:
        out = ["--set", "distil.out=s3://zerogr/teacher"]
        assert main(["distil", config, *out]) == 0
        assert contents("s3://zerogr/teacher", *PUBLISHED) == contents(teacher, *PUBLISHED)
        before = contents("s3://zerogr/teacher", *PUBLISHED, "work")
        assert main(["distil", config, *out]) == 0
        assert contents("s3://zerogr/teacher", *PUBLISHED, "work") == before

    @staticmethod
    def _refused(uri: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        before = files(uri)
        capsys.readouterr()
        assert main(command) == 2
        assert files(uri) == before
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error


@pytest.mark.integration
def test_a_real_model_is_asked_once(
    write: Callable[..., str], tiny_model: Path, tmp_path: Path, local_ray: None
) -> None:
    """The tiny model writes noise: most samples are rejected, and none is lost."""
    out = str(tmp_path / "teacher")
    config = write(engine="transformers", model=str(tiny_model), candidates=1, num_queries_per_document=2, max_tokens=6)
    assert main(["distil", config]) == 0
    before = files(out)
    counts = Index(out).require("distil").counts
    assert (counts["rows"], counts["rejected"]) == (50, 0)
    assert 0 < counts["output_tokens"] <= 6 * 3 * 50
    for stage, samples in (("docids", 50), ("queries", 100)):
        num_rejected = sum(row["stage"] == stage for row in rows(out, "rejected"))
        assert num_rejected <= samples and num_rejected + counts[stage] <= samples
        assert counts[f"valid_{stage}"] == pytest.approx(1 - num_rejected / samples, abs=1e-4)
    assert main(["distil", config]) == 0
    assert files(out) == before

    other = tiny.save_model(tmp_path / "other", seed=1)
    assert main(["distil", config, "--set", f"distil.model={other}"]) == 2
    assert files(out) == before


@pytest.mark.integration
def test_too_many_errors_of_the_engine_fail_the_run(
    write: Callable[..., str], tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write()
    bad = [{"key": f"bad-{i}", "title": "", "body": "tea <<fail>> leaves"} for i in range(2)]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in bad))
    assert main(["distil", config, "--set", "compute.max_rejected_fraction=0.01"]) == 2
    error = capsys.readouterr().err
    assert "stage 'distil' rejected 2 of 52 rows (engine_error 4" in error
    made = contents(str(tmp_path / "teacher"), *PUBLISHED)
    assert main(["distil", config]) == 0
    assert contents(str(tmp_path / "teacher"), *PUBLISHED) == made


class TestMistakes:
    @staticmethod
    def _mistake(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and "Traceback" not in printed.err
        (sentence,) = [line for line in printed.err.splitlines() if line.startswith("zerogr: ")]
        return sentence

    def test_in_a_task_binds_nobody_once_mended(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write()
        tree = yaml.safe_load(Path(config).read_text())
        tree["distil"]["tasks"][1]["doc_id_column"] = "id"
        Path(config).write_text(yaml.safe_dump(tree))
        sentence = self._mistake(["distil", config], capsys)
        assert "task 'boats': " in sentence and "has no column 'id'" in sentence and "did you mean '_id'" in sentence
        assert Index(str(tmp_path / "teacher")).begun() == []

    def test_missing_source(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(tasks=[{"name": "a", "source": str(tmp_path / "nowhere"), "instruction": "Find."}])
        sentence = self._mistake(["distil", config], capsys)
        assert f"task 'a': corpus.source '{tmp_path}/nowhere' does not exist" in sentence

    def test_out_is_an_index(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = write(out=str(tmp_path / "index"))
        Index(str(tmp_path / "index")).finish("corpus", {}, config={}, counts={}, seconds=0)
        for option in ([], ["--rebuild"]):
            assert "holds an index; give teacher data a folder of its own" in self._mistake(
                ["distil", config, *option], capsys
            )

    def test_stage_of_an_index(self, write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as refusal:
            main(["distil", write(), "--rebuild", "corpus"])
        assert refusal.value.code == 2
        assert "invalid choice: 'corpus'" in capsys.readouterr().err

    def test_module(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.distil", "none.yaml"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("zerogr: there is no config file 'none.yaml'")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["distil", "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    for part in (
        "distil:\n    model:",
        "tasks:",
        "instruction:",
        "task, doc_id, prompt, prefill, completion",
        "--rebuild",
    ):
        assert part in text
    example = text[text.index("  distil:\n") :].partition("\n\n")[0]
    from zerogr.config.file import validate_config

    assert validate_config(yaml.safe_load(example)).distil.tasks[0].max_documents == 20000
