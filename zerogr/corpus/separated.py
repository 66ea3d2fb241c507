"""Comma- and tab-separated files: a header row names the columns, quoted cells may hold separators, quotes and newlines.

A stream of rows; memory is one row. Bytes that are no UTF-8 spoil their own cell only. A row whose quotes go wrong is rejected
if it is on one line with an even number of them: the next line is taken to begin the next row. Else the file is refused,
because what follows would be guesswork, and a quote that is never closed would make one cell of the rest of the corpus.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.rows import columns_read, is_utf8, to_document, with_columns_of
from zerogr.corpus.streams import opened
from zerogr.errors import UserError

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_LIMIT_PER_DOCUMENT = 4
"""Characters of the longest cell that is read, per byte of `corpus.max_document_bytes`: a document that is up to so many times
too large is rejected by its name, and a quote that is never closed does not fill the memory."""
_PYTHONS_LIMIT = 131_072


def read_separated(uri: str, config: CorpusConfig) -> Iterator[Document | Rejected]:
    """Yields every row below the header as a document, or why it is none.

    Raises:
        UserError: The file is empty, not UTF-8 from its header on, lacks the configured columns or names one twice; a quote in
            it is not closed.
    """
    limit = min(max(_PYTHONS_LIMIT, _LIMIT_PER_DOCUMENT * config.max_document_bytes), 2**31 - 1)
    with opened(uri) as stream, _longest_cell(limit):
        rows = _rows(stream, uri, limit)
        _, header = next(rows, ("", []))
        if isinstance(header, Rejected) or not header:
            fault = header.detail if isinstance(header, Rejected) else "it is empty"
            raise UserError(f"'{uri}' has no header ({fault}); its first row must name the columns")
        if not all(map(is_utf8, header)):
            raise UserError(f"the header of '{uri}' is not UTF-8; save the file as UTF-8")
        fitted = with_columns_of(config, header, uri)
        columns = _places(header, columns_read(fitted), uri)
        for location, cells in rows:
            if isinstance(cells, Rejected):
                yield cells
            elif len(cells) != len(header):
                yield Rejected(location, "invalid_row", f"the row has {len(cells)} cells, the header {len(header)}")
            else:
                row: dict[str, Any] = {column: _decoded(cells[i]) for column, i in columns.items()}
                if "metadata" in row:
                    row["metadata"] = _parsed(row["metadata"])
                yield to_document(row, location, fitted)


class _Lines:
    """The lines of a text; the last one is remembered."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self.last = ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.last = next(self._text)
        return self.last


def _rows(stream: IO[bytes], uri: str, limit: int) -> Iterator[tuple[str, list[str] | Rejected]]:
    """Yields (location, cells) of every row that is not blank; bytes that are no UTF-8 are surrogates in the cells."""
    name = uri.rpartition("/")[2]
    lines = _Lines(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    reader = csv.reader(lines, delimiter="\t" if uri.endswith((".tsv", ".tsv.gz")) else ",", strict=True)
    while True:
        first = reader.line_num + 1
        location = f"{name}:{first}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if reader.line_num > first or lines.last.count('"') % 2:
                raise UserError(
                    f"'{uri}': where the row that begins in line {first} ends is not to be told, up to line "
                    f"{reader.line_num} ({error}); close its quotes and write a quote inside a cell twice, or raise "
                    "corpus.max_document_bytes if a cell is that long"
                ) from None
            reason = "too_large" if len(lines.last) > limit else "invalid_row"
            yield location, Rejected(location, reason, str(error))
            continue
        if cells is None:
            return
        if cells:
            yield location, cells


@contextmanager
def _longest_cell(limit: int) -> Iterator[None]:
    # The limit is the interpreter's, not the reader's.
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _places(header: list[str], wanted: set[str], uri: str) -> dict[str, int]:
    for column in sorted(wanted):
        if header.count(column) > 1:
            raise UserError(
                f"the header of '{uri}' names the column '{column}' {header.count(column)} times; rename one"
            )
    return {column: i for i, column in enumerate(header) if column in wanted}


def _decoded(cell: str) -> str | bytes:
    return cell if is_utf8(cell) else cell.encode("utf-8", "surrogateescape")


def _parsed(cell: str | bytes) -> Any:
    """Returns what the JSON in a cell says; the cell itself where it is none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
