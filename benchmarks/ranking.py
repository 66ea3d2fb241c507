"""What losses that rank are worth beside likelihood (docs/ranking.md).

    python -m benchmarks.ranking small/scifact out/scifact
    python -m benchmarks.ranking small/scifact out/scifact --study ranknet        # a score added to the log-probability
    python -m benchmarks.ranking small/scifact out/scifact --study graded         # the parts of GR2's contrast
    python -m benchmarks.ranking small/scifact out/scifact --study low-resource   # shares of the judged queries

The collection is one with a train and a test split, as `benchmarks.sample` writes it. A retriever learns passages of all
documents; from it each loss trains on, by the same steps: the judged training queries, and passages of each document
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
STUDIES: dict[str, list[dict[str, list[Any]]]] = {
    "losses": [{"training.loss.name": list(LOSSES)}],
    "ranknet": [{"training.loss.name": ["ranknet"], "training.loss.residual": [True]}],
    "graded": [
        {"training.loss.name": ["graded"], "training.loss.penalty": ["distance", "grade"]},
        {"training.loss.name": ["graded"], "training.loss.constrained": [False]},
        {"training.loss.name": ["graded"], "training.loss.weight": [0.1]},
    ],
    "low-resource": [
        {"training.judged_share": [0.0, 0.05, 0.1, 0.25, 1.0], "training.loss.name": ["cross_entropy", "graded"]}
    ],
}


def main() -> None:
    """Trains and measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="with qrels/train.tsv and qrels/test.tsv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--instruction", default="Given a query, find the documents that answer it.")
    parser.add_argument("--scheme", default="tfidf", help="of the docids (default: tfidf)")
    parser.add_argument("--study", choices=STUDIES, default="losses", help="what is compared (default: losses)")
    parser.add_argument("--passages", type=int, default=2, help="per document, beside the judged queries (default: 2)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    start, onward = configurations(options.collection, options.out, options.instruction, options.scheme)
    onward["queries"]["num_spans_per_document"] = options.passages
    onward["ablation"] = {"grids": STUDIES[options.study], "out": str(options.out / options.study)}
    onward["compute"]["reuse"] += sorted(map(str, options.out.glob("*/indexes/*")))  # what other studies have trained
    for command, file, tree in (("index", "start", start), ("ablate", options.study, onward)):
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
    }
    return start, onward


if __name__ == "__main__":
    main()
