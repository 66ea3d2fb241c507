"""Readers: a source becomes a stream of documents and rejected rows, in the source's own order.

A fault of one row is that row's fault (`Rejected`, with a reason); a fault of the whole source, such as a missing column,
is one `UserError`. Every format passes through `_to_document`, so the same faults have the same outcome everywhere.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zerogr import storage
from zerogr.config import CorpusConfig
from zerogr.corpus.document import KINDS, Document, Rejected
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.corpus.tables import guess_kind, serialise_table
from zerogr.errors import UserError

JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson")
PYSTDLIB = "pystdlib:"


def read_corpus(config: CorpusConfig) -> Iterator[Document | Rejected]:
    """Yields every row of the source, as a document or with the reason why it is none.

    Raises:
        UserError: The source is missing, of unknown format, unreadable, or lacks the configured columns.
    """
    if detect_format(config) == "pystdlib":
        yield from read_pystdlib()
        return
    for file in source_files(config):
        rows = _read_parquet(file, config) if file.endswith(".parquet") else _read_json_lines(file, config)
        for place, row in rows:
            if isinstance(row, Rejected):
                yield row
            else:
                yield _to_document(row, place, config)


def detect_format(config: CorpusConfig) -> str:
    """Returns `pystdlib`, `beir`, `jsonl` or `parquet`.

    Raises:
        UserError: The source does not look like any of them.
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
    if source.endswith(".parquet"):
        return "parquet"
    if source.endswith(JSON_LINES):
        return "jsonl"
    names = storage.list_files(source)
    if "corpus.jsonl" in names or "corpus.jsonl.gz" in names:
        return "beir"
    formats = {"parquet" for name in names if name.endswith(".parquet")} | {
        "jsonl" for name in names if name.endswith(JSON_LINES)
    }
    if len(formats) == 1:
        return formats.pop()
    if not names and not storage.exists(source):
        raise UserError(
            f"corpus.source '{source}' does not exist; give a BEIR folder, .jsonl or .parquet files, or '{PYSTDLIB}'"
        )
    found = "both .jsonl and .parquet files" if formats else "no corpus.jsonl, .jsonl or .parquet file"
    raise UserError(f"corpus.source '{source}' holds {found}; name one file, or set corpus.format")


def source_files(config: CorpusConfig) -> list[str]:
    """Returns the URIs of the source's files, in the order they are read.

    Raises:
        UserError: There are none.
    """
    kind = detect_format(config)
    source = config.source
    endings = (".parquet",) if kind == "parquet" else JSON_LINES
    if source.endswith(endings):
        files = [source] if storage.exists(source) else []
    else:
        names = [name for name in storage.list_files(source) if name.endswith(endings)]
        if kind == "beir":
            names = [name for name in names if name in ("corpus.jsonl", "corpus.jsonl.gz")]
        files = [storage.join(source, name) for name in names]
    if not files:
        raise UserError(f"corpus.source '{source}' has no {kind} file to read; check the path")
    return files


