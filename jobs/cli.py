"""The front door: the `zerogr` command. Parses, calls one room, prints; everything heavy is imported where it is used.

Results go to standard output, everything else to standard error. Exit status: 0 done, 2 the user's mistake (one sentence),
1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.parser import RECIPE_NAMES, build_parser
from jobs.tables import (
    print_ablation,
    print_comparison,
    print_differences,
    print_errors,
    print_explanation,
    print_hits,
    print_stages,
)
from zerogr.errors import Fault, UserError

if TYPE_CHECKING:
    from zerogr.config import Config


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    _set_up_logging(options.verbose)
    try:
        COMMANDS[options.command](options)
    except UserError as error:
        print(f"zerogr: {error}", file=sys.stderr)
        return 2
    except Fault as fault:
        print(f"zerogr: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zerogr: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        return 1
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main())


def run_module(name: str) -> None:
    """Makes `python -m jobs.NAME CONFIG` do what `zerogr NAME CONFIG` does."""
    sys.exit(main([name, *sys.argv[1:]]))


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    if not verbose:
        for name in ("ray", "httpx", "bm25s", "aiobotocore", "transformers", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR if name == "ray.data" else logging.WARNING)
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _load(options: argparse.Namespace) -> Config:
    from zerogr.config_file import load_config
    from zerogr.index import Index

    config = load_config(options.config, options.set)
    for stage in options.rebuild:
        Index(config.tuning.out if stage in RECIPE_NAMES[1:] else config.index).rebuild(stage)
    return config


def _index(options: argparse.Namespace) -> None:
    from jobs import index

    config = _load(options)
    records = index.run(config)
    print_stages(config.index, records)
    if "evaluation" in records:
        print()
        print_comparison(records["evaluation"].counts["rows_compared"])


def _stage(options: argparse.Namespace) -> None:
    import importlib

    config = _load(options)
    record = importlib.import_module(f"jobs.{options.command}").run(config)
    print_stages(config.index, {options.command: record})


def _train(options: argparse.Namespace) -> None:
    from jobs import train

    config = _load(options)
    record = train.run(config, options.recipe)
    print_stages(config.index if options.recipe == "retriever" else config.tuning.out, {options.recipe: record})


def _distil(options: argparse.Namespace) -> None:
    from jobs import distil
    from zerogr.config_file import load_config
    from zerogr.index import Index

    config = load_config(options.config, options.set)
    if options.rebuild:
        Index(config.distil.out).rebuild("distil")
    record = distil.run(config)
    counts = record.counts
    print_stages(config.distil.out, {"distil": record})
    width = max(map(len, counts["tasks"]))
    for name, pairs in counts["tasks"].items():
        print(
            f"    {name:<{width}}  {pairs['documents']:>9,} documents  {pairs['docids']:>9,} docids"
            f"  {pairs['queries']:>9,} queries"
        )
    print(f"    valid: {counts['valid_docids']:.1%} of the docids, {counts['valid_queries']:.1%} of the queries")


def _submit(options: argparse.Namespace) -> None:
    from jobs.submit import submit
    from zerogr.config_file import load_config

    print(
        submit(
            load_config(options.config, options.set), options.address, wait=not options.no_wait, rebuild=options.rebuild
        )
    )


def _status(options: argparse.Namespace) -> None:
    from jobs.status import print_status

    print_status(options.index, as_json=options.json)


def _how_to_decode(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Retriever.search` that the command line gives."""
    from zerogr.config import DecodingConfig
    from zerogr.evaluation.systems import StrategySpec

    how = {"k": options.k, "seed": options.seed}
    if options.strategy:
        spec = StrategySpec.parse(options.strategy)
        spec.check(options.k or DecodingConfig().k)
        how |= {"strategy": spec.strategy, **spec.options}
    return how


def _search(options: argparse.Namespace) -> None:
    import time
    from dataclasses import asdict

    from zerogr.retriever import Retriever

    how = _how_to_decode(options)
    retriever = Retriever.load(options.index)
    start = time.monotonic()
    hits = retriever.search([options.query], instruction=options.instruction, **how)[0]
    took_ms = round(1000 * (time.monotonic() - start), 1)
    if options.json:
        print(json.dumps({"hits": [asdict(hit) for hit in hits], "took_ms": took_ms}, ensure_ascii=False, indent=2))
        return
    print_hits(hits)
    print(f"{took_ms:,.0f} ms", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    from jobs.evaluate import evaluate

    comparison = evaluate(
        options.index,
        options.dataset,
        split=options.split,
        positions=options.positions,
        k=options.k,
        strategies=options.strategy or ["beam", "reverse_annealing"],
        baselines=["bm25"] if options.baseline is None else options.baseline,
        run_files=options.runs,
        seed=options.seed,
        out=options.out,
    )
    if options.json:
        print(json.dumps(comparison.tables, indent=2))
        return
    print_comparison(comparison.rows)
    for kind, rows in comparison.by_kind.items():
        print(f"\n{kind}")
        print_comparison(rows)
    print_differences(comparison.differences)
    print_errors(comparison.errors)


def _ablate(options: argparse.Namespace) -> None:
    from jobs import ablate
    from zerogr.config_file import load_config

    rows = ablate.run(load_config(options.config, options.set))
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_ablation(rows)


def _explain(options: argparse.Namespace) -> None:
    from zerogr.evaluation.explain import explain
    from zerogr.index import Index
    from zerogr.retriever import Retriever

    how = _how_to_decode(options)
    retriever = Retriever.load(options.index)
    explanation = explain(
        retriever, Index(options.index), options.query, options.doc, instruction=options.instruction, **how
    )
    if options.json:
        print(json.dumps(explanation.as_json(retriever), ensure_ascii=False, indent=2))
    else:
        print_explanation(explanation, retriever)


def _serve(options: argparse.Namespace) -> None:
    from serve.run import serve_index

    serve_index(options.index, host=options.host, port=options.port, config_file=options.config)


def _config(_options: argparse.Namespace) -> None:
    from zerogr.config_file import default_yaml

    print(default_yaml(), end="")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "index": _index,
    **dict.fromkeys(("corpus", "docids", "queries", "trie"), _stage),
    "train": _train,
    "distil": _distil,
    "ablate": _ablate,
    "submit": _submit,
    "status": _status,
    "search": _search,
    "explain": _explain,
    "evaluate": _evaluate,
    "serve": _serve,
    "config": _config,
}

if __name__ == "__main__":
    run()
