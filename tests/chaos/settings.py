"""Configurations that the chaos tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jobs.cli import main
from tests import tiny

LANGUAGE_MODEL: dict[str, Any] = {
    "docids__engine": "transformers",
    "docids__max_tokens": 6,
    "queries__engine": "transformers",
    "queries__max_tokens": 6,
    "queries__num_queries_per_document": 2,
}
"""Lets the generating stages run the tiny model instead of the fake engine."""


def write_config(index: str, collection: Path, model: Path, folder: Path | None = None, **changes: Any) -> str:
    """Writes the configuration of an index into a folder, else beside the index; returns its path."""
    path = (folder or Path(index).parent) / "config.yaml"
    path.write_text(yaml.safe_dump(tiny.settings(index, collection, model, **changes)))
    return str(path)


def run_stages(index: str, collection: Path, model: Path, *stages: str, **changes: Any) -> str:
    """Runs some stages with success; returns the path of the configuration."""
    config = write_config(index, collection, model, **changes)
    for stage in stages:
        assert main([stage, config]) == 0
    return config
