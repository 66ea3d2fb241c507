"""Searches an index with the judged queries of a collection, beside the baselines; writes run files, metrics and a report.
`zerogr evaluate INDEX --dataset DIR`"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from jobs.command import run_module
from jobs.stages import run_stage
from jobs.tables import print_comparison, print_differences, print_errors
from zerogr.config.evaluation import DEFAULT_METRICS
from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.evaluation.compare import compare_systems
from zerogr.evaluation.comparison import Comparison
from zerogr.evaluation.publish import publish
from zerogr.evaluation.report.report import provenance_of
from zerogr.evaluation.runs import check_runs, read_runs
from zerogr.evaluation.systems import StrategySpec
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import EVALUATION
from zerogr.llm.encoder import Encoder
from zerogr.retriever import Retriever
from zerogr.store import storage

VERSION = 4


def run(config: Config) -> StageRecord:
    """Runs the evaluation stage of an index."""
    if config.evaluation.dataset is None:
        raise UserError("evaluation.dataset is null; name a BEIR folder with judgements")
    return run_stage(EVALUATION, config, _inputs(config), _build)


def check(config: Config) -> None:
    """Raises UserError for a mistake in the evaluation section that can be seen before there is an index."""
    evaluation = config.evaluation
    assert evaluation.dataset is not None
    for text in evaluation.strategies:
        spec = StrategySpec.parse(text)
        spec.check(evaluation.k)
    if "doc2query" in evaluation.baselines and not config.queries.num_queries_per_document:
        raise UserError(
            "evaluation.baselines has doc2query, which needs the LM's pseudo-queries, and "
            "queries.num_queries_per_document is 0; "
            "raise that, or leave doc2query out"
        )
    Collection.load(evaluation.dataset, evaluation.split)
    if "minilm" in evaluation.baselines:
        Encoder()


def _inputs(config: Config) -> dict[str, Any]:
    index, evaluation = Index(config.index), config.evaluation
    assert evaluation.dataset is not None
    return {
        "trie": index.require("trie").fingerprint,
        "retriever": index.require("retriever").fingerprint,
        **{f"evaluation.{key}": value for key, value in evaluation.model_dump().items() if key != "dataset"},
        "evaluation.dataset": Collection.load(evaluation.dataset, evaluation.split).hash(),
        **{f"decoding.{key}": value for key, value in config.decoding.model_dump().items()},
        **{f"ranking.{key}": value for key, value in config.ranking.model_dump().items()},
        **({"lexical": index.require("lexical").fingerprint} if config.ranking.needs_lexical else {}),
        "seed": config.seed,
        "version": VERSION,
    }


def _build(config: Config, index: Index) -> dict[str, Any]:
    evaluation = config.evaluation
    assert evaluation.dataset is not None
    comparison = evaluate(
        index.uri,
        evaluation.dataset,
        split=evaluation.split,
        positions=evaluation.positions,
        k=evaluation.k,
        exclude_query_id=evaluation.exclude_query_id,
        strategies=list(evaluation.strategies),
        baselines=list(evaluation.baselines),
        metrics=list(evaluation.metrics),
        out=index.path("evaluation", dataset_name(evaluation.dataset)),
        seed=config.seed,
    )
    return {"queries": len(comparison.collection.queries), "rows_compared": comparison.rows}


def evaluate(
    index_uri: str,
    dataset: str,
    *,
    split: str,
    positions: str = "all",
    k: int,
    strategies: list[str],
    baselines: list[str],
    metrics: Sequence[str] = DEFAULT_METRICS,
    run_files: Sequence[str] = (),
    out: str | None,
    seed: int = 0,
    exclude_query_id: bool = False,
    device: str | None = None,
) -> Comparison:
    """Returns the comparison and, if `out` is given, writes the runs and what is to be known about them there.

    Args:
        positions: Of the queries in their file: all, even or odd.
        strategies: As `zerogr.evaluation.systems` reads them.
        baselines: Of `zerogr.config.evaluation.BASELINES`.
        metrics: Those that differences are tested by.
        run_files: TREC runs of other systems.

    Raises:
        UserError: The index or the collection is missing, they share no document, a strategy or run file is no such thing, or a
            baseline lacks what it needs.
    """
    specs = [StrategySpec.parse(text) for text in strategies]
    for spec in specs:
        spec.check(k)
    foreign = read_runs(run_files)
    collection = Collection.load(dataset, split).at(positions)
    retriever = Retriever.load(index_uri, device=device)
    doc_ids = retriever.doc_ids()
    collection = collection.restricted_to(doc_ids)
    check_runs(foreign, collection.queries, doc_ids)
    comparison = compare_systems(
        Index(index_uri),
        retriever,
        collection,
        doc_ids=doc_ids,
        strategies=list({spec.system: spec for spec in specs}.values()),
        baselines=list(dict.fromkeys(baselines)),
        foreign=foreign,
        k=k,
        seed=seed,
        exclude_query_id=exclude_query_id,
        tested=list(dict.fromkeys(metrics)),
    )
    if out is not None:
        made_of = provenance_of(Index(index_uri), dataset=dataset, split=split, positions=positions, k=k, seed=seed)
        publish(comparison, out, title=f"Evaluation on {dataset_name(dataset)}", provenance=made_of)
    return comparison


def dataset_name(dataset: str) -> str:
    """Returns the last part of a dataset's path, the name of its folder under evaluation/."""
    return storage.join(dataset).rstrip("/").rpartition("/")[2] or "dataset"


def command(options: argparse.Namespace) -> None:
    """Measures an index and prints the tables."""
    comparison = evaluate(
        options.index,
        options.dataset,
        split=options.split,
        positions=options.positions,
        k=options.k,
        strategies=options.strategy or ["beam", "reverse_annealing"],
        baselines=["bm25"] if options.baseline is None else options.baseline,
        metrics=options.metric or DEFAULT_METRICS,
        run_files=options.runs,
        seed=options.seed,
        exclude_query_id=options.exclude_query_id,
        out=options.out,
    )
    if options.json:
        print(json.dumps(comparison.tables, indent=2))
        return
    print_comparison(comparison.rows, comparison.tested)
    for kind, rows in comparison.by_kind.items():
        print(f"\n{kind}")
        print_comparison(rows, comparison.tested)
    print_differences(comparison.differences)
    print_errors(comparison.errors)


if __name__ == "__main__":
    run_module("evaluate", command)
