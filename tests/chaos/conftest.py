"""What an undisturbed run makes of the small collection; the runs that are disturbed are held against it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.settings import LANGUAGE_MODEL, run_stages

Mount = Callable[[int], Path]
"""Returns a file system of so many bytes; called again, the same one with another size."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small disk; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    is_mounted = False

    def of_size(num_bytes: int) -> Path:
        nonlocal is_mounted
        options = f"{'remount,' if is_mounted else ''}size={num_bytes}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not permitted here")
        is_mounted = True
        return folder

    try:
        yield of_size
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Case:
    """An engine to disturb."""

    changes: dict[str, Any]
    """Of the configuration."""
    undisturbed: str
    """The index that an undisturbed run with it makes."""


@pytest.fixture(params=["fake", "transformers"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each fault is met by the fake engine and by a language model."""
    if request.param == "fake":
        return Case({}, request.getfixturevalue("undisturbed"))
    return Case(LANGUAGE_MODEL, request.getfixturevalue("undisturbed_lm"))


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
    """An index with corpus, docids and queries of a language model."""
    index = str(tmp_path_factory.mktemp("undisturbed-lm") / "index")
    run_stages(index, collection, tiny_model, "corpus", "docids", "queries", **LANGUAGE_MODEL)
    return index
