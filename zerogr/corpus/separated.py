"""Comma- and tab-separated files: a header row names the columns, quoted cells may hold separators, quotes and newlines.
`zerogr.corpus.dialect` tells what parts the cells, and whether quotation marks count.

A stream of rows; memory is one row. Bytes that are no UTF-8 spoil their own cell only. A row whose quotes go wrong is rejected
if it is on one line with an even number of them: the next line is taken to begin the next row. Else the file is refused,
because what follows would be guesswork, and a quote that is never closed would make one cell of the rest of the corpus.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.dialect import SAMPLE_CHARACTERS, are_quotes_meant, begins_a_quote, separator_of
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.rows import columns_read, is_utf8, to_document, with_columns_of
from zerogr.corpus.streams import Place, Span, opened
from zerogr.errors import UserError

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_LIMIT_PER_DOCUMENT = 4
"""Characters of the longest cell that is read, per byte of `corpus.max_document_bytes`: a document that is up to so many times
too large is rejected by its name, and a quote that is never closed does not fill the memory."""
_PYTHONS_LIMIT = 131_072
MOST_LOOKED_AT = 2**26
"""Characters of a tab-separated file in which its first quoted cell is looked for, before the file is cut."""


def read_separated(
    uri: str, config: CorpusConfig, place: Place | None = None, span: Span | None = None
) -> Iterator[Document | Rejected]:
    """Yields every row below the header as a document, or why it is none.

    Args:
        uri: Of the file.
        config: Its columns and its dialect.
        place: Counts its lines; None = from the beginning of the file.
        span: Only the lines that begin in these bytes, of a file that `quotes_nothing`; None = the whole file.

    Raises:
        UserError: The file is empty, not UTF-8 from its header on, lacks the configured columns or names one twice; a quote in
            it is not closed.
    """
    limit = min(max(_PYTHONS_LIMIT, _LIMIT_PER_DOCUMENT * config.max_document_bytes), 2**31 - 1)
    place = place or Place.in_file(uri)
    head = _Head() if span is None else _head(uri, config, limit)
    with opened(uri, span, not_before=head.num_bytes) as stream, _longest_cell(limit):
        if span is None:
            rows = _rows(stream, uri, limit, config, place)
            header = config.column_names or _header(rows, uri)
        else:
            place.number += head.num_lines if span.begin == 0 else 0
            has_mark = span.begin == 0 and not head.num_bytes
            rows = _unquoted_rows(_Lines(_text_of(stream, may_have_mark=has_mark), place), head.separator, limit)
            header = head.header
        fitted = with_columns_of(config, header, uri)
        columns = _places(header, columns_read(fitted), uri)
        for location, cells in rows:
            if isinstance(cells, Rejected):
                yield cells
            elif len(cells) != len(header):
                yield Rejected(location, "invalid_row", f"the row has {len(cells)} cells, the header {len(header)}")
            else:
                row: dict[str, Any] = {column: _decoded(cells[i]) for column, i in columns.items()}
                yield to_document(row, location, fitted)


def quotes_nothing(uri: str, config: CorpusConfig) -> bool:
    """Whether quotation marks do nothing in a file, so that every line is a row and the file may be cut between any two.

    In a file that quotes, a line break may be inside a cell, and only reading from the first row on tells. A tab-separated file
    is looked at up to its first quoted cell, `MOST_LOOKED_AT` characters at most; if none was seen by then, it may still come.
    """
    if config.quoting != "auto":
        return config.quoting == "none"
    with opened(uri) as stream:
        lines, first, separator = _begun(stream, Place.in_file(uri), config)
        if separator != "\t":
            return False
        num_characters = 0
        for line in lines:
            if begins_a_quote(line, separator):
                lines.put_back(line)
                return not _are_quotes_meant(lines, first, separator)
            num_characters += len(line)
            if num_characters > MOST_LOOKED_AT:
                return False
    return True


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the rows of a file that quotes nothing."""

    separator: str = ""
    header: list[str] = field(default_factory=list)
    num_lines: int = 0
    num_bytes: int = 0
    """Where the line behind the header begins."""


def _head(uri: str, config: CorpusConfig, limit: int) -> _Head:
    place = Place.in_file(uri)
    with opened(uri) as stream:
        has_mark = stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        stream.seek(0)
        lines, _, separator = _begun(stream, place, config)
        if config.column_names:
            return _Head(separator, config.column_names)
        header = _header(_unquoted_rows(lines, separator, limit), uri)
    return _Head(separator, header, place.number, lines.num_bytes + len(codecs.BOM_UTF8) * has_mark)


