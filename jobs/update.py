"""Adds documents to an index and removes others; writes a new version beside the old one. `zerogr update INDEX`"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jobs.command import run_module
from jobs.driving import driving
from jobs.lexical import make_worker as count_terms
from jobs.shards import run_shards
from jobs.stages import run_stage
from zerogr.config.tree import Config
from zerogr.editing.addition import addition_inputs, build_addition, build_lexical_of
from zerogr.editing.learn import learn, learn_inputs, learnt
from zerogr.editing.measure import Measured, measure
from zerogr.editing.rehearsal import kept, new_queries
from zerogr.editing.update import Request, Update, begin, discard, planned, statistics_config, update_config
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.stage import DOCIDS, EMBEDDINGS, LEXICAL, QUERIES, RETRIEVER, STATISTICS, TRIE
from zerogr.index.versions import Version, propose, publish
from zerogr.progress import duration
from zerogr.ranking.stage import FOLDER as TERMS_FOLDER

logger = logging.getLogger(__name__)


def run(uri: str, request: Request, overrides: list[str] | None = None, *, wait: bool = False) -> dict[str, Any]:
    """Makes and publishes a version; returns {"index", "version", "added", "removed", "seconds", "measured", ...}.

    Args:
        uri: Of the index.
        request: What is wanted.
        overrides: `KEY.SUB=VALUE`, of the index's configuration.
        wait: Whether to wait while another driver is at work there, which is refused otherwise.

    Raises:
        UserError: There is nothing to do, something does not fit the index, or too much was forgotten.
    """
    root = Index(uri)
    update_config(root, request, overrides)  # a mistake is told before anything is waited for
    with driving(uri, wait=wait):
        return _run(root, request, update_config(root, request, overrides))


def _run(root: Index, request: Request, config: Config) -> dict[str, Any]:
    """Does what `run` says, with the lease in hand."""
    start = time.monotonic()
    update = begin(root, request, config)
    if update is None:
        version = Version.of(root.manifest())
        logger.info("update: done before; version %d is current", version.number)
        return {"index": root.uri, "version": version.number, "documents": version.num_documents, "done_before": True}
    try:
        version, added, report, seconds_learning = _build(update)
    except UserError:
        if not update.index.manifest()["stages"]:  # a mistake that made nothing binds nobody
            discard(root)
        raise
    propose(root, version)
    measuring = time.monotonic()
    measured = _measured(update)
    measured_at = time.monotonic()
    publish(root, version.number)
    return {
        "index": root.uri,
        "version": version.number,
        "documents": version.num_documents,
        "added": added["rows"],
        "removed": added["removed"],
        "seconds": round(time.monotonic() - start, 3),
        "seconds_learning": seconds_learning,
        "seconds_measuring": round(measured_at - measuring, 3),
        "measured": asdict(measured),
        **({"method": report} if report else {}),
    }


def _build_lexical(update: Update) -> dict[str, Any]:
    if update.request.source is not None:
        count = partial(count_terms, update.config)
        run_shards("lexical", update.index, TERMS_FOLDER, count, update.config.compute, needs_engine=False)
    return build_lexical_of(update)


def _build(update: Update) -> tuple[Version, dict[str, Any], dict[str, Any], float]:
    """Runs the stages; returns the version, the counts of its documents, its method's report and the seconds it took."""
    request, config, root = update.request, update.config, update.root
    if request.source is not None:
        wanted = [EMBEDDINGS] if EMBEDDINGS.is_wanted(update.config) else []
        importlib.import_module("jobs.corpus").run(update.config)
        for stage in (*wanted, DOCIDS, QUERIES):
            importlib.import_module(f"jobs.{stage.command}").run(update.config)
    if config.ranking.needs_lexical:
        run_stage(LEXICAL, update.config, addition_inputs(update), lambda _, index: _build_lexical(update))
    added = run_stage(TRIE, update.config, addition_inputs(update), lambda _, index: build_addition(update)).counts
    version = planned(update, num_removed=added["removed"])
    report: dict[str, Any] = {}
    learning = time.monotonic()
    if request.source is not None and config.update.method.learns:
        if config.update.method.needs_statistics and root.record(STATISTICS.name) is None:
            importlib.import_module("jobs.statistics").run(statistics_config(root, config))
        record = run_stage(RETRIEVER, update.config, learn_inputs(update), lambda _, index: learn(update, version))
        version, report = learnt(update, version), record.counts
    return version, added, report, round(time.monotonic() - learning, 3)


def _measured(update: Update) -> Measured:
    """Returns what the proposed version finds. Raises UserError if it has forgotten too much."""
    settings = update.config.update
    sample = kept(update.root, update.config, update.before, settings.sample_size, for_measuring=True)
    old = list(sample.without(update.request.remove))
    new = new_queries(update.index, update.config) if update.request.source is not None else []
    found = measure(update, old, new)
    if found.forgotten > settings.max_forgetting:
        raise UserError(
            f"version {update.number} of '{update.root.uri}' stays unpublished: of {found.num_old} old pseudo-queries "
            f"{found.old_after:.1%} find their document first, {found.old_before:.1%} before, and update.max_forgetting is "
            f"{settings.max_forgetting}; `zerogr update {update.root.uri} --discard` forgets it, another --method may keep "
            "more, --set update.max_forgetting=... publishes it all the same"
        )
    return found


def command(options: argparse.Namespace) -> None:
    """Does what the command line says, and prints it."""
    root = Index(options.index)
    if options.discard:
        with driving(root.uri, wait=options.wait):
            had_one = discard(root)
        print("forgot the unfinished update" if had_one else "there is no unfinished update")
        return
    if options.rollback is not None:
        with driving(root.uri, wait=options.wait):
            publish(root, options.rollback)
        print(f"version {options.rollback} of {root.uri} is current")
        return
    remove = _doc_ids(options.remove) if options.remove else ()
    if options.add is None and not remove and not options.compact:
        raise UserError("there is nothing to do; give --add SOURCE, --remove FILE or --compact")
    overrides = [*(f"update.method.name={name}" for name in [options.method] if name), *options.overrides]
    request = Request(source=options.add, remove=remove, compact=options.compact)
    found = run(options.index, request, overrides, wait=options.wait)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(f"{found['index']}: version {found['version']}, {found['documents']:,} documents")
    if "measured" in found:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    measured, num_added = found["measured"], found["added"]
    each = f", {found['seconds'] / num_added:.2f} s each" if num_added else ""
    print(f"  added {num_added:,}, removed {found['removed']:,} in {duration(found['seconds'])}{each}")
    if measured["num_new"]:
        print(
            f"  new documents found first by their own queries   {measured['new_after']:.1%} of {measured['num_new']}"
        )
    if measured["num_old"]:
        print(
            f"  old ones                                         {measured['old_after']:.1%} of {measured['num_old']}, "
            f"{measured['old_before']:.1%} before"
        )


def _doc_ids(file: str) -> tuple[str, ...]:
    """Returns the doc_ids of a file, one a line."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"there is no file '{file}'; --remove takes one with a doc_id on each line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{file}' cannot be read ({error}); --remove takes a text file, a doc_id on each line"
        ) from None
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


if __name__ == "__main__":
    run_module("update", command)
