"""`zerogr search --url`: a service answers, and what is printed is what an index would print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse

from jobs.cli import main
from serve.api import Unavailable
from tests.serve.toy import HTML, ToyBackend, served
from zerogr.trie.conditions import as_json, read_filter


@pytest.fixture(scope="module")
def backend() -> ToyBackend:
    return ToyBackend()


@pytest.fixture(scope="module")
def url(backend: ToyBackend) -> Iterator[str]:
    with served(backend) as url:
        yield url


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZEROGR_TOKEN", raising=False)


def mistake(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """Returns the sentence that a command ends with."""
    try:
        assert main(arguments) == status
    except SystemExit as end:
        assert end.code == status
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    return printed.err


def test_prints_hits(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--url", url, "wing lift", "-k", "2"]) == 0
    printed = capsys.readouterr()
    first, title, text, *_ = printed.out.splitlines()
    assert first.split()[0] == "1" and first.split()[2] == "report-0" and first.endswith("wing lift")
    assert (title, text.strip()[:14]) == ("     Lift of a wing", "The lift of a ")
    assert printed.err.endswith(" ms\n")


def test_prints_json(url: str, backend: ToyBackend, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-k", "2", "--url", url, "markup", "--json", "--fields", "title", "--strategy", "greedy", "--rerank"]
    assert main(["search", *arguments, "--filter", "year>=1990", "--instruction", "Find it."]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == ["hits", "took_ms"] and [hit["title"] for hit in found["hits"]] == [HTML] * 2
    assert backend.requests[-1][1].model_dump(exclude_none=True) == {
        "query": "markup", "k": 2, "strategy": "greedy", "rerank": True, "fields": ["title"], "snippet_characters": 200,
        "filter": {"year": {"gte": 1990}}, "instruction": "Find it.",
    }  # fmt: skip


def test_json_asks_for_no_contents(url: str, backend: ToyBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--url", url, "wing", "--json"]) == 0
    assert backend.requests[-1][1].fields == [] and json.loads(capsys.readouterr().out)["hits"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["index", "wing", "--url", "URL"], "with --url give a query, and no index"),
        (["--url", "URL"], "with --url give a query, and no index"),
        (["index"], "the following arguments are required: INDEX, QUERY; or give --url URL and a query"),
        ([], "the following arguments are required: INDEX, QUERY; or give --url URL and a query"),
        (["--url", "URL", " "], "the query is empty; give a few words"),
        (["--url", "URL", "a mistake"], "the index knows no such instruction"),
        (["--url", "URL", "wing", "-k", "1001"], "k: Input should be less than or equal to 1000"),
        (["--url", "URL", "wing", "--seed", "3"], "a service takes no --seed and no options of a strategy"),
        (["--url", "URL", "wing", "--strategy", "beam:beam_width=20"], "a service takes no --seed and no options"),
        (["--url", "URL", "wing", "--token-file", "missing"], "the token file 'missing' cannot be read (No such file"),
        (["index", "wing", "--token-file", "missing"], "--token-file is for a service; give --url as well"),
    ],
)
def test_mistakes(url: str, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence in mistake(["search", *(each.replace("URL", url) for each in arguments)], capsys)


def test_faults_of_the_service(url: str, backend: ToyBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no http:// or https:// URL" in mistake(["search", "--url", "host:80", "wing"], capsys, 1)
    assert "cannot be reached" in mistake(["search", "--url", "http://127.0.0.1:9", "wing"], capsys, 1)
    backend.failures.append(RuntimeError("a bug"))
    assert "internal error; the server's log says more" in mistake(["search", "--url", url, "wing"], capsys, 1)
    backend.failures.append(Unavailable("too many"))
    assert main(["search", "--url", url, "wing"]) == 0, "it comes again"


def test_the_token_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str | None] = []

    def guard(api: Any) -> Any:
        @api.middleware("http")
        async def check(request: Request, call_next: Any) -> Any:
            seen.append(request.headers.get("authorization"))
            if seen[-1] is None:
                return JSONResponse({"error": "the token is missing or wrong"}, 401)
            return await call_next(request)

        return api

    (tmp_path / "token").write_text("from-a-file\n")
    with served(ToyBackend(), guard) as url:
        assert "the token is missing or wrong" in mistake(["search", "--url", url, "wing"], capsys)
        monkeypatch.setenv("ZEROGR_TOKEN", "from-the-environment")
        assert main(["search", "--url", url, "wing"]) == 0
        assert main(["search", "--url", url, "wing", "--token-file", str(tmp_path / "token")]) == 0
    assert seen == [None, "Bearer from-the-environment", "Bearer from-a-file"]


def test_a_filter_of_the_command_line_as_json() -> None:
    found = as_json(read_filter(["year>=1990", "year<=2e3", "language=en,de", "draft=true", 'code="1,5",007x']))
    assert found == {
        "year": {"gte": 1990, "lte": 2000.0}, "language": ["en", "de"], "draft": [True], "code": ["1,5", "007x"]
    }  # fmt: skip
