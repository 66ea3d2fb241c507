"""Adds an experiment to the results: the variants of a `zerogr ablate`, or the systems of a `zerogr evaluate --out`.

    python -m benchmarks.experiments TITLE FOLDER --command TEXT [--hardware TEXT] [--commit COMMIT] [--out OUT]

FOLDER is ablation.out (results.parquet; systems without a strategy are shown once) or evaluate's --out (metrics.json).
OUT.json and OUT.md are those of `benchmarks.quality`, which writes the tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.quality import CHAINS, COLUMNS, METRICS, publish
from benchmarks.report import commit, hardware
from zerogr.errors import UserError
from zerogr.evaluation.ablation import BASE, RESULTS
from zerogr.store import storage


def main() -> None:
    """Adds what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("title")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", required=True, help="that measured it, for whoever wants to do it again")
    parser.add_argument(
        "--chain", choices=CHAINS, default="docids", help="whose section it stands in (default: docids)"
    )
    parser.add_argument("--hardware", default=hardware(), help="that it was measured on; this machine's")
    parser.add_argument("--commit", default=commit(), help="that it was measured at; the one checked out")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="without .json and .md")
    options = parser.parse_args()
    rows = of_ablation(options.folder) if (options.folder / RESULTS).exists() else of_evaluation(options.folder)
    experiment = {
        "title": options.title,
        "num_queries": rows[0]["num_queries"],
        "command": options.command,
        "hardware": options.hardware,
        "commit": options.commit,
        "chain": options.chain,
        "rows": rows,
    }
    publish(options.out, experiment=experiment)


def of_ablation(folder: Path) -> list[dict[str, Any]]:
    """Returns a row per variant and strategy, with the p of the difference from the base, and the base's other systems."""
    rows = storage.read_parquet(str(folder / RESULTS)).to_pylist()
    found = []
    for row in rows:
        if row["variant"] == BASE or row["strategy"]:
            is_base = row["variant"] == BASE
            tested = {f"p of {metric}": None if is_base else row[f"p of {metric}"] for metric in METRICS}
            name = f"{row['variant']}, {row['system']}" if row["strategy"] else row["system"]
            found.append({"system": name, **{key: row[key] for key in COLUMNS}, **tested})
    return found


def of_evaluation(folder: Path) -> list[dict[str, Any]]:
    """Returns a row per system, with the p of the difference from the first one."""
    file = folder / "metrics.json"
    if not file.exists():
        raise UserError(f"'{folder}' has neither {RESULTS} nor metrics.json")
    tables = json.loads(file.read_text())
    p = {(each["against"], each["metric"]): each["p"] for each in tables["differences"]}
    return [
        {
            "system": row["system"],
            **{key: row[key] for key in COLUMNS},
            **{f"p of {metric}": p.get((row["system"], metric)) for metric in METRICS},
        }
        for row in tables["rows"]
    ]


if __name__ == "__main__":
    main()