class _Lines:
    """The lines of a text; the last one is remembered and counted, and lines may be put back."""

    def __init__(self, text: Iterator[str], place: Place) -> None:
        self._text, self._place = text, place
        self._waiting: deque[str] = deque()
        self.last = ""
        self.num_bytes = 0
        """Of the lines so far, in the file."""

    @property
    def number(self) -> int:
        """Of the last line, from 1."""
        return self._place.number

    @property
    def name(self) -> str:
        """Of the file."""
        return self._place.name

    @property
    def location(self) -> str:
        """Of the last line."""
        return str(self._place)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.last = self._waiting.popleft() if self._waiting else next(self._text)
        self._place.number += 1
        self.num_bytes += _num_bytes(self.last)
        return self.last

    def put_back(self, *lines: str) -> None:
        """Makes lines the next ones, in their order."""
        self._waiting.extendleft(reversed(lines))
        self._place.number -= len(lines)
        self.num_bytes -= sum(map(_num_bytes, lines))


def _num_bytes(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _header(rows: Iterator[tuple[str, list[str] | Rejected]], uri: str) -> list[str]:
    """Returns the names of the columns, without the spaces that pad them. Raises UserError if there are none."""
    _, header = next(rows, ("", []))
    if isinstance(header, Rejected) or not header:
        fault = header.detail if isinstance(header, Rejected) else "it is empty"
        raise UserError(
            f"'{uri}' has no header ({fault}); its first row must name the columns, or set corpus.column_names"
        )
    if not all(map(is_utf8, header)):
        raise UserError(f"the header of '{uri}' is not UTF-8; save the file as UTF-8")
    return [name.strip() for name in header]


def _text_of(stream: IO[bytes], *, may_have_mark: bool = True) -> io.TextIOWrapper:
    encoding = "utf-8-sig" if may_have_mark else "utf-8"
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")


def _begun(stream: IO[bytes], place: Place, config: CorpusConfig) -> tuple[_Lines, str, str]:
    """Returns the lines of a file, the first of them, which is not read by that, and the separator."""
    text = _text_of(stream)
    first = next(text, "")
    lines = _Lines(itertools.chain([first] if first else [], text), place)
    return lines, first, separator_of(first, place.name, config)


def _rows(
    stream: IO[bytes], uri: str, limit: int, config: CorpusConfig, place: Place
) -> Iterator[tuple[str, list[str] | Rejected]]:
    """Yields (location, cells) of every row that is not blank; bytes that are no UTF-8 are surrogates in the cells."""
    lines, first, separator = _begun(stream, place, config)
    if config.quoting == "auto" and separator == "\t":
        for line in lines:
            if begins_a_quote(line, separator):  # up to here, quotes did nothing
                lines.put_back(line)
                has_quotes = _are_quotes_meant(lines, first, separator)
                break
            yield from _unquoted(line, lines.location, separator, limit)
        else:
            return
    else:
        has_quotes = config.quoting != "none"
    yield from _quoted(lines, uri, separator, limit) if has_quotes else _unquoted_rows(lines, separator, limit)


def _are_quotes_meant(lines: _Lines, first: str, separator: str) -> bool:
    """Whether the quotation marks in the lines to come are those of a writer that quotes; `first` is the file's first line."""
    width = first.count(separator) + 1 if lines.number else None
    size = 0
    ahead = []
    for line in lines:
        ahead.append(line)
        size += len(line)
        if size > SAMPLE_CHARACTERS:
            break
    lines.put_back(*ahead)
    return are_quotes_meant(ahead, separator, width, is_cut=size > SAMPLE_CHARACTERS)


def _quoted(lines: _Lines, uri: str, separator: str, limit: int) -> Iterator[tuple[str, list[str] | Rejected]]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        first = lines.number + 1
        location = f"{lines.name}:{first}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.number > first or lines.last.count('"') % 2:
                raise UserError(
                    f"'{uri}': where the row that begins in line {first} ends is not to be told, up to line "
                    f"{lines.number} ({error}); close its quotes and write a quote inside a cell twice, set corpus.quoting to "
                    "none if quotes are characters like others here, or raise corpus.max_document_bytes if a cell is that long"
                ) from None
            reason = "too_large" if len(lines.last) > limit else "invalid_row"
            yield location, Rejected(location, reason, str(error))
            continue
        if cells is None:
            return
        if cells:
            yield location, cells


def _unquoted_rows(lines: _Lines, separator: str, limit: int) -> Iterator[tuple[str, list[str] | Rejected]]:
    for line in lines:
        yield from _unquoted(line, lines.location, separator, limit)


def _unquoted(line: str, location: str, separator: str, limit: int) -> Iterator[tuple[str, list[str] | Rejected]]:
    cells = line.rstrip("\r\n").split(separator)
    if max(map(len, cells)) > limit:
        yield location, Rejected(location, "too_large", f"a cell has more than {limit} characters")
    elif line.strip("\r\n"):
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
