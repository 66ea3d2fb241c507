"""Tables: rows of cells become Markdown, which people read and language models have read much of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def serialise_table(rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table; the first row is the header, short rows are filled with empty cells."""
    if not rows:
        return ""
    width = max(len(row) for row in rows)
    lines = ["| " + " | ".join(_cell(row[i]) if i < len(row) else "" for i in range(width)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]])


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


_CODE_LINE = re.compile(
    r"^\s*(def |class |import |from \w+ import |return\b|if .*:$|for .*:$|#include|public |private |func |fn |var |let |const "
    r"|@\w+|[\w.\[\]]+ = |\}|\{)"
)


def guess_kind(text: str) -> str:
    """Returns `table` for Markdown tables, `code` where at least a third of the lines look like source code, else `text`."""
    lines = [line for line in text[:4000].splitlines() if line.strip()]
    if any(re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+\s*", line) for line in lines):
        return "table"
    if len(lines) >= 2 and 3 * sum(bool(_CODE_LINE.match(line)) for line in lines) >= len(lines):
        return "code"
    return "text"
