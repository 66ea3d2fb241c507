"""The plan of the house: who may import whom. Imports are read, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zerogr", "jobs", "serve")
LAYERS = (
    "errors seeds progress ragged plugins network machine",
    "config",
    "store",
    "index text",
    "corpus llm",
    "docids queries",
    "trie ranking",
    "decoding teaching",
    "training",
    "search",
    "retriever client",
    "editing mining",
    "evaluation doctor leftovers cost",
    "study",
)
"""Rooms of `zerogr` from the bottom up: a room imports from its own layer and from those below."""


def files(*packages: str) -> Iterator[Path]:
    """Yields the Python files of packages."""
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """Returns the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Returns the project's modules that a file imports anywhere: at its top, in functions, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else str(node.module))
    return found & modules


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    modules = {name_of(path) for path in files(*PACKAGES)}
    return {name_of(path): imports_of(path, modules) - {name_of(path)} for path in files(*PACKAGES)}


def test_no_import_cycle(graph: dict[str, set[str]]) -> None:
    """A circle of imports is one module in several files: none of them can be understood, or changed, alone."""
    left = dict(graph)
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these modules import each other in circles: {sorted(left)}"


def test_imports_go_down(graph: dict[str, set[str]]) -> None:
    layer_of = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms.split()}
    wrong = []
    for name, imported in graph.items():
        package, _, below = name.partition(".")
        for other in imported:
            other_package, _, other_below = other.partition(".")
            if package == "zerogr" and below and other_below:
                is_wrong = other_package != "zerogr" or (
                    layer_of[other_below.partition(".")[0]] > layer_of[below.partition(".")[0]]
                )
            else:
                is_wrong = package != other_package and other_package != "zerogr" and name != "jobs.cli"
            if is_wrong and not (name == "jobs.submit" and other == "serve"):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_every_folder_of_tests_is_a_package() -> None:
    """Two files of one name in folders that are none are one module to pytest, which then runs neither."""
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests" / "vllm"}
    assert [folder.name for folder in folders if not (folder / "__init__.py").exists()] == []


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60


def test_no_file_and_no_function_is_long() -> None:
    long = []
    for path in files(*PACKAGES, "benchmarks"):
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > MOST_LINES_OF_A_FILE:
            long.append(f"{path.relative_to(ROOT)} has {len(source.splitlines())} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not long
    assert len((ROOT / "zerogr" / "retriever.py").read_text(encoding="utf-8").splitlines()) < 200


def test_a_scheme_is_named_in_its_own_file_alone() -> None:
    """Where another room asks for a scheme by its name, the next scheme has nowhere to attach."""
    names = {path.stem for path in (ROOT / "zerogr" / "docids" / "schemes").glob("[a-z]*.py")}
    found = []
    for path in files(*PACKAGES):
        if path.parent.name in ("schemes", "ranking"):  # a ranker may be called as a scheme is
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Match):
                texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                if texts & names:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
