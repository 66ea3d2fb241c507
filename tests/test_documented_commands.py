"""What the documentation tells people to type exists: commands, options, keys, files, and the names of things on Kubernetes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.parser import build_parser
from jobs.submit import job_of
from zerogr.config.file import config_of, load_config
from zerogr.config.tree import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = ("log.md", "results.md")
"""Pages that name files of the commits they were written at."""
KUBECTL = ("apply", "create", "delete", "describe", "get", "label", "logs", "port-forward")


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of every shell command in the fenced blocks of a page."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # prose or a diagram, with an apostrophe
            end = next((number for number, word in enumerate(words) if word in (">", "|", "&&", ";")), len(words))
            if words[:end]:
                yield words[:end]


def lines_of(program: str) -> list[Any]:
    """Returns a parameter per command line of a program that some page has."""
    return [
        pytest.param(words[1:], id=f"{page.name}: {shlex.join(words)[:60]}")
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
        if words[0] == program
    ]


@pytest.mark.parametrize("arguments", lines_of("zerogr"))
def test_zerogr(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    if options.command == "submit":
        options = job_of(options)
    load_config(None, getattr(options, "set", None) or getattr(options, "overrides", None))


def test_configurations() -> None:
    """Blocks of YAML that hold sections of a configuration, and nothing else, are ones."""
    found = 0
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            tree = yaml.safe_load(block)
            if isinstance(tree, dict) and tree.keys() <= Config.model_fields.keys():
                config_of(tree)
                found += 1
    assert found >= 2


@pytest.mark.parametrize("program", ["ray", "serve"])
def test_ray(program: str) -> None:
    import ray.scripts.scripts
    import ray.serve.scripts

    root = {"ray": ray.scripts.scripts.cli, "serve": ray.serve.scripts.cli}[program]
    lines = [line.values[0] for line in lines_of(program)]
    assert lines
    for line in lines:
        command, words = root, list(line)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert command is not root, f"there is no `{program} {line[0]}`"
        for word in words:
            assert not word.startswith("-") or word.partition("=")[0] in known, f"{line} has an unknown {word}"


def test_kubectl() -> None:
    documents = [each for path in (ROOT / "deploy").glob("*.yaml") for each in yaml.safe_load_all(path.read_text())]
    manifests = "\n".join(path.read_text() for path in (ROOT / "deploy").glob("*.yaml"))
    kinds = {(each["kind"].lower(), each["metadata"]["name"]) for each in documents}
    names = {name for _, name in kinds}
    lines = [line.values[0] for line in lines_of("kubectl")]
    assert lines
    for line in lines:
        assert line[0] in KUBECTL
        for kind, name in re.findall(r"\b(rayjob|rayservice) (zerogr-\w+)", " ".join(line)):
            assert (kind, name) in kinds
        for name in re.findall(r"\b(?:job|svc)/([a-z-]+?)(?:-serve-svc)?(?: |$)", " ".join(line)):
            assert name in names
        if line[:2] == ["create", "secret"] or line[:2] == ["create", "configmap"]:
            name = line[3] if line[1] == "secret" else line[2]
            assert f"{{name: {name}" in manifests or f"secretName: {name}" in manifests
        if line[:2] == ["create", "serviceaccount"]:
            assert f"serviceAccountName: {line[2]}" in manifests


def test_docker() -> None:
    known = set(re.findall(r"^ARG (\w+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE))
    lines = [line.values[0] for line in lines_of("docker")]
    given = {
        word.partition("=")[0]
        for line in lines
        for flag, word in zip(line, line[1:], strict=False)
        if flag == "--build-arg"
    }
    assert given and given <= known


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: page.name)
def test_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:deploy|serve|examples|benchmarks|tests)/[\w./-]+\.\w+|\bcluster\.yaml", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_a_wrong_line_would_be_found() -> None:
    with pytest.raises(SystemExit):
        test_zerogr(["evaluate", "index", "--data", "x", "--no-such-option"])
    assert list(commands("```\nzerogr config > c.yaml   # a comment\nkubectl apply \\\n  -f x | cat\n```")) == [
        ["zerogr", "config"], ["kubectl", "apply", "-f", "x"],
    ]  # fmt: skip
