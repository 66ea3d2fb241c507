"""The front door: every mistake of a user is one sentence and exit status 2, and standard output belongs to the answer."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import zerogr
from jobs.cli import COMMANDS, main
from jobs.parser import build_parser
from tests import tiny
from tests.published import contents, files
from zerogr.llm.engines.vllm import is_vllm_installed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path, collection: Path, tiny_model: Path) -> Callable[..., str]:
    """Returns a function that writes a config file with some changes and returns its path."""

    def write(**changes: Any) -> str:
        tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model, **changes)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        return str(tmp_path / "config.yaml")

    return write


def _mistake(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must be refused; returns its one sentence."""
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    # What Ray has to say of an actor that it has ended comes some time after that.
    assert [line for line in printed.out.splitlines() if "(raylet)" not in line] == []
    (sentence,) = [line for line in printed.err.splitlines() if line.startswith("zerogr: ")]
    assert "Traceback" not in printed.err
    return sentence


class TestMistakesInTheConfiguration:
    def test_missing_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = str(tmp_path / "none.yaml")
        assert f"there is no config file '{path}'" in _mistake(["index", path], capsys)

    def test_no_yaml(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "bad.yaml").write_text("index: [unclosed\n")
        assert "cannot be read as YAML" in _mistake(["index", str(tmp_path / "bad.yaml")], capsys)

    def test_a_list(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "list.yaml").write_text("- index\n")
        assert "must be a mapping" in _mistake(["index", str(tmp_path / "list.yaml")], capsys)

    def test_unknown_key(self, write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
        sentence = _mistake(["index", write(training__num_epoch=3)], capsys)
        assert "'training.num_epoch'" in sentence and "did you mean 'training.num_epochs'?" in sentence

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ("training.num_epochs=0", ["training.num_epochs is 0", "greater than or equal to 1"]),
            ("docids.scheme=numbers", ["docids.scheme is 'numbers'", "keywords, ", "tfidf, "]),
            ("docids.min_words=9", ["min_words is 9", "max_words = 8"]),
            ("decoding.top_p=1.5", ["decoding.top_p is 1.5", "less than or equal to 1"]),
        ],
    )
    def test_bad_value(
        self, write: Callable[..., str], change: str, parts: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sentence = _mistake(["index", write(), "--set", change], capsys)
        assert all(part in sentence for part in parts), sentence

    @pytest.mark.parametrize("override", ["training.num_epochs", "=3", "index.sub=3", "instruction={unclosed"])
    def test_malformed_set(self, write: Callable[..., str], override: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert f"--set {override}" in _mistake(["index", write(), "--set", override], capsys)


class TestMistakesInTheCorpus:
    def test_missing_source(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        missing = str(tmp_path / "nowhere")
        assert f"'{missing}' does not exist" in _mistake(["index", write(corpus__source=missing)], capsys)

    def test_folder_without_documents(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        sentence = _mistake(["index", write(corpus__source=str(tmp_path / "empty"))], capsys)
        assert "no corpus.jsonl, docs.jsonl, .jsonl, .csv, .tsv or .parquet file" in sentence

    def test_missing_column(
        self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "rows.jsonl").write_text('{"id": "1", "body": "text"}\n')
        config = write(corpus__source=str(tmp_path / "rows.jsonl"))
        sentence = _mistake(["index", config], capsys)
        assert "has no column '_id'" in sentence and "corpus.doc_id_column" in sentence and "'id'" in sentence
        sentence = _mistake(["index", config, "--set", "corpus.doc_id_column=id"], capsys)
        assert "has no column 'text'" in sentence and "id, body" in sentence

    def test_no_usable_row(self, write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "rows.jsonl").write_text('{"_id": "", "text": "x"}\n{"_id": "2", "text": ""}\n')
        sentence = _mistake(["index", write(corpus__source=str(tmp_path / "rows.jsonl"))], capsys)
        assert "no usable document; 2 rows were rejected" in sentence and "empty_doc_id" in sentence


class TestMissingStages:
    @pytest.mark.parametrize(
        ("command", "needed"), [("docids", "corpus"), ("queries", "corpus"), ("trie", "docids"), ("train", "docids")]
    )
    def test_stage_before_is_named(
        self, write: Callable[..., str], command: str, needed: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sentence = _mistake([command, write()], capsys)
        assert f"no finished stage '{needed}'" in sentence and f"zerogr {needed} CONFIG" in sentence

    def test_search_of_an_unfinished_index(self, write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
        config = write()
        assert main(["corpus", config]) == 0
        index = yaml.safe_load(Path(config).read_text())["index"]
        assert "no finished stage 'docids'" in _mistake(["search", index, "query"], capsys)


class TestUnknownIndex:
    @pytest.mark.parametrize("scheme", ["", "file://"])
    def test_is_named(self, scheme: str, tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
        index = f"{scheme}{tmp_path}/nothing"
        for command in (
            ["status", index],
            ["status", index, "--json"],
            ["search", index, "query"],
            ["evaluate", index, "--dataset", str(collection)],
        ):
            assert f"no index at '{index}'" in _mistake(command, capsys), command
        assert f"'{index}' has no finished stage" in _mistake(["serve", index], capsys)

    def test_unknown_scheme(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "cannot be opened: Protocol not known: gopher" in _mistake(["status", "gopher://host/index"], capsys)

    def test_damaged_manifest(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "index.json").write_text('{"format": ')
        assert "is not valid JSON" in _mistake(["status", str(tmp_path)], capsys)
        (tmp_path / "index.json").write_text('{"format": 99}')
        assert "has format 99; this version reads 2" in _mistake(["search", str(tmp_path), "query"], capsys)


@pytest.mark.integration
class TestMistakesWithAnIndex:
    def test_unknown_model(self, tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(Path(tiny_index).parent / "config.yaml")
        sentence = _mistake(["train", config, "--set", "retriever.model=no/such-model"], capsys)
        assert "no/such-model" in sentence

    @pytest.mark.skipif(is_vllm_installed(), reason="the mistake is to ask for vLLM without having it")
    def test_mistake_found_in_a_worker(
        self, tiny_index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = str(Path(tiny_index).parent / "config.yaml")
        changes = ["--set", f"index={tmp_path}/index", "--set", "docids.engine=vllm"]
        assert main(["corpus", config, *changes]) == 0
        capsys.readouterr()
        assert "vLLM is not installed" in _mistake(["docids", config, *changes], capsys)

    def test_missing_split(self, tiny_index: str, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sentence = _mistake(["evaluate", tiny_index, "--dataset", str(collection), "--split", "dev"], capsys)
        assert "holds no split 'dev'; the splits that exist: test" in sentence

    def test_missing_dataset(self, tiny_index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sentence = _mistake(["evaluate", tiny_index, "--dataset", str(tmp_path / "none")], capsys)
        assert f"there is no folder '{tmp_path}/none'" in sentence

    def test_judgements_of_other_documents(
        self, tiny_index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [{**row, "_id": f"other-{row['_id']}"} for row in tiny.documents()]
        sentence = _mistake(
            ["evaluate", tiny_index, "--dataset", str(tiny.write_collection(tmp_path, rows))], capsys
        )  # fmt: skip
        assert "none of the 40 judged queries has a relevant document among the 40 documents" in sentence

    @pytest.mark.parametrize(
        "arguments", [["-k", "0"], ["-k", "many"], ["--strategy", "psychic"], ["--seed", "x"], ["surplus"]]
    )
    def test_bad_argument(self, tiny_index: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as refusal:
            main(["search", tiny_index, "query", *arguments])
        assert refusal.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_bad_option_of_a_strategy(self, tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
        sentence = _mistake(["search", tiny_index, "query", "-k", "9", "--strategy", "beam:beam_width=3"], capsys)
        assert "beam_width must be at least k = 9, got 3" in sentence


def test_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zerogr.config.file import load_config

    assert main(["config"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert load_config(str(tmp_path / "config.yaml")) == load_config(None)


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for command in ("index", "docids", "queries", "trie", "train", "status", "search", "evaluate", "serve", "submit"):
        assert f"    {command} " in printed


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from jobs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'transformers', 'pydantic', 'yaml', 'fsspec'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "usage: zerogr" in done.stdout


@pytest.mark.integration
def test_json_is_all_there_is_on_standard_output(tiny_index: str, collection: Path) -> None:
    commands = [
        ["status", tiny_index],
        ["search", tiny_index, "espresso"],
        ["explain", tiny_index, "espresso", "--doc", "coffee-3"],
        ["evaluate", tiny_index, "--dataset", str(collection), "--strategy", "greedy", "--k", "2"],
    ]
    # One process for all: each would spend seconds on importing torch. The descriptors are the real ones.
    script = (
        "import json, sys; from jobs.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    assert main([*command, '--json']) == 0\n"
        "    print('\\0', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    *documents, rest = done.stdout.split("\0\n")
    assert rest == "" and len(documents) == 4
    assert [sorted(json.loads(document)) for document in documents] == [
        ["index", "stages"],
        ["hits", "took_ms"],
        ["first", "lost_at", "num_hits", "query", "rank", "verdict", "wanted"],
        ["by_kind", "differences", "errors", "rows"],
    ]


def test_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    for module in ("jobs.cli", "jobs.index", "jobs.train"):
        arguments = ["index", "none.yaml"] if module == "jobs.cli" else ["none.yaml"]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("zerogr: there is no config file 'none.yaml'")


def test_a_bug_is_not_the_users_mistake(tmp_path: Path) -> None:
    """Exit status 1 and the traceback: nothing else tells a maintainer what broke."""
    script = (
        "import sys, zerogr.config.file\n"
        "def broken(*_): raise RuntimeError('a bug')\n"
        "zerogr.config.file.load_config = broken\n"
        "from jobs.cli import run\n"
        "sys.argv = ['zerogr', 'index', 'config.yaml']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "RuntimeError: a bug" in done.stderr


@pytest.mark.integration
def test_module_does_what_the_command_does(
    tiny_index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    config = str(Path(tiny_index).parent / "config.yaml")
    tries = []
    for name in ("command", "module"):
        index = str(tmp_path / name)
        shutil.copytree(tiny_index, index)
        arguments = [config, "--set", f"index={index}", "--rebuild", "trie"]
        before = files(index, "trie")
        if name == "command":
            assert main(["trie", *arguments]) == 0
            printed = capsys.readouterr().out
        else:
            done = subprocess.run(
                [sys.executable, "-m", "jobs.trie", *arguments],
                cwd=ROOT,
                env=dict(os.environ),
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        assert printed.splitlines()[0] == index and printed.splitlines()[1].split()[0] == "trie"
        after = files(index, "trie")
        assert all(after[file] != before[file] for file in before)  # made again, though from the same bytes
        tries.append(contents(index, "trie"))
    assert tries[0] == tries[1] == contents(tiny_index, "trie")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code and capsys.readouterr().out == f"zerogr {zerogr.__version__}\n"


def test_every_command_is_done_by_somebody() -> None:
    [subparsers] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert subparsers.choices.keys() == COMMANDS.keys()
    for module in COMMANDS.values():
        assert callable(importlib.import_module(module).command)
