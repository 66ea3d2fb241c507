"""The dynamic study: a retriever learns D0, then the corpus grows by D1, D2, ..., and old and new queries are asked again.

Protocol and formulas of the replication study of generative retrieval over dynamic corpora (arXiv 2504.17519, recovered from
its tables): with P_i the share of the *initial* queries that find a relevant document among the first ten once D_i is there,
and Q_i that of the queries of D_i,

    F_n = mean over i of (P_0 - P_i)        what is forgotten, or crowded out
    GA_n = mean over i of Q_i               what is found of the new

A query belongs to the parts that hold documents relevant to it. For each part it is asked for those alone: what is relevant
to it in another part is left out of its ranking, neither reward nor penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import yaml

from zerogr.config.file import drop_foreign, set_key, validate_config
from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.judged import Query
from zerogr.errors import UserError
from zerogr.store import storage

DEPTHS = (1, 10, 100)
FIRST = 10
"""The depth that F_n and GA_n are computed at."""
_ALLOWED = ("docids", "queries", "training", "retriever", "update")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to begin and to go on."""

    name: str
    base: dict[str, Any] = field(default_factory=dict)
    """Keys of the index that differ from the file."""
    update: dict[str, Any] = field(default_factory=dict)
    """Keys of the section update that do."""

    @property
    def base_name(self) -> str:
        """Of the index that it begins with."""
        return _name(self.base) or "base"


@dataclass(frozen=True, slots=True)
class Judged:
    """The queries of one part, and what is relevant to them."""

    queries: dict[str, Query]
    relevant: dict[str, set[str]]
    """Query id -> documents of this part."""
    elsewhere: dict[str, set[str]]
    """Query id -> documents of other parts."""

    def collection(self) -> Collection:
        """Returns the queries as a collection, for baselines."""
        return Collection(self.queries, {query_id: dict.fromkeys(ids, 1) for query_id, ids in self.relevant.items()})


def variants(config: Config) -> list[Variant]:
    """Returns every combination of every grid of the section study, each once; the file itself if there is no grid.

    Raises:
        UserError: A grid changes what is the same for all, or gives a key no value.
    """
    found: dict[str, Variant] = {}
    for grid in config.study.grids or [{}]:
        for key, values in grid.items():
            if key.partition(".")[0] not in _ALLOWED:
                raise UserError(f"study.grids names '{key}'; it may change {', '.join(_ALLOWED)}")
            if not values:
                raise UserError(f"study.grids gives '{key}' no value")
        for chosen in product(*grid.values()):
            changes = dict(zip(grid, chosen, strict=True))
            base = {key: value for key, value in changes.items() if not key.startswith("update.")}
            update = {key: value for key, value in changes.items() if key.startswith("update.")}
            name = "+".join(filter(None, [_name(base), _name(update)])) or "base"
            found.setdefault(name, Variant(name, base, update))
    for variant in found.values():
        base_config(config, variant, "index")
        update_overrides(config, variant)
    return list(found.values())


def base_config(config: Config, variant: Variant, source: str) -> Config:
    """Returns the configuration of the index that a variant begins with; its corpus is `source`."""
    tree = config.model_dump(mode="json", exclude_unset=True)  # a default of one owner means nothing to another
    drop_foreign(tree, variant.base)
    for key, value in variant.base.items():
        set_key(tree, key, value, "study.grids")
    tree["index"] = storage.join(config.study.out, "indexes", variant.base_name)
    tree["corpus"] = tree.get("corpus", {}) | {
        "source": source,
        "format": "auto",
        "max_documents": None,
        "keep_judged": None,
    }
    tree["evaluation"] = {}
    return validate_config(tree)


def update_overrides(config: Config, variant: Variant) -> list[str]:
    """Returns what `zerogr update` is told with `--set`, besides the index's own configuration."""
    tree = config.model_dump(mode="json", exclude_unset=True)  # a default of one owner means nothing to another
    drop_foreign(tree, variant.update)
    for key, value in variant.update.items():
        set_key(tree, key, value, "study.grids")
    section = validate_config(tree).update.model_dump(mode="json")
    section["max_forgetting"] = 1.0  # what is forgotten is what is measured
    # A document that gets no docid is not found, and counts as that.
    return [f"update={_yaml(section)}", "compute.max_rejected_fraction=1"]


