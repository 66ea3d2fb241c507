"""Readers: a source becomes a stream of documents and rejected rows, in the source's own order.

A fault of one row is that row's fault (`Rejected`, with a reason); a fault of the whole source, such as a missing column,
is one `UserError`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zerogr.config.tree import CorpusConfig
from zerogr.corpus import mair, separated
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.corpus.rows import columns_read, to_document, with_columns_of
from zerogr.corpus.separated import read_separated
from zerogr.corpus.streams import Place, Span, json_rows, opened
from zerogr.errors import UserError
from zerogr.store import hub, storage

PYSTDLIB = "pystdlib:"
_ROWS_THAT_NAME_COLUMNS = 100
"""Exporters leave out keys that are null, so that the first row of JSON Lines alone does not say which there are."""
_ENDINGS = {
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "csv": separated.ENDINGS,
    "parquet": (".parquet",),
}
"""In lower case; a name may have them in upper case."""
_FILES = {"beir": ("corpus.jsonl", "corpus.jsonl.gz"), "mair": ("docs.jsonl", "docs.jsonl.gz")}
"""Layouts with one corpus file, JSON Lines, whatever else is in the folder."""
_HIDDEN = re.compile(r"/[_.]|^/qrels/")
"""Files that are no rows: `_SUCCESS` and `_temporary/` of Spark, hidden ones, judgements."""


def read_corpus(config: CorpusConfig) -> Iterator[Document | Rejected]:
    """Yields every row of the source, as a document or with the reason why it is none.

    Raises:
        UserError: The source is missing, of unknown format, unreadable, or lacks the configured columns.
    """
    kind = detect_format(config)
    if kind == "pystdlib":
        yield from read_pystdlib()
        return
    for file in source_files(config):
        yield from read_file(file, kind, config)


def read_file(
    uri: str, kind: str, config: CorpusConfig, place: Place | None = None, span: Span | None = None
) -> Iterator[Document | Rejected]:
    """Yields every row of one file of the source, or of a part of it.

    Args:
        uri: Of the file.
        kind: Its format, as `detect_format` says.
        config: Names the columns.
        place: Counts its lines or rows, the blank ones too; None = from the beginning of the file.
        span: Which part; see `zerogr.corpus.splits`. None = the whole file.

    Raises:
        UserError: As for `read_corpus`.
    """
    read = {"csv": read_separated, "parquet": _read_parquet}.get(kind, _read_json_lines)
    return read(uri, config, place or Place.in_file(uri), span)


def detect_format(config: CorpusConfig) -> str:
    """Returns `pystdlib`, `beir`, `mair`, `jsonl`, `csv` or `parquet`.

    Raises:
        UserError: The source does not look like any of them, or like several corpora.
    """
    source = config.source
    if config.format != "auto":
        return config.format
    if source == PYSTDLIB:
        return "pystdlib"
    if source.startswith(PYSTDLIB):
        raise UserError(
            f"corpus.source is '{source}'; the built-in corpus is written '{PYSTDLIB}', with nothing behind the colon"
        )
    names = storage.list_files(source)
    for kind in _ENDINGS:
        if not names and _ends_as(kind, source):
            return kind
    if any(name in names for name in _FILES["beir"]):
        return "beir"
    if any(name in names and mair.is_corpus(storage.join(source, name)) for name in _FILES["mair"]):
        return "mair"
    found = {kind: files for kind in _ENDINGS if (files := _files_of(kind, names))}
    if len(found) == 1:
        ((kind, files),) = found.items()
        _refuse_several_corpora(source, files)
        return kind
    if not names and not storage.exists(source):
        raise UserError(
            f"corpus.source '{source}' does not exist; give a BEIR or MAIR folder, .jsonl, .csv, .tsv or .parquet files, "
            f"a data set on the Hugging Face hub as hf:owner/name, or '{PYSTDLIB}'"
        )
    seen = " and ".join(f".{kind}" for kind in found)
    seen = f"{seen} files" if found else "no corpus.jsonl, docs.jsonl, .jsonl, .csv, .tsv or .parquet file"
    raise UserError(f"corpus.source '{source}' holds {seen}; name one file, or set corpus.format")


def _files_of(kind: str, names: dict[str, int]) -> list[str]:
    if kind in _FILES:
        return [name for name in names if name in _FILES[kind]]
    return [name for name, size in names.items() if _ends_as(kind, name) and size and not _HIDDEN.search(f"/{name}")]


def _ends_as(kind: str, name: str) -> bool:
    return name.lower().endswith(_ENDINGS[kind])


def _refuse_several_corpora(source: str, names: list[str]) -> None:
    # Read as one they would give figures that are plausible and wrong: a task of MAIR searched in the documents of all tasks,
    # the queries/ of a data set on the hub among its corpus/.
    several = mair.corpora(names)
    if len(several) > 1 and not mair.is_corpus(storage.join(source, several[0])):
        several = []
    if len(several) < 2 and hub.is_hub(source):
        several = sorted({name.rpartition("/")[0] or "." for name in names})
    if len(several) > 1:
        few = ", ".join(several[:5]) + (", ..." if len(several) > 5 else "")
        raise UserError(
            f"corpus.source '{source}' holds {len(several)} corpora ({few}); name one, or set corpus.format to read them as one"
        )


def source_files(config: CorpusConfig) -> list[str]:
    """Returns the URIs of the source's files, in the order they are read.

    Raises:
        UserError: There are none.
    """
    kind = detect_format(config)
    source = config.source
    names = storage.list_files(source)
    if names:
        chosen = _files_of(kind, names)
        if not chosen and config.format in _ENDINGS:  # what the user says goes before endings
            chosen = [name for name, size in names.items() if size and not _HIDDEN.search(f"/{name}")]
        files = [storage.join(source, name) for name in chosen]
    else:
        files = [source] if storage.exists(source) else []  # whatever its name ends with, if the format is given
    if not files:
        raise UserError(f"corpus.source '{source}' has no {kind} file to read; check the path")
    return files


def source_hash(config: CorpusConfig) -> str:
    """Returns a hash of the source's content, not of its location.

    Local files are read whole (about 1 GB/s); of remote ones name, size and version tag stand for the content, and the
    built-in corpus is as old as the interpreter.
    """
    digest = hashlib.sha256()
    if detect_format(config) == "pystdlib":
        digest.update(sys.version.encode())
        return digest.hexdigest()[:16]
    for uri in source_files(config):
        if storage.is_local(uri):
            with storage.open_binary(uri) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
        else:
            digest.update(repr(storage.state_of(uri)).encode())
    return digest.hexdigest()[:16]


def _read_json_lines(uri: str, config: CorpusConfig, place: Place, span: Span | None) -> Iterator[Document | Rejected]:
    rows = json_rows(uri, place, span)
    first = list(itertools.islice(rows if span is None else json_rows(uri), _ROWS_THAT_NAME_COLUMNS))
    names = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row)
    if any(
        isinstance(row, dict) for _, row in first
    ):  # a row without a column leaves it out; a file without it lacks it
        config = with_columns_of(config, list(names), uri)
    for location, row in itertools.chain(first, rows) if span is None else rows:
        yield row if isinstance(row, Rejected) else to_document(row, location, config)


def _read_parquet(uri: str, config: CorpusConfig, place: Place, span: Span | None) -> Iterator[Document | Rejected]:
    with parquet_file(uri) as file:
        fitted = with_columns_of(config, file.schema_arrow.names, uri)
        columns = [name for name in file.schema_arrow.names if name in columns_read(fitted)]
        groups = range(*span) if span else range(file.num_row_groups)
        for batch in file.iter_batches(
            batch_size=256, row_groups=groups, columns=columns, use_threads=False
        ):  # see storage.read_parquet
            for row in _rows(batch):
                place.number += 1
                yield to_document(row, str(place), fitted)


@contextmanager
def parquet_file(uri: str) -> Iterator[pq.ParquetFile]:
    """Yields a Parquet file. Raises UserError if it is none."""
    with opened(uri) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise UserError(f"'{uri}' is not a Parquet file: {error}") from None
        yield file


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    # Text may be stored as plain binary, and a string column may hold bytes that are no UTF-8: Arrow does not check. Cells that
    # are no UTF-8 stay bytes, and are rejected later.
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cells = column.to_pylist()
        except UnicodeDecodeError:
            cells = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()
        columns[name] = [_decoded(cell) if isinstance(cell, bytes) else cell for cell in cells]
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _decoded(cell: bytes) -> str | bytes:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell
