"""The generation benchmark: a ratio is worth nothing if its two sides do different work."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import generation
from benchmarks.generation import Recorder, measure_samples, measure_stage, no_shared_prefixes
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.transformers import TransformersEngine


@pytest.fixture
def config(tmp_path: Path, collection: Path) -> Config:
    """Ten documents in four shards."""
    corpus = {"source": str(collection), "max_documents": 10, "shard_size": 3}
    config = Config.model_validate({"index": str(tmp_path / "index"), "corpus": corpus})
    build_corpus(config, Index(config.index))
    return config


@pytest.mark.parametrize(("stage", "folder"), [("docids", "work/docids"), ("queries", "queries")])
def test_stage_and_bare_engine_are_asked_the_same(config: Config, stage: str, folder: str) -> None:
    engine = Recorder()
    figures = measure_stage(stage, config, engine, shards_in_flight=2, num_rounds=3)
    asked = Counter(engine.prompts)
    assert len(asked) == 10 and set(asked.values()) == {3 + 3}
    assert figures[f"{stage}_documents_per_s"] == pytest.approx(10 / figures[f"{stage}_s"])
    index = Index(config.index)
    assert shards_in(index.path(folder)) == [0, 1, 2, 3]


def test_separate_requests_write_what_the_samples_of_one_request_are(config: Config) -> None:
    engine = Recorder()
    figures = measure_samples(config, engine, num_prompts=4, num_rounds=1)
    assert [len(prompt.seeds) for prompt in engine.prompts] == [12] * 4 + [1] * 48
    assert figures["num_samples"] == 12 and figures["n_samples_equal"] == 1


def test_separate_requests_encode_their_whole_prompts(tiny_model: Path) -> None:
    engine = TransformersEngine(str(tiny_model), device="cpu", dtype="float32")
    encoded = []
    engine.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    twice = [Prompt(user="roast beans and grind them " * 5, seeds=(seed,)) for seed in range(2)]

    def num_encoded() -> int:
        encoded.clear()
        generations = engine.generate(twice, Sampling(max_tokens=1))
        assert sum(encoded) <= sum(generation.num_prompt_tokens for generation in generations)
        return sum(encoded) - sum(generation.num_prompt_tokens for generation in generations)

    assert num_encoded() < 0
    with no_shared_prefixes(engine):
        assert num_encoded() == 0
    assert num_encoded() < 0


def test_the_last_line_holds_the_figures(
    collection: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generation", "--engine", "fake", "--corpus", str(collection), "--documents", "8", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    generation.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["engine"] == "fake" and figures["num_documents"] == 8 and figures["shard_size"] == 2
    assert figures["ratio_vs_bare_engine"] == min(
        figures["docids_ratio_vs_bare_engine"], figures["queries_ratio_vs_bare_engine"]
    )
    for name in (
        "n_samples_cost_ratio",
        "documents_per_s",
        "docids_prompt_tokens_per_s",
        "queries_output_tokens_per_s",
    ):
        assert figures[name] > 0
