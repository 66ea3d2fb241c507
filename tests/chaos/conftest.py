"""What an undisturbed run makes of the small collection; the runs that are disturbed are held against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.settings import LANGUAGE_MODEL, run_stages


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None) -> str:
    """An index with corpus, docids and queries of the fake engine."""
    index = str(tmp_path_factory.mktemp("undisturbed") / "index")
    run_stages(index, collection, tiny_model, "corpus", "docids", "queries")
    return index


@pytest.fixture(scope="session")
def undisturbed_lm(
    tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None
) -> str:
    """An index with corpus and docids of a language model."""
    index = str(tmp_path_factory.mktemp("undisturbed-lm") / "index")
    run_stages(index, collection, tiny_model, "corpus", "docids", **LANGUAGE_MODEL)
    return index
