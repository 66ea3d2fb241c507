"""Random tables of hostile cells, written by each format's own writer: cells come back as they were, or rows are rejected."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.reading import read
from zerogr.corpus.document import Document, Rejected

HOSTILE = "\",;|\t\n\r\\ \x00\x0b\x0c\x1c\x85\u2028\ufeff\ud800#'`aé漢İ"
CELL = st.text(st.sampled_from(HOSTILE), max_size=12)
TABLE = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8)
ONE_LINE = st.text(st.sampled_from([character for character in HOSTILE if character not in "\t\n\r"]), max_size=12)
Table = list[tuple[str, str]]


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def rows_of(table: Table) -> list[tuple[str, str, str]]:
    """Returns the header and the rows, with their keys."""
    return [("_id", "title", "text"), *((f"d{i}", *row) for i, row in enumerate(table))]


def separated(table: Table, separator: str, quoting: int) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, quoting=quoting).writerows(rows_of(table))  # type: ignore[arg-type]
    return as_bytes(text.getvalue())


def unquoted(table: Table) -> bytes:
    return as_bytes("".join("\t".join(row) + "\n" for row in rows_of(table)))


def json_lines(table: Table) -> bytes:
    header, *rows = rows_of(table)
    return as_bytes("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))


def parquet(table: Table) -> bytes:
    columns = {
        "_id": pa.array([f"d{i}" for i in range(len(table))]),
        "title": pa.array([as_bytes(title) for title, _ in table], pa.binary()),
        "text": pa.array([as_bytes(text) for _, text in table], pa.binary()),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def check(name: str, content: bytes, table: Table, **options: object) -> None:
    """Reads what was written, and holds every row against what it was."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        found = read(str(Path(folder) / name), **options)
    assert len(found) == len(table)  # rows read = documents + rejected rows
    for i, (row, (title, text)) in enumerate(zip(found, table, strict=True)):
        assert row.doc_id == f"d{i}"
        kept = (title.strip(), text.strip("\r\n"))
        if any("\ud800" in cell for cell in (title, text)):
            assert isinstance(row, Rejected) and row.reason == "invalid_utf8"
        elif not kept[0] and not kept[1].strip():
            assert isinstance(row, Rejected) and row.reason == "empty_document"
        else:
            assert isinstance(row, Document) and (row.title, row.text) == kept


@pytest.mark.parametrize(("name", "separator"), [("c.csv", ","), ("c.tsv", "\t"), ("c.CSV", ";")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@given(TABLE)
@example([("x" * 2**18, 'y"' * 2**19), ("a", "b")])
@settings(max_examples=60, deadline=None)
def test_separated_files(name: str, separator: str, quoting: int, table: Table) -> None:
    written = separated(table, separator, quoting)
    check(name, written, table, quoting="standard", separator=separator)
    check(f"{name}.gz", gzip.compress(b"\xef\xbb\xbf" + written), table, quoting="standard", separator=separator)


@given(st.lists(st.tuples(ONE_LINE, ONE_LINE), min_size=1, max_size=8))
@example([('"', 'a"'), ('""', '"b')])
@settings(max_examples=120, deadline=None)
def test_tab_separated_files_without_quotes(table: Table) -> None:
    check("c.tsv", unquoted(table), table, quoting="none")


@given(TABLE)
@settings(max_examples=80, deadline=None)
def test_json_lines(table: Table) -> None:
    check("c.jsonl", json_lines(table), table)
    check("c.ndjson.gz", gzip.compress(b"\xef\xbb\xbf" + json_lines(table)), table)


@given(TABLE)
@settings(max_examples=80, deadline=None)
def test_parquet(table: Table) -> None:
    check("c.parquet", parquet(table), table)
