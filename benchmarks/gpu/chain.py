"""SciFact in the paper's way on one GPU: pseudo-queries, whole docids, constrained search; and how it is best searched.

    after 1, 2 and 4 passes     nDCG@10, Acc@1, Recall@100 of beam and of reverse annealing
    at the end                  reverse annealing with T_max .5, 1 and 1.5, with `exact` removal, and ordered by score

Every stage is kept in the folder of the results, and a run that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.docids.stage import FOLDER, DocidProposer, assign_docids, docids_inputs
from zerogr.evaluation.metrics import evaluate_queries
from zerogr.index.index import Index
from zerogr.llm.engines.loading import load_engine
from zerogr.queries.stage import QueryWriter, queries_counts, queries_inputs
from zerogr.retriever import Retriever
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.recipe import run_recipe
from zerogr.trie.stage import build_trie, trie_inputs

INSTRUCTION = "Given a scientific claim, find the abstract that supports or refutes it."


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Runs the chain; None without a model and data."""
    if not arguments.model or not arguments.data:
        print("\nchain: left out; it needs --model and --data")
        return None
    rows: list[dict[str, Any]] = []
    for num_passes in (1,) if arguments.dry_run else (1, 2, 4):
        start = time.monotonic()
        index = _index(_config(arguments, num_passes, device), arguments.out / "chain" / "index-1")
        trained = time.monotonic() - start
        retriever = Retriever.load(index.uri, device=device.type)
        searches: list[tuple[str, dict[str, Any]]] = [("beam", {}), ("reverse_annealing", {"max_temperature": 1.5})]
        if num_passes != 2 and not arguments.dry_run:
            searches += [
                ("reverse_annealing", {"max_temperature": 0.5}),
                ("reverse_annealing", {"max_temperature": 1.0}),
            ]
            searches += [("reverse_annealing", {"without_replacement": "exact"})]
        for strategy, options in searches:
            rows += _searched(arguments, retriever, num_passes, strategy, options, trained)
            for row in rows[-2:]:
                print(row, flush=True)
    return rows


def _config(arguments: argparse.Namespace, num_passes: int, device: torch.device) -> Config:
    is_dry = arguments.dry_run
    return validate_config({
        "index": str(arguments.out / "chain" / f"index-{num_passes}"),
        "instruction": INSTRUCTION,
        "corpus": {"source": str(arguments.data), "format": "beir", **({"max_documents": 40} if is_dry else {})},
        "docids": {"scheme": "tfidf"},
        "queries": {"model": arguments.model, "engine": "transformers", "num_spans_per_document": 4 if is_dry else 48,
                    "num_queries_per_document": 1 if is_dry else 8},
        "retriever": {"model": arguments.model},
        "training": {"num_epochs": num_passes, "batch_size": 16 if is_dry else 1024, "learning_rate": 1e-3,
                     "normalise": "allowed"},
        "compute": {"engine_batch_size": 8 if is_dry else 1024, "num_gpus_per_trainer": int(device.type == "cuda")},
    })  # fmt: skip


def _index(config: Config, made: Path) -> Index:
    """Returns the index, finished; what does not depend on the passes is taken over from the first one."""
    index, donor = Index(config.index), Index(str(made))

    def run(stage: str, inputs: dict[str, Any], build: Any) -> None:
        if index.begin(stage, inputs) and not index.adopt(stage, inputs, donor, config=config.model_dump(mode="json")):
            start = time.monotonic()
            counts = build()
            seconds = time.monotonic() - start
            index.finish(stage, inputs, config=config.model_dump(mode="json"), counts=counts, seconds=seconds)

    def shards(folder: str, writer: Any) -> None:
        for shard in index.pending_shards(folder):
            writer(shard)

    def docids() -> dict[str, Any]:
        shards(FOLDER, DocidProposer(config, index, None))
        return assign_docids(config, index)

    def queries() -> dict[str, Any]:
        engine = load_engine("transformers", config.queries.model, batch_size=config.compute.engine_batch_size)
        shards("queries", QueryWriter(config, index, engine))
        return queries_counts(index)

    run("corpus", corpus_inputs(config), lambda: build_corpus(config, index))
    run("docids", docids_inputs(config, index), docids)
    run("queries", queries_inputs(config, index), queries)
    run("trie", trie_inputs(config, index), lambda: build_trie(config, index))
    recipe = RECIPES["retriever"](config)
    device = "cuda" if config.compute.num_gpus_per_trainer else "cpu"
    checkpoints = index.path("work", "training", "checkpoints")
    run("retriever", recipe.inputs(), lambda: run_recipe(recipe, checkpoints, device=device))
    return index


def _searched(
    arguments: argparse.Namespace,
    retriever: Retriever,
    num_passes: int,
    strategy: str,
    options: dict[str, Any],
    trained: float,
) -> list[dict[str, Any]]:
    """Returns the figures of a search in its own order, and ordered by score."""
    collection = Collection.load(str(arguments.data)).restricted_to(retriever.doc_ids())
    queries = [query.text for query in collection.queries.values()]
    start = time.monotonic()
    hits = retriever.search(queries, k=10 if arguments.dry_run else 100, strategy=strategy, batch_size=64, **options)
    taken = (time.monotonic() - start) / len(queries)
    rows = []
    for order in ("as drawn", "by score"):
        run = {}
        for query_id, of_query in zip(collection.queries, hits, strict=True):
            kept = of_query if order == "as drawn" else sorted(of_query, key=lambda hit: -hit.score)
            run[query_id] = [hit.doc_id for hit in kept]
        found = list(evaluate_queries(collection.qrels, run).values())
        means = {name: sum(each[name] for each in found) / len(found) for name in ("acc@1", "ndcg@10", "recall@100")}
        rows.append({
            "passes": num_passes, "seconds to here": trained, "strategy": strategy, "options": str(options or ""),
            "order": order, **means, "ms a query": 1e3 * taken,
        })  # fmt: skip
    return rows
