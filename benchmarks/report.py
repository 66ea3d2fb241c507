"""What a benchmark says at its end: a table for people, a Markdown file to keep, and one JSON object as the last line.

Not a benchmark itself. A figure is worth what is written next to it, so the file also records the hardware, the command
and the commit.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from zerogr.machine import num_cores


def report(title: str, figures: Mapping[str, object], out: Path | None, notes: str = "") -> None:
    """Prints the figures, writes them to `out`, and prints them again as one JSON object on the last line.

    Args:
        title: What was measured, in a few words.
        figures: JSON values by name; the unit is in the name (`_s`, `_bytes`), None where there was nothing to measure. Rows,
            dicts with the same keys, become a table of their own.
        out: The Markdown file to write, with hardware, command and commit; None writes none.
        notes: What a reader must know to read the figures: how they were measured, what they leave out. Markdown.
    """
    rows_of = {name: value for name, value in figures.items() if isinstance(value, list) and _are_rows(value)}
    shown = {name: _shown(value) for name, value in figures.items() if name not in rows_of}
    name_width = max(map(len, shown), default=0)
    value_width = max(map(len, shown.values()), default=0)
    print(f"\n{title}")
    for name, value in shown.items():
        print(f"  {name:<{name_width}}  {value:>{value_width}}")
    tables_of_rows = [
        table(list(rows[0]), ([_shown(cell) for cell in row.values()] for row in rows)) for rows in rows_of.values()
    ]
    for lines in tables_of_rows:
        print("", *lines, sep="\n")
    if out is not None:
        circumstances = {
            "hardware": hardware(),
            "software": software(),
            "command": f"`{command()}`",
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        }
        tables = [
            table(["figure", ""], shown.items()),
            *tables_of_rows,
            table(["measured with", ""], circumstances.items()),
        ]
        parts = [f"# {title}", *map("\n".join, tables), notes.strip()]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    print(json.dumps(dict(figures)), flush=True)


def hardware() -> str:
    """The processor's model, how many of its cores this process may use, and the machine's memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {num_cores()} cores, {memory_gib:.0f} GiB"


def software() -> str:
    """The versions of Python and of the libraries that the figures depend on."""
    versions = (f"{name} {version(name)}" for name in ("numpy", "torch", "transformers"))
    return f"Python {platform.python_version()} ({platform.system()}), " + ", ".join(versions)


def command() -> str:
    """The command line that started this process, without the folder of the interpreter."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def commit() -> str:
    """The checked-out commit, with `-dirty` behind it where tracked files have changes; `unknown` outside git."""
    describe = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return "unknown"
    return done.stdout.strip() or "unknown"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table; columns of numbers line up on the right."""
    rows = list(rows)
    rules = ["---:" if all(cell[:1].isdigit() for cell in cells) else "---" for cells in zip(*rows, strict=True)]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows)]


def _are_rows(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, Mapping) for value in values)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "—" if value is None else str(value)
