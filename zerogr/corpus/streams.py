"""Files as streams, lines and JSON rows: gzip is undone, the byte order mark dropped, faults of a whole file are one sentence.

Of a file that is not packed a stretch can be read: the lines that begin in a range of its bytes. Whatever the ranges are, every
line is in exactly one of them. Nothing is held but a buffer of 1 MiB and one line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

from zerogr.corpus.document import Rejected
from zerogr.errors import UserError
from zerogr.store import hub, storage

BUFFER_BYTES = 2**20
_SEARCH_BYTES = 2**16
"""Read at a time to find the end of a line."""


class Span(NamedTuple):
    """A part of a file: bytes of one that has lines, row groups of a Parquet file."""

    begin: int
    end: int
    """Behind the last one."""


@dataclass(slots=True)
class Place:
    """How far a file has been read; what names a row to whoever must find it."""

    name: str
    """Of the file, without its folder."""
    number: int = 0
    """Lines or rows so far."""

    @classmethod
    def in_file(cls, uri: str) -> Place:
        """Returns the beginning of a file."""
        return cls(uri.rpartition("/")[2])

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


@contextmanager
def opened(uri: str, span: Span | None = None, *, not_before: int = 0) -> Iterator[IO[bytes]]:
    """Yields the file's bytes as a buffered stream; those of a name in .gz unpacked.

    Args:
        uri: Where it is.
        span: Only the lines that begin in it, of a file that is not packed; None = the whole file, which is seekable.
        not_before: The lines of the span begin here or later.

    Raises:
        UserError: The file is no gzip or cut short; the hub it is on does not answer.
    """
    with hub.in_one_sentence(uri), storage.open_binary(uri) as raw:
        packed = uri.lower().endswith(".gz")
        source = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw) if packed else raw)
        if span is not None:
            source = _Stretch(raw, max(_line_at(raw, span.begin), not_before), _line_at(raw, span.end))
        # Without a buffer of our own, fsspec reads a block of 5 MB for every line of a remote file, and seeks back.
        with io.BufferedReader(source, BUFFER_BYTES) as stream:
            try:
                yield stream
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                if not packed:
                    raise
                raise UserError(f"'{uri}' cannot be unpacked ({error}); it is damaged, copy it again") from error


def _line_at(raw: IO[bytes], offset: int) -> int:
    """Returns where the first line begins that begins at an offset or behind it; the file's end if none does."""
    if not offset:
        return 0
    raw.seek(at := offset - 1)
    while block := raw.read(_SEARCH_BYTES):
        if (found := block.find(b"\n")) >= 0:
            return at + found + 1
        at += len(block)
    return at


class _Stretch(io.RawIOBase):
    """The bytes [begin, end) of a file."""

    def __init__(self, raw: IO[bytes], begin: int, end: int) -> None:
        super().__init__()
        raw.seek(begin)
        self._raw, self._num_left = raw, max(end - begin, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._raw.read(min(len(buffer), self._num_left))
        buffer[: len(block)] = block
        self._num_left -= len(block)
        return len(block)


def lines(uri: str, place: Place | None = None, span: Span | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields (location, line) of every line that is not blank; location is `file:line`, for whoever must find it.

    Args:
        uri: Of the file.
        place: Counts the lines, the blank ones too; None = from the beginning of the file.
        span: As for `opened`.
    """
    place = place or Place.in_file(uri)
    is_first = span is None or span.begin == 0
    with opened(uri, span) as stream:
        for line in stream:
            place.number += 1
            line = line.removeprefix(codecs.BOM_UTF8) if is_first else line
            is_first = False
            if line.strip():
                yield str(place), line


def json_rows(
    uri: str, place: Place | None = None, span: Span | None = None
) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yields (location, object) of every line that is not blank, or why the line is no object. See `lines`."""
    for location, line in lines(uri, place, span):
        try:
            row = json.loads(line.rstrip().decode())
        except UnicodeDecodeError as error:
            yield location, Rejected(location, "invalid_utf8", f"byte {error.start} of the line is not UTF-8")
        except json.JSONDecodeError as error:
            yield location, Rejected(location, "invalid_json", f"{error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
            yield location, Rejected(location, "invalid_json", f"Python cannot read it: {error}")
        else:
            if isinstance(row, dict):
                yield location, row
            else:
                yield (
                    location,
                    Rejected(location, "invalid_row", f"the line holds a {type(row).__name__}, not an object"),
                )
