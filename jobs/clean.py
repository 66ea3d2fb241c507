"""Deletes what dead runs, finished stages and old versions have left in an index. `zerogr clean INDEX`"""

from __future__ import annotations

import argparse
import json
from typing import Any

from jobs.command import run_module
from jobs.driving import driving
from jobs.tables import print_leftovers
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.leftovers import delete_leftover, find_leftovers


def run(uri: str, *, keep_versions: int | None = None, dry_run: bool = False, wait: bool = False) -> dict[str, Any]:
    """Deletes leftovers; returns {"index", "dry_run", "files", "bytes", "leftovers": [{"kind", "place", "files", "bytes"}]}.

    Args:
        uri: Of an index, teacher data or generators.
        keep_versions: How many versions stay; None = all.
        dry_run: Whether to tell only what would be deleted.
        wait: Whether to wait while another driver is at work there, which is refused otherwise.

    Raises:
        UserError: There is no index, or another driver is at work there.
    """
    index = Index(uri)
    if index.kind() is None:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    with driving(uri, wait=wait):
        found = find_leftovers(index, keep_versions=keep_versions)
        for leftover in [] if dry_run else found:
            delete_leftover(index, leftover)
    return {
        "index": uri,
        "dry_run": dry_run,
        "files": sum(each.num_files for each in found),
        "bytes": sum(each.num_bytes for each in found),
        "leftovers": [
            {"kind": each.kind, "place": each.place, "files": each.num_files, "bytes": each.num_bytes} for each in found
        ],
    }


def command(options: argparse.Namespace) -> None:
    """Cleans up, and prints what was, or would be, deleted."""
    found = run(options.index, keep_versions=options.keep_versions, dry_run=options.dry_run, wait=options.wait)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_leftovers(found)


if __name__ == "__main__":
    run_module("clean", command)
