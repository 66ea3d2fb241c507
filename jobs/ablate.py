"""Builds and measures an index per variant of a configuration; stages that variants share are made once.
`zerogr ablate CONFIG`"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

from jobs import index
from jobs.command import run_module
from jobs.evaluate import dataset_name
from jobs.tables import print_ablation
from zerogr.config.tree import Config
from zerogr.evaluation.ablation import publish, results_of, variant_config, variants
from zerogr.index.index import Index
from zerogr.store import storage

logger = logging.getLogger(__name__)


def run(config: Config, *, wait: bool = False) -> list[dict[str, Any]]:
    """Returns a row per variant and system, those of the base first, and keeps results.parquet and the report up to date.

    `wait` as for an index.
    """
    planned = variants(config)
    assert config.evaluation.dataset is not None
    name = dataset_name(config.evaluation.dataset)
    rows: list[dict[str, Any]] = []
    donors: list[str] = []
    base: list[dict[str, Any]] = []
    for number, variant in enumerate(planned, start=1):
        logger.info("variant %d of %d: %s", number, len(planned), variant.name)
        changed = variant_config(config, variant, donors)
        records = index.run(changed, wait=wait)
        queries = _read_lines(Index(changed.index).path("evaluation", name, "queries.jsonl"))
        base = base or queries
        rows += results_of(variant, changed, records, queries, base)
        publish(config.ablation.out, rows, price_per_hour=config.ablation.price_per_hour)
        donors.append(changed.index)
    return rows


def _read_lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def command(options: argparse.Namespace) -> None:
    """Builds and measures the variants, and prints the table."""
    rows = run(options.config, wait=options.wait)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print_ablation(rows)


if __name__ == "__main__":
    run_module("ablate", command)
