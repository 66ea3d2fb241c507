"""The front door: the `zerogr` command. It finds the file that does what is asked; everything heavy is imported there."""

from __future__ import annotations

import argparse
import importlib
import sys

from jobs.command import execute
from jobs.parser import build_parser

COMMANDS = {
    "index": "jobs.index",
    "corpus": "jobs.corpus",
    "embeddings": "jobs.embeddings",
    "scheme": "jobs.scheme",
    "docids": "jobs.docids",
    "queries": "jobs.queries",
    "lexical": "jobs.lexical",
    "mine": "jobs.mine",
    "trie": "jobs.trie",
    "train": "jobs.train",
    "statistics": "jobs.statistics",
    "pretrain": "jobs.pretrain",
    "distil": "jobs.distil",
    "ablate": "jobs.ablate",
    "study": "jobs.study",
    "submit": "jobs.submit",
    "status": "jobs.status",
    "update": "jobs.update",
    "clean": "jobs.clean",
    "search": "jobs.search",
    "explain": "jobs.explain",
    "evaluate": "jobs.evaluate",
    "serve": "serve.run",
    "config": "jobs.config",
    "doctor": "jobs.doctor",
    "plan": "jobs.plan",
}
"""Command -> the module whose `command` does it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return execute(_run, options)


def _run(options: argparse.Namespace) -> None:
    importlib.import_module(COMMANDS[options.command]).command(options)


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
