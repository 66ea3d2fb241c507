"""Answers one query, by an index or by a service. `zerogr search INDEX QUERY`, `zerogr search --url URL QUERY`"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.command import run_module
from jobs.tables import print_hits
from zerogr.config.tree import DecodingConfig
from zerogr.corpus.rows import is_utf8
from zerogr.errors import Fault, UserError
from zerogr.trie.conditions import as_json, read_filter

if TYPE_CHECKING:
    from zerogr.search.answer import Hit

TOKEN_VARIABLE = "ZEROGR_TOKEN"
SHOWN = ["title", "text"]
"""Of documents, to people."""


def how_to_decode(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Retriever.search` that the command line gives."""
    how = {"k": options.k, "seed": options.seed}
    if options.strategy:
        from zerogr.evaluation.systems import StrategySpec  # with torch, which a search over HTTP does without

        spec = StrategySpec.parse(options.strategy)
        spec.check(options.k or DecodingConfig().k)
        how |= {"strategy": spec.strategy, **spec.options}
    return how


def check_query(query: str) -> None:
    """Raises UserError for a query that nothing could answer."""
    if not query.strip():
        raise UserError("the query is empty; give a few words")
    if not is_utf8(query):
        raise UserError(f"the query {query!r} is not UTF-8; check the terminal's encoding (LANG, PYTHONUTF8=1)")


def command(options: argparse.Namespace) -> None:
    """Prints the hits."""
    if options.url is not None:
        hits, took_ms = _asked(options)
    else:
        if options.query is None:
            options.parser.error("the following arguments are required: INDEX, QUERY; or give --url URL and a query")
        hits, took_ms = _found(options)
    if options.json:
        print(json.dumps({"hits": [hit.as_json() for hit in hits], "took_ms": took_ms}, ensure_ascii=False, indent=2))
        return
    print_hits(hits)
    print(f"{took_ms:,.0f} ms", file=sys.stderr)


def _found(options: argparse.Namespace) -> tuple[list[Hit], float]:
    """Returns the hits of an index, and the milliseconds that they took."""
    from zerogr.retriever import Retriever

    if options.token_file is not None:
        raise UserError("--token-file is for a service; give --url as well")
    check_query(options.query)
    how = how_to_decode(options) | _shown(options)
    if options.rerank:
        how["rerank"] = True
    if options.filters:
        how["filter"] = read_filter(options.filters)
    retriever = Retriever.load(options.index)
    start = time.monotonic()
    hits = retriever.search([options.query], instruction=options.instruction, **how)[0]
    return hits, round(1000 * (time.monotonic() - start), 1)


def _asked(options: argparse.Namespace) -> tuple[list[Hit], float]:
    """Returns the hits of a service, and the milliseconds that they took there."""
    from zerogr.client import Client, ServiceError

    if options.index is None or options.query is not None:
        options.parser.error("with --url give a query, and no index")
    query = options.index  # the first that stands without a name
    check_query(query)
    if options.seed or ":" in (options.strategy or ""):
        raise UserError(
            "a service takes no --seed and no options of a strategy; give --strategy NAME, or search an index"
        )
    try:
        with Client(options.url, _token(options.token_file)) as client:
            answer = client.search(
                query,
                instruction=options.instruction,
                k=options.k,
                strategy=options.strategy,
                rerank=True if options.rerank else None,
                filter=as_json(read_filter(options.filters)) if options.filters else None,
                **_shown(options),
            )
    except ServiceError as error:
        is_ours = error.status is not None and 400 <= error.status < 500
        raise (UserError if is_ours else Fault)(str(error)) from None
    return answer.hits, answer.took_ms


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    shown = options.fields if options.fields is not None else [] if options.json else SHOWN
    return {"fields": shown, "snippet_characters": options.snippet_characters}


def _token(file: str | None) -> str | None:
    """Returns the token of a file, or else of the environment, if there is one."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"the token file '{file}' cannot be read ({reason})") from None


if __name__ == "__main__":
    run_module("search", command)
