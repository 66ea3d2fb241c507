"""Training examples that are tokenised by all machines before they train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import examples as job
from jobs.cli import main
from tests import tiny
from zerogr.config.file import load_config
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.training.examples import Examples
from zerogr.training.recipes.retriever import JUDGED, RetrieverRecipe

pytestmark = pytest.mark.integration


@pytest.fixture
def config(tiny_index: str, collection: Path, tmp_path: Path) -> Config:
    """Of a copy of the index whose retriever also learns from judged queries."""
    shutil.copytree(tiny_index, tmp_path / "index")
    config = load_config(str(Path(tiny_index).parent / "config.yaml"))
    training = config.training.model_copy(update={"judged": str(collection), "judged_split": "test"})
    return config.model_copy(update={"index": str(tmp_path / "index"), "training": training})


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a large corpus."""
    monkeypatch.setattr(job, "WORTH_IT", 0)


def examples_of(config: Config) -> Examples:
    recipe = RetrieverRecipe(config)
    examples = recipe.examples(None)
    recipe.close()
    return examples


def test_published_they_are_those_that_a_rank_would_make(
    config: Config, worth_it: None, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    index, recipe = Index(config.index), RetrieverRecipe(config)
    here = examples_of(config)
    job.publish_examples(config, index)
    parts = recipe.parts()
    assert len(parts) == 6 and parts[-1] == JUDGED and recipe.published().names() == set(parts)

    def build(*_: Any) -> Examples:
        raise AssertionError("they are there")

    with monkeypatch.context() as patch:
        patch.setattr(Examples, "build", build)
        fetched = examples_of(config)
        job.publish_examples(config, index)  # there is nothing left to do
    assert fetched.prefixes == here.prefixes
    for name in Examples.__dataclass_fields__.keys() - {"prefixes"}:
        assert np.array_equal(getattr(fetched, name), getattr(here, name)), name


def test_a_part_that_is_not_there_is_tokenised(config: Config, worth_it: None, local_ray: None) -> None:
    here = examples_of(config)
    job.publish_examples(config, Index(config.index))
    for name in ("000001", JUDGED):
        [file] = (Path(config.index) / "work/training/examples").glob(f"*/{name}.*")
        file.unlink()
        assert np.array_equal(examples_of(config).answer_tokens, here.answer_tokens)


def test_a_small_corpus_is_not_worth_it(config: Config) -> None:
    job.publish_examples(config, Index(config.index))
    assert not (Path(config.index) / "work/training").exists()


def test_training_from_published_ones(
    config: Config, tiny_index: str, worth_it: None, local_ray: None, tmp_path: Path
) -> None:
    """The same weights to the last bit, and nothing is left of them."""
    file = str(Path(tiny_index).parent / "config.yaml")
    assert main(["train", file, "--set", f"index={config.index}", "--rebuild", "retriever"]) == 0
    weights = [(Path(uri) / "retriever/model.safetensors").read_bytes() for uri in (tiny_index, config.index)]
    assert weights[0] == weights[1]
    assert not (Path(config.index) / "work/training").exists()


def test_a_mistake_is_the_users(config: Config, worth_it: None, tmp_path: Path, local_ray: None) -> None:
    other = tiny.write_collection(tmp_path / "other", [{"_id": "x", "text": "about: nothing of this"}])
    training = config.training.model_copy(update={"judged": str(other)})
    with pytest.raises(UserError, match="none of the 1 judged queries"):
        job.publish_examples(config.model_copy(update={"training": training}), Index(config.index))
