"""What importing costs, and what the library may not need. Each import runs in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zerogr

ROOT = Path(zerogr.__file__).parents[1]
HEAVY = {"torch", "transformers", "ray", "vllm", "pyarrow", "numpy", "pydantic", "fsspec", "fastapi"}

BLOCK = """
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "vllm"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    """Runs code in a fresh interpreter at the project's root; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(code: str) -> set[str]:
    """Returns the packages that are loaded when the code has run."""
    last = run(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))").splitlines()[-1]
    return {name.partition(".")[0] for name in json.loads(last)}


def test_every_module_without_ray_and_vllm() -> None:
    imported = run(
        BLOCK
        + """
import zerogr
import importlib.util
has_triton = importlib.util.find_spec("triton") is not None  # it comes with torch's builds for CUDA
for module in pkgutil.walk_packages(zerogr.__path__, "zerogr."):
    if has_triton or not module.name.endswith(".kernels"):
        importlib.import_module(module.name)
    print(module.name)
"""
    ).split()
    on_disk = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in Path(zerogr.__path__[0]).rglob("*.py")
    }
    assert set(imported) | {"zerogr"} == on_disk


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="ray is blocked"):
        run(BLOCK + "import ray")


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without `__init__.py` imports from the checkout and is missing from the wheel."""
    folders = {path.parent for path in Path(zerogr.__path__[0]).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_importing_zerogr_is_free() -> None:
    assert not modules_after("import zerogr; zerogr.__version__") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["index", "--help"], ["search", "--help"], []])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
from jobs.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code
"""
    assert not modules_after(code) & HEAVY


def test_retriever_is_reached_through_the_package() -> None:
    assert run("from zerogr import Hit, Retriever; print(Retriever.__module__, Hit.__module__)").split() == [
        "zerogr.retriever",
        "zerogr.search.answer",
    ]
    with pytest.raises(AttributeError, match="module 'zerogr' has no attribute 'Retreiver'"):
        _ = zerogr.Retreiver


def test_light_rooms_do_without_torch() -> None:
    """They run in every worker that only reads and writes, and in the driver."""
    rooms = (
        "config.file store.storage index.index text.terms seeds progress llm.prompts errors corpus.stage docids.stage "
        "queries.stage llm.engines.fake trie"
    )
    imports = "; ".join(f"import zerogr.{room}" for room in rooms.split())
    assert not modules_after(imports) & {"torch", "transformers", "ray", "vllm"}


def test_no_import_of_ray_is_hidden_in_a_function() -> None:
    """The import test sees only what runs at import."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in Path(zerogr.__path__[0]).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.split()[:2] in (["import", "ray"], ["from", "ray"])
        or (line.split()[:1] == ["from"] and line.split()[1].startswith(("ray.", "jobs", "serve")))
    ]
    assert found == []
