"""Searches an index with the judged queries of a collection, beside the baselines; writes run files and metrics.json.
`zerogr evaluate INDEX --dataset DIR`"""

from __future__ import annotations

from typing import Any

from jobs.stages import run_stage
from zerogr import storage
from zerogr.config import Config
from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.evaluation.compare import publish_results, run_bm25, run_strategy, table_row
from zerogr.evaluation.metrics import Run
from zerogr.index import Index, StageRecord
from zerogr.retriever import Retriever

VERSION = 1


def run(config: Config) -> StageRecord:
    """Runs the evaluation stage of an index."""
    if config.evaluation.dataset is None:
        raise UserError("evaluation.dataset is null; name a BEIR folder with judgements")
    return run_stage("evaluation", config, _inputs(config), _build)


def _inputs(config: Config) -> dict[str, Any]:
    index, evaluation = Index(config.index), config.evaluation
    return {
        "trie": index.require("trie").fingerprint,
        "retriever": index.require("retriever").fingerprint,
        **{f"evaluation.{key}": value for key, value in evaluation.model_dump().items() if key != "dataset"},
        "evaluation.dataset": _collection_hash(config),
        **{f"decoding.{key}": value for key, value in config.decoding.model_dump().items()},
        "seed": config.seed,
        "version": VERSION,
    }


def _collection_hash(config: Config) -> str:
    import hashlib

    assert config.evaluation.dataset is not None
    collection = Collection.load(config.evaluation.dataset, config.evaluation.split)
    return hashlib.sha256(
        repr((sorted(collection.queries.items()), sorted(collection.qrels.items()))).encode()
    ).hexdigest()[:16]


def _build(config: Config, index: Index) -> dict[str, Any]:
    evaluation = config.evaluation
    assert evaluation.dataset is not None
    rows = evaluate(
        index.uri,
        evaluation.dataset,
        split=evaluation.split,
        k=evaluation.k,
        strategies=list(evaluation.strategies),
        baselines=list(evaluation.baselines),
        out=index.path("evaluation", dataset_name(evaluation.dataset)),
        seed=config.seed,
    )
    return {"queries": rows[0]["num_queries"], "rows_compared": rows}


def evaluate(
    index_uri: str,
    dataset: str,
    *,
    split: str,
    k: int,
    strategies: list[str],
    baselines: list[str],
    out: str | None,
    seed: int = 0,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Returns one row per system and, if `out` is given, writes the runs and metrics there.

    Raises:
        UserError: The index or the collection is missing, or they share no document.
    """
    collection = Collection.load(dataset, split)
    retriever = Retriever.load(index_uri, device=device)
    doc_ids = retriever.doc_ids()
    collection = collection.restricted_to(doc_ids)
    rows: list[dict[str, Any]] = []
    runs: dict[str, Run] = {}
    for strategy in strategies:
        system = f"zerogr-{strategy}"
        runs[system], ms = run_strategy(retriever, collection, k=k, strategy=strategy, seed=seed)
        rows.append(table_row(system, strategy, collection, runs[system], ms))
    for baseline in baselines:
        runs[baseline], ms = run_bm25(Index(index_uri), doc_ids, collection, k=k)
        rows.append(table_row(baseline, None, collection, runs[baseline], ms))
    if out is not None:
        publish_results(out, rows, runs)
    return rows


def dataset_name(dataset: str) -> str:
    """Returns the last part of a dataset's path, the name of its folder under evaluation/."""
    return storage.join(dataset).rstrip("/").rpartition("/")[2] or "dataset"


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("evaluate")
