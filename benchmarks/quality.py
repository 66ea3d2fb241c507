"""How good the retriever is on judged collections, beside its baselines: builds an index per collection and measures it.

    python -m benchmarks.quality DATA --collections adi med --work WORK [--config CONFIG] [--set KEY.SUB=VALUE] [--out OUT]

DATA holds collections in BEIR's layout. The indexes stay in WORK: run it again after a fault, or with more collections, and
what is done is kept. OUT.json gets a row per collection and system, OUT.md the same to read; rows of other collections stay.
`mixed` is text, tables and code in one index: Cranfield, FeTaQA and CoSQA, each with its own instruction, measured per kind.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import command, commit, hardware
from jobs import index
from jobs.evaluate import dataset_name
from zerogr import storage
from zerogr.config import Config
from zerogr.config_file import load_config
from zerogr.index import Index

COLLECTIONS = {
    "adi": ("test", "Given a question about information science, find the abstracts that answer it."),
    "med": ("test", "Given a medical question, find the abstracts that answer it."),
    "cisi": ("test", "Given a question about libraries and information science, find relevant abstracts."),
    "cranfield": ("test", "Given a question about aeronautics, find the abstracts that answer it."),
    "cacm": ("test", "Given a question about computing, find relevant articles."),
    "vaswani": ("test", "Given a question about electronics, find relevant abstracts."),
    "scifact": ("test", "Given a scientific claim, find abstracts that support or refute it."),
    "fetaqa": ("dev", "Given a question, find the table that answers it."),
    "cosqa": ("dev", "Given a web query, find the Python function that does it."),
}
"""Name -> the split that is measured, and the task in our own words."""
MIXED = ("cranfield", "fetaqa", "cosqa")
COLUMNS = ("acc@1", "ndcg@10", "recall@100", "num_queries", "seconds_to_index", "ms_per_query")


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--collections", nargs="+", choices=[*COLLECTIONS, "mixed"], required=True, metavar="NAME")
    parser.add_argument("--work", type=Path, required=True, help="where the indexes are kept")
    parser.add_argument("--config", help="a YAML file; what it does not say is the default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.SUB=VALUE")
    parser.add_argument("--baselines", default="bm25,doc2query,minilm,rrf")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="without .json and .md (default: docs/results)"
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.collections:
        folder, split = options.data / name, COLLECTIONS[name][0] if name in COLLECTIONS else "test"
        if name == "mixed":
            folder = options.work / "mixed-collection"
            write_mixed(options.data, folder)
        chosen = [
            f"index={options.work / name}", f"corpus.source={folder}", f"evaluation.dataset={folder}",
            f"evaluation.split={split}", f"evaluation.baselines=[{options.baselines}]", *options.set,
        ]  # fmt: skip
        if name in COLLECTIONS:
            chosen.append(f"instruction={json.dumps(COLLECTIONS[name][1])}")
        config = load_config(options.config, chosen)
        rows += measure(config, name, split)
        publish(rows, options.out)


def measure(config: Config, name: str, split: str) -> list[dict[str, Any]]:
    """Returns the rows of one collection, by kind too where it has several."""
    assert config.evaluation.dataset is not None
    record = index.run(config)["evaluation"]
    tables = storage.read_json(
        Index(config.index).path("evaluation", dataset_name(config.evaluation.dataset), "metrics.json")
    )
    found = {name: record.counts["rows_compared"]}
    found |= {f"{name}, {kind}": rows for kind, rows in tables["by_kind"].items()}
    circumstances = {"command": command(), "hardware": hardware(), "commit": commit()}
    return [
        {
            "collection": title,
            "split": split,
            "system": row["system"],
            **{key: row[key] for key in COLUMNS},
            **circumstances,
        }
        for title, rows in found.items()
        for row in rows
    ]


def write_mixed(data: Path, folder: Path) -> None:
    """Writes the collections of `MIXED` as one; ids get their collection's name before them, rows its instruction."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "qrels").mkdir(parents=True)
    with (
        (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus,
        (folder / "queries.jsonl").open("w", encoding="utf-8") as queries,
        (folder / "qrels" / "test.tsv").open("w", encoding="utf-8") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for name in MIXED:
            split, instruction = COLLECTIONS[name]
            for file, kind in ((corpus, "corpus"), (queries, "queries")):
                for row in _rows(data / name / f"{kind}.jsonl"):
                    row |= {
                        "_id": f"{name}-{row['_id']}",
                        "metadata": {**row.get("metadata", {}), "instruction": instruction},
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for line in (data / name / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
                query_id, doc_id, grade = line.split("\t")
                qrels.write(f"{name}-{query_id}\t{name}-{doc_id}\t{grade}\n")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def publish(rows: list[dict[str, Any]], out: Path) -> None:
    """Puts the rows in the place of earlier ones of the same collections."""
    file = out.with_suffix(".json")
    measured = {row["collection"] for row in rows}
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    everything = [row for row in known if row["collection"] not in measured] + rows
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"rows": everything}, indent=1) + "\n")
    out.with_suffix(".md").write_text(_markdown(everything))


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Results",
        "",
        "Written by `benchmarks/quality.py`; `results.json` beside it has the same rows with their commands.",
    ]
    for circumstances in sorted({(row["hardware"], row["commit"]) for row in rows}):
        lines += ["", f"## {circumstances[0]}, commit {circumstances[1]}", ""]
        lines += [
            "| collection | system | Acc@1 | nDCG@10 | Recall@100 | queries | seconds to index | ms per query |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows:
            if (row["hardware"], row["commit"]) == circumstances:
                lines.append(
                    f"| {row['collection']} | {row['system']} | {row['acc@1']:.3f} | {row['ndcg@10']:.3f} "
                    f"| {row['recall@100']:.3f} | {row['num_queries']} | {row['seconds_to_index']:,.0f} "
                    f"| {row['ms_per_query']:.1f} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
