"""Ablation: the same index with one thing changed, and another, measured on the same queries.

A variant is a configuration: the file's own, `base`, or one with some keys changed. Each has an index of its own; stages that
have the same inputs as those of an earlier variant are copied from there, so that four docid schemes share one set of pseudo-
queries. A variant that is done is not touched again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pyarrow as pa

from zerogr.config.evaluation import DEFAULT_METRICS
from zerogr.config.file import drop_foreign, set_key, validate_config
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.evaluation.report.ablation import CURVES, MAX_WORDS, P_OF, ablation_report
from zerogr.evaluation.significance import compare
from zerogr.index.index import StageRecord
from zerogr.store import storage

BASE = "base"
RESULTS = "results.parquet"
_COUNTS = {
    "docids": ("rows", "repaired", "coverage", "words_per_docid", "collisions"),
    "retriever": ("examples", "steps"),
}
"""Stage -> what its record counts and a reader of the table wants to know."""
SETTINGS = (*CURVES, MAX_WORDS)
"""Keys whose value every row has, changed or not: what the report's plots have on their x axes."""
_FOREIGN_SECTIONS = ("index", "compute", "evaluation", "ablation", "distil", "tuning", "pretraining")


@dataclass(frozen=True, slots=True)
class Variant:
    """One configuration of the ablation."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Key -> value, where it differs from the file."""


def variants(config: Config) -> list[Variant]:
    """Returns the base and every combination of every grid, each once.

    Raises:
        UserError: There is no grid or no data set to evaluate on, or a grid changes what is not part of the index.
    """
    if not config.ablation.grids:
        raise UserError("ablation.grids is empty; name keys and values, such as [{docids.scheme: [title, tfidf]}]")
    if config.evaluation.dataset is None:
        raise UserError("evaluation.dataset is null; an ablation needs judged queries to tell its variants apart")
    found = {BASE: Variant(BASE)}
    for grid in config.ablation.grids:
        for key, values in grid.items():
            if key.partition(".")[0] in _FOREIGN_SECTIONS:
                raise UserError(
                    f"ablation.grids names '{key}', which makes no other index; "
                    "decoding strategies with their options are compared by evaluation.strategies"
                )
            if not values:
                raise UserError(f"ablation.grids gives '{key}' no value")
        for chosen in product(*grid.values()):
            changes = {key: value for key, value in zip(grid, chosen, strict=True) if value != _value(config, key)}
            name = "+".join(f"{key}={_word(value)}" for key, value in changes.items()) or BASE
            if found.setdefault(name, Variant(name, changes)).changes != changes:
                raise UserError(f"two variants of ablation.grids would both be named '{name}'; leave one of them out")
    for variant in found.values():
        variant_config(config, variant)  # a mistake in the last one is found before the first one runs
    return list(found.values())


def variant_config(config: Config, variant: Variant, donors: Sequence[str] = ()) -> Config:
    """Returns the variant's configuration; stages are taken over from the donors' indexes where they fit.

    Settings of the file that mean nothing to another scheme, ranker or loss stay behind with the one that they belong to.

    Raises:
        UserError: A changed key does not exist or has a value that is not allowed.
    """
    tree = config.model_dump(mode="json")
    drop_foreign(tree, variant.changes)
    for key, value in variant.changes.items():
        set_key(tree, key, value, "ablation.grids")
    tree["index"] = storage.join(config.ablation.out, "indexes", variant.name)
    tree["compute"]["reuse"] = [*config.compute.reuse, *donors]
    return validate_config(tree)


def results_of(
    variant: Variant,
    config: Config,
    records: Mapping[str, StageRecord],
    queries: list[dict[str, Any]],
    base: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns a row per system of a variant, each compared with the same system of the base.

    What the base lacks, such as re-ranking by a score that only one loss teaches, is compared with the base's first system.

    Args:
        variant: What was changed.
        config: The variant's own.
        records: Of its stages, the evaluation's among them.
        queries: What its evaluation wrote of each query.
        base: The same of the base, on the same queries.
    """
    counts = {
        f"{stage}_{key}": value if isinstance(value := records[stage].counts.get(key), int | float) else None
        for stage, keys in _COUNTS.items()
        for key in keys
    }
    settings = {key: _value(config, key) for key in SETTINGS}
    seconds = {f"{stage}_s": record.seconds for stage, record in records.items()}
    rows = []
    for row in records["evaluation"].counts["rows_compared"]:
        tests: dict[str, float] = {}
        for metric in dict.fromkeys((*DEFAULT_METRICS, *config.evaluation.metrics)):
            ours, theirs = (
                [query["systems"].get(row["system"], next(iter(query["systems"].values())))[metric] for query in each]
                for each in (queries, base)
            )
            found = compare(ours, theirs)
            tests |= {f"{metric} - base": round(found.mean, 4), f"{P_OF}{metric}": round(found.p, 4)}
        changes = json.dumps(variant.changes, ensure_ascii=False)
        rows.append({"variant": variant.name, "changes": changes, **row, **tests, **settings, **counts, **seconds})
    return rows


def publish(uri: str, rows: list[dict[str, Any]], *, price_per_hour: float | None = None) -> None:
    """Writes the rows as a Parquet table, and the report; `price_per_hour` of the machine in US dollars."""
    storage.write_parquet(storage.join(uri, RESULTS), pa.Table.from_pylist(rows))
    html, markdown = ablation_report(rows, title="Ablation", price_per_hour=price_per_hour)
    storage.write_bytes(storage.join(uri, "report.html"), html.encode())
    storage.write_bytes(storage.join(uri, "report.md"), markdown.encode())


def _value(config: Config, key: str) -> Any:
    found: Any = config.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _word(value: Any) -> str:
    """Returns the value as part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(character if character.isalnum() or character in "._-" else "_" for character in text)
