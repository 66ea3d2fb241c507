"""SciFact in the paper's way on one GPU: pseudo-queries, whole docids, constrained search; and how it is best searched.

    after 1, 2 and 4 passes     nDCG@10, Acc@1, Recall@100 of beam and of reverse annealing, T_max .5, 1 and 1.5
    at the end                  reverse annealing with `exact` removal
    the hybrid                  terms and lexical index, each and together, from the same pseudo-queries, one pass
    every search                in the order in which it was found and by score; its hits are kept with their scores

Every stage is kept in the folder of the results, and a run that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
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
from zerogr.ranking.stage import FOLDER as LEXICAL_FOLDER
from zerogr.ranking.stage import TermCounter, build_lexical, lexical_inputs
from zerogr.retriever import Retriever
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.recipe import run_recipe
from zerogr.trie.stage import build_trie, trie_inputs

HYBRID = {"docids": {"scheme": "terms"}, "ranking": {"name": "mix", "parts": {"terms": 0.5, "lexical": 0.5}}}
INSTRUCTION = "Given a scientific claim, find the abstract that supports or refutes it."


def measure(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Runs the chain; None without a model and data."""
    if not arguments.model or not arguments.data:
        print("\nchain: left out; it needs --model and --data")
        return None
    chain = _Chain(arguments, device)
    for num_passes in (1,) if arguments.dry_run else (1, 2, 4):
        retriever = chain.trained(f"{num_passes} passes", num_passes, {"docids": {"scheme": "tfidf"}})
        chain.search(retriever, "beam")
        for temperature in (1.5,) if arguments.dry_run or num_passes == 2 else (0.5, 1.0, 1.5):
            chain.search(retriever, "reverse_annealing", max_temperature=temperature)
    chain.search(retriever, "reverse_annealing", without_replacement="exact")
    retriever = chain.trained("hybrid", 1, HYBRID)
    for ranking in ("mix", "terms", "lexical"):
        chain.search(retriever, "beam", ranking=ranking)
    return chain.rows


class _Chain:
    """The indexes of one collection, and the rows of what was found in them."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.rows: list[dict[str, Any]] = []
        self._arguments, self._device, self._seconds, self._name = arguments, device, 0.0, ""
        self._folder = arguments.out / "chain"

    def trained(self, name: str, num_passes: int, changes: dict[str, Any]) -> Retriever:
        """Returns a retriever that has seen all pairs so often."""
        start = time.monotonic()
        config = _config(self._arguments, self._folder / name.replace(" ", "-"), num_passes, self._device, changes)
        index = _index(config, self._folder / "1-passes")
        self._name, self._seconds = name, time.monotonic() - start
        return Retriever.load(index.uri, device=self._device.type)

    def search(self, retriever: Retriever, strategy: str, **options: Any) -> None:
        """Adds the figures of a search in its own order and ordered by score, and keeps its hits with their scores."""
        arguments = self._arguments
        collection = Collection.load(str(arguments.data)).restricted_to(retriever.doc_ids())
        queries = [query.text for query in collection.queries.values()]
        k = 10 if arguments.dry_run else 100
        start = time.monotonic()
        hits = retriever.search(queries, k=k, strategy=strategy, batch_size=64, **options)
        taken = (time.monotonic() - start) / len(queries)
        found = dict(zip(collection.queries, hits, strict=True))
        kept = {query: [(hit.doc_id, hit.score) for hit in of_query] for query, of_query in found.items()}
        words = "-".join([self._name, strategy, *(str(value) for value in options.values())]).replace(" ", "-")
        (self._folder / f"hits-{words}.json").write_text(json.dumps(kept))
        for order in ("as found", "by score"):
            ranked = kept
            if order == "by score":
                ranked = {query: sorted(of_query, key=lambda hit: -hit[1]) for query, of_query in kept.items()}
            run = {query: [doc_id for doc_id, _ in of_query] for query, of_query in ranked.items()}
            judged = list(evaluate_queries(collection.qrels, run).values())
            means = {
                name: sum(each[name] for each in judged) / len(judged) for name in ("acc@1", "ndcg@10", "recall@100")
            }
            self.rows.append({
                "retriever": self._name, "seconds to here": self._seconds, "strategy": strategy,
                "options": ", ".join(f"{name} {value}" for name, value in options.items()), "order": order, **means,
                "ms a query": 1e3 * taken,
            })  # fmt: skip
            print(self.rows[-1], flush=True)


def _config(
    arguments: argparse.Namespace, folder: Path, num_passes: int, device: torch.device, changes: dict[str, Any]
) -> Config:
    is_dry = arguments.dry_run
    return validate_config({
        "index": str(folder),
        "instruction": INSTRUCTION,
        "corpus": {"source": str(arguments.data), "format": "beir", **({"max_documents": 40} if is_dry else {})},
        "queries": {"model": arguments.model, "engine": "transformers", "num_spans_per_document": 4 if is_dry else 48,
                    "num_queries_per_document": 1 if is_dry else 8},
        "retriever": {"model": arguments.model},
        "training": {"num_epochs": num_passes, "batch_size": 16 if is_dry else 1024, "learning_rate": 1e-3,
                     "normalise": "allowed"},
        "compute": {"engine_batch_size": 8 if is_dry else 1024, "num_gpus_per_trainer": int(device.type == "cuda")},
        **changes,
    })  # fmt: skip


def _index(config: Config, made: Path) -> Index:
    """Returns the index, finished; what does not depend on the passes is taken over from the first one."""
    index, donor = Index(config.index), Index(str(made))

    def run(stage: str, inputs: dict[str, Any], build: Any) -> None:
        if not index.adopt(stage, inputs, donor, config=config.model_dump(mode="json")) and index.begin(stage, inputs):
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

    def lexical() -> dict[str, Any]:
        shards(LEXICAL_FOLDER, TermCounter(index))
        return build_lexical(index)

    if config.ranking.needs_lexical:
        run("lexical", lexical_inputs(index), lexical)
    run("trie", trie_inputs(config, index), lambda: build_trie(config, index))
    recipe = RECIPES["retriever"](config)
    device = "cuda" if config.compute.num_gpus_per_trainer else "cpu"
    checkpoints = index.path("work", "training", "checkpoints")
    run("retriever", recipe.inputs(), lambda: run_recipe(recipe, checkpoints, device=device))
    return index
