"""Every configuration file that ships with the project is one that the program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerogr.config.file import load_config
from zerogr.evaluation.ablation import variants

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_is_valid(path: Path) -> None:
    config = load_config(str(path), ["evaluation.dataset=somewhere"])
    if config.ablation.grids:
        assert len(variants(config)) > 1