def judged_of(config: Config, parts: Sequence[set[str]]) -> list[Judged]:
    """Returns the judged queries of every part.

    Raises:
        UserError: No data set is named, or no query is left for D0.
    """
    if config.evaluation.dataset is None:
        raise UserError("evaluation.dataset is null; the study needs judged queries")
    queries: dict[str, Query] = {}
    relevant: dict[str, set[str]] = {}
    for split in config.study.splits:
        collection = Collection.load(config.evaluation.dataset, split)
        for query_id, grades in collection.qrels.items():
            queries[query_id] = collection.queries[query_id]
            relevant.setdefault(query_id, set()).update(doc_id for doc_id, grade in grades.items() if grade > 0)
    found = []
    for part in parts:
        own = {query_id: ids & part for query_id, ids in relevant.items() if ids & part}
        found.append(
            Judged(
                {query_id: queries[query_id] for query_id in own}, own, {query: relevant[query] - part for query in own}
            )
        )
    if not found[0].queries:
        raise UserError(f"no judged query of '{config.evaluation.dataset}' has a relevant document in D0")
    return [_some(found[0], config.study.num_queries, config.seed), *found[1:]]


def _some(judged: Judged, number: int | None, seed: int) -> Judged:
    """Returns so many of the queries, drawn evenly; None = all."""
    ids = list(judged.queries)
    if number is None or len(ids) <= number:
        return judged
    chosen = [ids[i] for i in np.sort(np.random.default_rng([seed, 0xD1]).choice(len(ids), number, replace=False))]
    return Judged(
        {query: judged.queries[query] for query in chosen},
        {query: judged.relevant[query] for query in chosen},
        {query: judged.elsewhere[query] for query in chosen},
    )


def hits(judged: Judged, run: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Returns hits@1, @10, @100 (the share of queries with a relevant document so early) and mrr@10 of a run.

    {} where the part has no query.
    """
    if not judged.queries:
        return {}
    ranks = []
    for query_id, wanted in judged.relevant.items():
        left = [doc_id for doc_id in run.get(query_id, ()) if doc_id not in judged.elsewhere[query_id]]
        ranks.append(next((rank for rank, doc_id in enumerate(left, 1) if doc_id in wanted), np.inf))
    found = np.array(ranks)
    shares = {f"hits@{depth}": round(float((found <= depth).mean()), 4) for depth in DEPTHS}
    return {**shares, "mrr@10": round(float(np.where(found <= 10, 1 / found, 0).mean()), 4)}


def forgetting(initial: Sequence[Mapping[str, float]], depth: int = FIRST) -> float:
    """Returns F_n of what the initial queries found after each part, P_0 first."""
    first, *later = [each[f"hits@{depth}"] for each in initial]
    return round(float(np.mean([first - each for each in later])), 4)


def generalisation(new: Sequence[Mapping[str, float]], depth: int = FIRST) -> float | None:
    """Returns GA_n of what the queries of each increment found; parts without a query do not count. None if none has."""
    shares = [each[f"hits@{depth}"] for each in new if each]
    return round(float(np.mean(shares)), 4) if shares else None


def summary(name: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a row of the table: what a system did over all increments.

    Args:
        name: Of the system.
        steps: After each part, D0 first: {"initial": hits, "new": hits, "seconds", "added"}.
    """
    initial, increments = [step["initial"] for step in steps], steps[1:]
    added = sum(step["added"] for step in increments)
    return {
        "system": name,
        "old_before": initial[0],
        "old_after": initial[-1],
        "forgetting@10": forgetting(initial),
        "forgetting@1": forgetting(initial, 1),
        "generalisation@10": generalisation([step["new"] for step in increments]),
        "generalisation@1": generalisation([step["new"] for step in increments], 1),
        "new_last": increments[-1]["all_new"] if increments else {},
        "seconds_per_document": round(sum(step["seconds"] for step in increments) / added, 3) if added else None,
        "steps": list(steps),
    }


def _name(changes: Mapping[str, Any]) -> str:
    """Returns a name for changes: a scheme's or a method's own, `key=value` for the rest."""
    return "+".join(
        str(value) if key.endswith((".scheme", ".method.name")) else f"{key.rpartition('.')[2]}={value}"
        for key, value in changes.items()
    )


def _yaml(section: dict[str, Any]) -> str:
    return yaml.safe_dump(section, default_flow_style=True, width=10**9).strip()
