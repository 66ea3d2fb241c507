"""The dialect of a separated file: what parts its cells, and whether quotation marks do anything.

A file says neither. Commas, semicolons, bars and tabs are told apart by the header. Quotation marks are harder: comma-separated
files quote cells that hold a separator (RFC 4180), while tab-separated dumps (MS MARCO, Tatoeba, Common Voice) quote nothing,
and a `"` in them is a character like others. Reading such a dump with quotes silently makes one row of several. So quotes
count in a tab-separated file only where the lines from its first quoted cell on prove that whoever wrote it meant them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

from zerogr.config.tree import CorpusConfig

SAMPLE_CHARACTERS = 2**18
"""So much of a file, from its first quoted cell on, tells whether quotes are meant."""
_SEPARATORS = (",", "\t", ";", "|")


def separator_of(header: str, name: str, config: CorpusConfig) -> str:
    """Returns what parts the cells of a file with this first line: as the configuration says, tabs for .tsv, else the first
    separator that makes the header name the columns which are read; a comma if none does."""
    if config.separator != "auto":
        return config.separator
    if name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    if config.column_names:
        return ","
    wanted = {config.doc_id_column, config.text_column, config.title_column}
    found = {each: len(wanted & {cell.strip(' "\r\n') for cell in header.split(each)}) for each in _SEPARATORS}
    best = max(_SEPARATORS, key=lambda each: found[each])
    return best if found[best] > found[","] else ","


def begins_a_quote(line: str, separator: str) -> bool:
    """Whether a cell of an unquoted line begins with a quotation mark."""
    return line.startswith('"') or f'{separator}"' in line


def are_quotes_meant(lines: Sequence[str], separator: str, width: int | None, is_cut: bool) -> bool:
    """Whether the quotation marks of some lines are those of a writer that quotes.

    They are if every row has as many cells as the header when quotes count, no joined lines are whole rows by themselves, and a
    cell is quoted that needed it, because it holds a separator, a line break or a doubled quotation mark; or if all cells are
    quoted that are no numbers.

    Args:
        lines: With their ends, from the first one on in which a cell begins with a quotation mark.
        separator: Between cells.
        width: How many cells the header has; None if it is one of the lines.
        is_cut: Whether the file goes on behind them, so that the last row may be unfinished.
    """
    rows, groups = _parsed(lines, separator, is_cut)
    width = width or (len(rows[0]) if rows else 0)
    if not rows or any(len(row) != width for row in rows):
        return False
    if any(len(group) > 1 and all(line.count(separator) + 1 == width for line in group) for group in groups):
        return False
    if any(mark in cell for row in rows for cell in row for mark in (separator, "\n", "\r", '"')):
        return True
    cells = [cell for group in groups for line in group for cell in line.rstrip("\r\n").split(separator)]
    return all(cell.startswith('"') and cell.endswith('"') for cell in cells if cell and not _is_number(cell))


def _parsed(lines: Sequence[str], separator: str, is_cut: bool) -> tuple[list[list[str]], list[Sequence[str]]]:
    """Returns the rows of lines whose quotes count, and the lines of each; none if quotes go wrong."""
    reader = csv.reader(iter(lines), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    groups: list[Sequence[str]] = []
    end = 0
    try:
        for row in reader:
            if row:
                rows.append(row)
                groups.append(lines[end : reader.line_num])
            end = reader.line_num
    except csv.Error:
        if not (is_cut and reader.line_num == len(lines)):
            return [], []
    return rows, groups


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
