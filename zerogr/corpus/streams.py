"""Files as streams, lines and JSON rows: gzip is undone, the byte order mark dropped, faults of a whole file are one sentence.

Nothing is held but a buffer of 1 MiB and one line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from zerogr.corpus.document import Rejected
from zerogr.errors import UserError
from zerogr.store import hub, storage

BUFFER_BYTES = 2**20


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """Yields the file's bytes as a seekable, buffered stream; those of a name in .gz unpacked.

    Raises:
        UserError: The file is no gzip or cut short; the hub it is on does not answer.
    """
    with hub.in_one_sentence(uri), storage.open_binary(uri) as raw:
        packed = uri.lower().endswith(".gz")
        source = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw) if packed else raw)
        # Without a buffer of our own, fsspec reads a block of 5 MB for every line of a remote file, and seeks back.
        with io.BufferedReader(source, BUFFER_BYTES) as stream:
            try:
                yield stream
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                if not packed:
                    raise
                raise UserError(f"'{uri}' cannot be unpacked ({error}); it is damaged, copy it again") from error


def lines(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yields (location, line) of every line that is not blank; location is `file:line`, for whoever must find it."""
    name = uri.rpartition("/")[2]
    with opened(uri) as stream:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield f"{name}:{number}", line


def json_rows(uri: str) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yields (location, object) of every line that is not blank, or why the line is no object."""
    for location, line in lines(uri):
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
