"""How good the retriever is on judged collections, beside its baselines: builds an index per collection and measures it.

    python -m benchmarks.quality DATA --collections adi med --work WORK [--config CONFIG] [--set KEY.SUB=VALUE] [--out OUT]

DATA holds collections in BEIR's layout. The indexes stay in WORK: run it again after a fault, or with more collections, and
what is done is kept. OUT.json gets a row per collection and system, OUT.md the same to read; rows of other collections and of
systems that are not measured again, and what `benchmarks.experiments` wrote there, stay.
`mixed` is text, tables and code in one index: Cranfield, FeTaQA and CoSQA, each with its own instruction, measured per kind.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import command, commit, hardware, table
from jobs import index
from jobs.evaluate import dataset_name
from zerogr.config.file import load_config
from zerogr.config.tree import Config
from zerogr.index.index import Index
from zerogr.store import storage

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
METRICS = ("acc@1", "ndcg@10", "recall@100")
CHAINS = {
    "docids": (
        "The paper's chain: docids written whole",
        "The retriever writes a document's docid, token by token, and the score is its probability.",
    ),
    "lexical": (
        "The hybrid: terms and BM25",
        "`docids.scheme: terms` with `ranking.name: mix`. The retriever writes single terms, and half of the score is BM25's. "
        "Its two parts are rows of their own: `ranking=terms` is the language model's half, `ranking=lexical` BM25's.",
    ),
}
"""What is written -> the section of the results, and what it says."""
_ABOUT = (
    "Written by `benchmarks/quality.py` and `benchmarks/experiments.py`; `results.json` beside it has the same rows with "
    "their commands. Baselines index the same documents. Beam search and k = 100 unless a row says otherwise; one run each."
)
COLUMNS = (*METRICS, "num_queries", "seconds_to_index", "ms_per_query")


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
        publish(options.out, rows)


def measure(config: Config, name: str, split: str) -> list[dict[str, Any]]:
    """Returns the rows of one collection, by kind too where it has several."""
    assert config.evaluation.dataset is not None
    records = index.run(config)
    tables = storage.read_json(
        Index(config.index).path("evaluation", dataset_name(config.evaluation.dataset), "metrics.json")
    )
    found = {name: records["evaluation"].counts["rows_compared"]}
    found |= {f"{name}, {kind}": rows for kind, rows in tables["by_kind"].items()}
    size = {"num_documents": records["trie"].counts["rows"], "num_pairs": records["retriever"].counts["examples"]}
    circumstances = {"command": command(), "hardware": hardware(), "commit": commit()}
    return [
        {
            "collection": title,
            "split": split,
            "system": row["system"],
            "chain": "lexical" if config.ranking.needs_lexical else "docids",
            **{key: row[key] for key in COLUMNS},
            **size,
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


def publish(out: Path, rows: Sequence[dict[str, Any]] = (), experiment: dict[str, Any] | None = None) -> None:
    """Puts rows in the place of earlier ones of the same collection and system, an experiment in that of its title's."""
    file = out.with_suffix(".json")
    known = json.loads(file.read_text()) if file.exists() else {}
    of_rows = {(row["collection"], row["chain"], row["system"]): row for row in [*known.get("rows", []), *rows]}
    names = [name for name, *_ in of_rows]
    everything = sorted(of_rows.values(), key=lambda row: names.index(row["collection"]))
    experiments = {each["title"]: each for each in known.get("experiments", [])}
    if experiment:
        experiments[experiment["title"]] = experiment
    tables = {"rows": everything, "experiments": list(experiments.values())}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tables, indent=1) + "\n")
    lines = ["# Results", "", *_prose(_ABOUT)]
    for chain, (title, about) in CHAINS.items():
        own = [row for row in everything if row["chain"] == chain]
        lines += ["", f"## {title}", "", *_prose(about), *(_of_collections(own) if own else [])]
        for each in experiments.values():
            lines += _of_experiment(each) if each["chain"] == chain else []
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _of_collections(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a table per machine."""
    lines = []
    for machine in sorted({row["hardware"] for row in rows}):
        lines += ["", f"### Collections: {machine}", ""]
        head = ["collection", "documents", "pairs learnt", "system", *METRICS, "queries", "seconds to index"]
        lines += table(
            [*head, "ms per query", "commit"],
            [
                [
                    row["collection"], _whole(row["num_documents"]), _whole(row["num_pairs"]), row["system"],
                    *(f"{row[metric]:.3f}" for metric in METRICS), _whole(row["num_queries"]),
                    _whole(row["seconds_to_index"]), _tenths(row["ms_per_query"]), row["commit"],
                ]
                for row in rows
                if row["hardware"] == machine
            ],
        )  # fmt: skip
    return lines


def _of_experiment(experiment: dict[str, Any]) -> list[str]:
    """Returns its table: means, and in brackets the p of their difference from the first row."""
    rows = [
        [
            row["system"],
            *(f"{row[metric]:.3f}" + _p(row[f"p of {metric}"]) for metric in METRICS),
            _whole(row["seconds_to_index"]),
            _tenths(row["ms_per_query"]),
        ]
        for row in experiment["rows"]
    ]
    columns = ["", *(f"{metric} (p against the first)" for metric in METRICS), "seconds to index", "ms per query"]
    made_with = f"`{experiment['command']}`, {experiment['num_queries']} queries; {experiment['hardware']}, commit "
    return [
        "",
        f"### {experiment['title']}",
        "",
        *_prose(f"{made_with}{experiment['commit']}."),
        "",
        *table(columns, rows),
    ]


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _p(value: float | None) -> str:
    return "" if value is None else f" ({value:.2g})"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _tenths(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
