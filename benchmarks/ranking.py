"""What losses that rank are worth beside likelihood (docs/ranking.md).

    python -m benchmarks.ranking small/scifact out/scifact
    python -m benchmarks.ranking small/scifact out/scifact --low-resource

The collection is one with a train and a test split, as `benchmarks.sample` writes it. A retriever learns passages of all
documents; from it each loss trains on, by the same steps: the judged training queries, and two passages of each document
beside them. All are measured on the test queries, against cross-entropy on the same data. Both configurations stand in OUT;
what is finished there is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from jobs.cli import main as zerogr

LOSSES = ("cross_entropy", "margin", "prefix_margin", "ranknet", "graded")
SHARES = (0.0, 0.05, 0.1, 0.25, 1.0)


def main() -> None:
    """Trains and measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="with qrels/train.tsv and qrels/test.tsv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--instruction", default="Given a query, find the documents that answer it.")
    parser.add_argument("--scheme", default="tfidf", help="of the docids (default: tfidf)")
    parser.add_argument("--low-resource", action="store_true", help="shares of the judged queries, in place of losses")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    start, onward = configurations(options.collection, options.out, options.instruction, options.scheme)
    name = "losses"
    if options.low_resource:
        name = "low-resource"
        grid = {"training.judged_share": list(SHARES), "training.loss.name": ["cross_entropy", "graded"]}
        onward["ablation"]["grids"] = [grid]
    onward["ablation"]["out"] = str(options.out / name)
    for command, file, tree in (("index", "start", start), ("ablate", name, onward)):
        path = options.out / f"{file}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        if status := zerogr([command, str(path)]):
            raise SystemExit(status)


def configurations(collection: Path, out: Path, instruction: str, scheme: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configurations of the retriever that all begin with, and of the ablation."""
    index = out / "start"
    common = {
        "instruction": instruction,
        "corpus": {"source": str(collection), "shard_size": 100},
        "docids": {"scheme": scheme},
        "evaluation": {"dataset": str(collection), "strategies": ["beam"]},
    }
    start = {
        "index": str(index),
        **common,
        "queries": {"num_queries_per_document": 0, "num_spans_per_document": 12},
        "training": {"learning_rate": 5e-4},
    }
    onward = {
        "index": str(out / "onward"),
        **common,
        "retriever": {"model": str(index / "retriever")},
        "queries": {"num_queries_per_document": 0, "num_spans_per_document": 2},
        "negatives": {"sources": ["lexical"], "number": 7},
        "training": {"learning_rate": 2e-4, "judged": str(collection), "judged_weight": 4.0, "num_epochs": 2},
        "compute": {"reuse": [str(index)]},
        "ablation": {"grids": [{"training.loss.name": list(LOSSES)}]},
    }
    return start, onward


if __name__ == "__main__":
    main()
