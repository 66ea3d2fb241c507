"""Answers one query. `zerogr search INDEX QUERY`"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from jobs.command import run_module
from jobs.tables import print_hits
from zerogr.config.tree import DecodingConfig
from zerogr.corpus.rows import is_utf8
from zerogr.errors import UserError
from zerogr.evaluation.systems import StrategySpec
from zerogr.retriever import Retriever
from zerogr.trie.conditions import read_filter

SHOWN = ["title", "text"]
"""Of documents, to people."""


def how_to_decode(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Retriever.search` that the command line gives."""
    how = {"k": options.k, "seed": options.seed}
    if options.strategy:
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
    check_query(options.query)
    how = how_to_decode(options)
    if options.rerank:
        how["rerank"] = True
    if options.filters:
        how["filter"] = read_filter(options.filters)
    shown = options.fields if options.fields is not None else [] if options.json else SHOWN
    how |= {"fields": shown, "snippet_characters": options.snippet_characters}
    retriever = Retriever.load(options.index)
    start = time.monotonic()
    hits = retriever.search([options.query], instruction=options.instruction, **how)[0]
    took_ms = round(1000 * (time.monotonic() - start), 1)
    if options.json:
        print(json.dumps({"hits": [hit.as_json() for hit in hits], "took_ms": took_ms}, ensure_ascii=False, indent=2))
        return
    print_hits(hits)
    print(f"{took_ms:,.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    run_module("search", command)
