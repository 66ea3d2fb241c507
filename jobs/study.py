"""Lets a corpus grow and measures what is found of the old and of the new, for any methods, docid schemes and baselines.
`zerogr study dynamic CONFIG`"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.command import run_module
from jobs.driving import driving
from zerogr.config.tree import Config
from zerogr.corpus.document import Document
from zerogr.corpus.readers import read_corpus
from zerogr.editing.statistics import Statistics
from zerogr.editing.update import Request, discard
from zerogr.errors import UserError
from zerogr.evaluation.baselines.systems import Documents, document_text, run_baseline
from zerogr.evaluation.compare import run_strategy
from zerogr.evaluation.systems import StrategySpec
from zerogr.index.index import Index
from zerogr.index.stage import STATISTICS
from zerogr.index.versions import Version, publish
from zerogr.retriever import Retriever
from zerogr.store import cache, storage
from zerogr.study import dynamic
from zerogr.study.dynamic import Judged, Variant
from zerogr.study.page import study_page
from zerogr.study.parts import write_parts

logger = logging.getLogger(__name__)


def run(config: Config, *, wait: bool = False) -> list[dict[str, Any]]:
    """Runs the dynamic study; returns a row per baseline and variant. What is done is kept, and goes on after a fault.

    `wait` as for an index.
    """
    out, wanted = config.study.out, dynamic.variants(config)
    StrategySpec.parse(config.study.strategy).check(dynamic.DEPTHS[-1])
    parts = write_parts(config, storage.join(out, "parts"))
    judged = dynamic.judged_of(config, parts)
    rows, layers = [], dict[str, Any]()
    for name in config.study.baselines:
        rows.append(_kept(out, name, lambda name=name: _baseline(config, name, parts, judged)))
    for number, variant in enumerate(wanted, 1):
        logger.info("study: %s, %d of %d", variant.name, number, len(wanted))
        rows.append(_kept(out, variant.name, lambda variant=variant: _grow(config, variant, parts, judged, wait)))
        layers |= _layers(config, variant)
    html, markdown = study_page(rows, layers, parts=[len(part) for part in parts], judged=judged)
    storage.write_bytes(storage.join(out, "report.html"), html.encode())
    storage.write_bytes(storage.join(out, "report.md"), markdown.encode())
    storage.write_json(storage.join(out, "results.json"), rows)
    return rows


def _kept(out: str, name: str, measure: Any) -> dict[str, Any]:
    """Returns a row that an earlier run has measured, or measures it."""
    uri = storage.join(out, "results", f"{name.replace('/', '_')}.json")
    if not storage.exists(uri):
        storage.write_json(uri, dynamic.summary(name, measure()))
    row: dict[str, Any] = storage.read_json(uri)
    return row


def _grow(
    config: Config, variant: Variant, parts: Sequence[set[str]], judged: Sequence[Judged], wait: bool
) -> list[dict[str, Any]]:
    """Builds the index of D0, unless another variant has, and adds one increment after the other."""
    source = storage.join(config.study.out, "parts")
    base = dynamic.base_config(config, variant, storage.join(source, "D0"))
    with driving(base.index, wait=wait):
        return _steps(config, variant, base, parts, judged)


def _steps(
    config: Config, variant: Variant, base: Config, parts: Sequence[set[str]], judged: Sequence[Judged]
) -> list[dict[str, Any]]:
    """Does what `_grow` says, with the lease in hand; returns what was found after each step."""
    source = storage.join(config.study.out, "parts")
    importlib.import_module("jobs.index").run(base)
    root = Index(base.index)
    discard(root)
    if Version.of(root.manifest()).number:
        publish(root, 0)
    steps = [_step(root, config, judged, 0, len(parts) - 1)]
    for number in range(1, len(parts)):
        request = Request(source=storage.join(source, f"D{number}"))
        done = importlib.import_module("jobs.update").run(root.uri, request, dynamic.update_overrides(config, variant))
        step = _step(root, config, judged, number, len(parts) - 1)
        steps.append({
            **step, "seconds": done["seconds"] - done["seconds_measuring"], "added": len(parts[number]),
            "learning_seconds": done["seconds_learning"], "report": done.get("method", {}),
        })  # fmt: skip
    return steps


def _step(root: Index, config: Config, judged: Sequence[Judged], number: int, last: int) -> dict[str, Any]:
    """Asks the initial queries and those of one part; at the end those of all increments."""
    retriever, spec = Retriever.load(root.uri), StrategySpec.parse(config.study.strategy)
    k = dynamic.DEPTHS[-1] if number in (0, last) else dynamic.FIRST
    found: dict[str, Any] = {"seconds": 0.0, "added": 0}

    def ask(part: Judged) -> dict[str, float]:
        if not part.queries:
            return {}
        # What is relevant elsewhere is left out of the ranking: so many more are asked for.
        spare = max(map(len, part.elsewhere.values()))
        asked = StrategySpec(spec.strategy, {**spec.options, "k": k + spare})
        return dynamic.hits(part, run_strategy(retriever, part.collection(), asked, seed=config.seed).run)

    found["initial"] = ask(judged[0])
    found["new"] = ask(judged[number]) if number else {}
    if number == last:
        found["all_new"] = ask(_together(judged[1:]))
    return found


def _baseline(config: Config, name: str, parts: Sequence[set[str]], judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Builds a baseline anew after every increment."""
    documents, steps = Documents([], [], []), list[dict[str, Any]]()
    for number in range(len(parts)):
        source = storage.join(config.study.out, "parts", f"D{number}")
        corpus = config.corpus.model_copy(update={"source": source, "format": "auto"})
        for row in read_corpus(corpus):
            if isinstance(row, Document):
                documents.doc_ids.append(row.doc_id)
                documents.texts.append(document_text(row.title, row.text))
                documents.pseudo_queries.append([])
        asked = {"initial": judged[0], "new": judged[number] if number else Judged({}, {}, {})}
        if number == len(parts) - 1:
            asked["all_new"] = _together(judged[1:])
        start = time.monotonic()
        step: dict[str, Any] = _asked(name, documents, asked)
        seconds = time.monotonic() - start
        steps.append({**step, "seconds": seconds if number else 0.0, "added": len(parts[number]) if number else 0})
    return steps


