"""Work on all documents at once, in a process of its own: the same index, and every end that such a process can come to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import apart, docids, lexical, queries, trie
from jobs.apart import build_apart
from tests import tiny
from tests.published import contents
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.errors import Fault, UserError
from zerogr.index.driver import lease_of
from zerogr.index.index import Index
from zerogr.index.lease import own_lease, path_of
from zerogr.store import storage

pytestmark = pytest.mark.integration


@pytest.fixture
def config(
    tiny_index: str, tmp_path: Path, collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Config]:
    """Of a copy of a finished index, none of whose documents are few."""
    monkeypatch.setattr(apart, "FEW", 0)
    shutil.copytree(tiny_index, tmp_path / "index")
    yield validate_config(tiny.settings(str(tmp_path / "index"), collection, tiny_model, compute__max_retries=1))


def test_the_index_is_the_same(config: Config, tiny_index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Index(config.index).rebuild("docids")
    for module, build in ((docids, "resolve"), (trie, "build_trie")):
        monkeypatch.setattr(module, build, in_another_process(getattr(module, build)))
    for job in (docids, queries, trie):
        assert job.run(config).counts == require(tiny_index, job.__name__.removeprefix("jobs.")).counts
    assert contents(config.index, "docids", "trie") == contents(tiny_index, "docids", "trie")


def test_the_lexical_index_is_the_same(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "FEW", 40)
        here = lexical.run(config).counts
    before = contents(config.index, "lexical")
    Index(config.index).rebuild("lexical")
    monkeypatch.setattr(lexical, "gather", in_another_process(lexical.gather))
    assert lexical.run(config).counts == here
    assert contents(config.index, "lexical") == before


def require(uri: str, stage: str) -> Any:
    return Index(uri).require(stage)


def in_another_process(build: apart.Build) -> apart.Build:
    here = os.getpid()

    def checked(config: Config, index: Index) -> dict[str, Any]:
        assert os.getpid() != here
        return build(config, index)

    return checked


@pytest.mark.parametrize("error", [UserError("no document is left"), Fault("the disk is full")])
def test_an_error_comes_as_it_was_raised(config: Config, error: Exception) -> None:
    def fail(_: Config, __: Index) -> dict[str, Any]:
        raise error

    with pytest.raises(type(error)) as raised:
        build_apart("trie", fail, config, Index(config.index))
    assert type(raised.value) is type(error) and str(raised.value) == str(error)


def test_a_lost_process_is_replaced_but_not_for_ever(config: Config, tmp_path: Path) -> None:
    def die(num_deaths: int) -> apart.Build:
        def build(_: Config, __: Index) -> dict[str, Any]:
            with (tmp_path / "begun").open("a") as file:
                file.write(".")
            if (tmp_path / "begun").stat().st_size <= num_deaths:
                os._exit(1)
            return {"rows": 40}

        return build

    assert build_apart("trie", die(1), config, Index(config.index)) == {"rows": 40}
    assert (tmp_path / "begun").read_text() == ".."
    with pytest.raises(Fault, match="stage 'trie' gave up: .* the same command goes on from there"):
        build_apart("trie", die(10), config, Index(config.index))
    assert (tmp_path / "begun").read_text() == "...."


WITHOUT_MEMORY = """
import sys, time
from jobs import apart
from zerogr.config.file import load_config
from zerogr.errors import Fault
from zerogr.index.index import Index
apart.FEW = 0
config = load_config(sys.argv[1])
try:
    apart.build_apart("trie", lambda *_: time.sleep(600), config, Index(config.index))
except Fault as fault:
    print(fault)
"""


@pytest.mark.slow
def test_a_node_without_memory_ends_the_stage(config: Config, tmp_path: Path) -> None:
    """Left to itself, Ray begins a task again for ever. About 15 s: a Ray of its own that takes any memory for too much."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, str(tmp_path / "config.yaml")],
        env={**os.environ, "RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "100"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert (
        result.stdout.startswith("stage 'trie' gave up: ")
        and "ran low on memory (it needs a node with more" in result.stdout
    )


def test_nothing_is_published_once_another_driver_has_the_index(config: Config) -> None:
    def publish(config: Config, index: Index) -> dict[str, Any]:
        storage.write_json(index.path("mine.json"), {})
        other = replace(own_lease(), host="elsewhere", machine="another", command="zerogr index theirs.yaml")
        storage.write_json(path_of(index, 7), other.as_json())
        storage.write_json(index.path("theirs.json"), {})
        raise AssertionError("this was published")

    index = Index(config.index)
    with pytest.raises(Fault, match="has gone to another driver"), lease_of(index):
        build_apart("trie", publish, config, index)
    assert storage.exists(index.path("mine.json")) and not storage.exists(index.path("theirs.json"))


def test_a_few_documents_need_no_process(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "FEW", 40)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert build_apart("trie", lambda *_: {"pid": os.getpid()}, config, Index(config.index)) == {"pid": os.getpid()}
    monkeypatch.setenv("RAY_ADDRESS", "a cluster's")
    assert build_apart("trie", lambda *_: {"pid": os.getpid()}, config, Index(config.index)) != {"pid": os.getpid()}