def source_hash(config: CorpusConfig) -> str:
    """Returns a hash of the source's content, not of its place.

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
            fs, path = storage.filesystem(uri)
            info = fs.info(path)
            digest.update(repr((info["size"], info.get("ETag") or info.get("etag") or str(info.get("mtime")))).encode())
    return digest.hexdigest()[:16]


def _read_json_lines(uri: str, config: CorpusConfig) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    name = uri.rpartition("/")[2]
    with storage.open_binary(uri) as raw:
        stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if uri.endswith(".gz") else raw
        is_first = True
        for number, line in enumerate(stream, 1):
            place = f"{name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield place, Rejected(place, "invalid_utf8", f"byte {error.start} of the line is not UTF-8")
                continue
            except json.JSONDecodeError as error:
                yield place, Rejected(place, "invalid_json", f"{error.msg} at column {error.colno}")
                continue
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
                yield place, Rejected(place, "invalid_json", f"Python cannot read it: {error}")
                continue
            if not isinstance(row, dict):
                yield place, Rejected(place, "invalid_row", f"the line holds a {type(row).__name__}, not an object")
                continue
            if is_first:
                _check_columns(list(row), uri, config)
                is_first = False
            yield place, row


def _read_parquet(uri: str, config: CorpusConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    name = uri.rpartition("/")[2]
    with storage.open_binary(uri) as raw:
        try:
            file = pq.ParquetFile(raw)
        except pa.ArrowInvalid as error:
            raise UserError(f"'{uri}' is not a Parquet file: {error}") from None
        _check_columns(file.schema_arrow.names, uri, config)
        number = 0
        read = {config.doc_id_column, config.title_column, config.text_column, "metadata", "kind"}
        columns = [name for name in file.schema_arrow.names if name in read]
        for batch in file.iter_batches(batch_size=256, columns=columns, use_threads=False):  # see storage.read_parquet
            for row in _rows(batch):
                number += 1
                yield f"{name}:{number}", row


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    # A string column may hold bytes that are no UTF-8: Arrow does not check. Such cells stay bytes, and are rejected later.
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError:
            as_bytes = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
            columns[name] = [_decoded(cell) for cell in as_bytes.to_pylist()]
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _decoded(cell: bytes | None) -> str | bytes | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell


def _check_columns(names: list[str], uri: str, config: CorpusConfig) -> None:
    def missing(key: str, column: str) -> UserError:
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return UserError(
            f"'{uri}' has no column '{column}'; it has {', '.join(names) or 'none'}: set corpus.{key}{hint}"
        )

    if config.doc_id_column not in names:
        raise missing("doc_id_column", config.doc_id_column)
    if config.text_column not in names and config.title_column not in names:
        raise missing("text_column", config.text_column)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_document(row: dict[str, Any], place: str, config: CorpusConfig) -> Document | Rejected:
    key = row.get(config.doc_id_column)
    if isinstance(key, bytes):
        return Rejected(place, "invalid_utf8", f"'{config.doc_id_column}' is not UTF-8")
    if isinstance(key, (dict, list, bool, float)):
        return Rejected(
            place, "invalid_row", f"'{config.doc_id_column}' is a {type(key).__name__}, not a string or an integer"
        )
    doc_id = "" if key is None else str(key).strip()
    if not doc_id:
        return Rejected(place, "empty_doc_id", f"'{config.doc_id_column}' is empty")
    if not _is_utf8(doc_id):
        return Rejected(place, "invalid_utf8", f"'{config.doc_id_column}' holds half of a surrogate pair")
    title, text = row.get(config.title_column), row.get(config.text_column)
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind: str = config.kind
    if isinstance(text, list) and all(isinstance(cells, list) for cells in text):
        text, kind = serialise_table(text), "table" if kind == "auto" else kind
    for column, value in ((config.title_column, title), (config.text_column, text)):
        if isinstance(value, bytes):
            return Rejected(doc_id, "invalid_utf8", f"'{column}' is not UTF-8")
        if not isinstance(value, str | None):
            return Rejected(doc_id, "invalid_row", f"'{column}' is a {type(value).__name__}, not a string")
    title, text = (title or "").strip(), (text or "").strip("\r\n")
    if not title and not text.strip():
        return Rejected(doc_id, "empty_document", "title and text are both empty")
    try:
        num_bytes = len((title + text).encode())
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Rejected(doc_id, "invalid_utf8", "it holds half of a surrogate pair")
    except TypeError as error:
        return Rejected(doc_id, "invalid_row", f"'metadata' cannot be written as JSON: {error}")
    if num_bytes > config.max_document_bytes:
        limit = config.max_document_bytes
        return Rejected(
            doc_id, "too_large", f"{num_bytes} bytes of title and text; corpus.max_document_bytes is {limit}"
        )
    if kind == "auto":
        named = metadata.get("kind") or metadata.get("type") or row.get("kind")
        kind = named if named in KINDS else guess_kind(text)
    return Document(doc_id=doc_id, title=title, text=text, kind=kind, metadata=metadata)