def _asked(name: str, documents: Documents, asked: Mapping[str, Judged]) -> dict[str, dict[str, float]]:
    """Returns what a baseline, built once, finds for several sets of queries."""
    together = _together(list(asked.values()))
    spare = max((len(others) for others in together.elsewhere.values()), default=0)
    run = run_baseline(name, documents, together.collection(), dynamic.DEPTHS[-1] + spare, []).run
    return {
        key: dynamic.hits(part, {query: run[f"{number}/{query}"] for query in part.queries})
        for number, (key, part) in enumerate(asked.items())
    }


def _together(parts: Sequence[Judged]) -> Judged:
    """Returns the queries of several parts, each with what is relevant in the part that it is of."""
    together = Judged({}, {}, {})
    for number, part in enumerate(parts):
        for query_id, query in part.queries.items():
            key = f"{number}/{query_id}"
            together.queries[key] = query
            together.relevant[key], together.elsewhere[key] = part.relevant[query_id], part.elsewhere[query_id]
    return together


def _layers(config: Config, variant: Variant) -> dict[str, Any]:
    """Returns what patching has shown of the layers of a variant's index, where it was measured."""
    root = Index(dynamic.base_config(config, variant, "parts").index)
    if root.record(STATISTICS.name) is None:
        return {}
    statistics = Statistics.load(cache.local_folder(root.path(STATISTICS.name)))
    return {variant.base_name: (statistics.patched, statistics.unpatched)} if statistics.patched else {}


def command(options: argparse.Namespace) -> None:
    """Runs the study and prints its table."""
    if options.study != "dynamic":
        raise UserError(f"there is no study '{options.study}'; there is dynamic")
    rows = run(options.config, wait=options.wait)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
        return
    width = max(len(row["system"]) for row in rows)
    print(f"{'system':<{width}}{'old @10':>9}{'after':>8}{'F_n':>8}{'new @1':>8}{'new @10':>9}{'GA_n':>8}{'s/doc':>8}")
    for row in rows:
        new, seconds = row["new_last"], row["seconds_per_document"]
        print(
            f"{row['system']:<{width}}{row['old_before']['hits@10']:>9.3f}{row['old_after']['hits@10']:>8.3f}"
            f"{row['forgetting@10']:>8.3f}{new['hits@1']:>8.3f}{new['hits@10']:>9.3f}{row['generalisation@10'] or 0:>8.3f}"
            f"{seconds:>8.2f}"
        )
    print(f"\n{storage.join(options.config.study.out, 'report.html')}")


if __name__ == "__main__":
    run_module("study", command)
