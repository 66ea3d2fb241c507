"""CSV and TSV: what a row's own fault costs, and what stops the reading because no one could tell where the next row begins."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reading import read, refused
from zerogr.config.tree import CorpusConfig
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import detect_format


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


class TestRows:
    @pytest.mark.parametrize(
        ("name", "separator"), [("c.csv", ","), ("c.tsv", "\t"), ("c.csv.gz", ","), ("c.tsv.gz", "\t")]
    )
    def test_of_every_kind_of_file(self, tmp_path: Path, name: str, separator: str) -> None:
        content = "_id,title,text\n1,One,first\n2,,second\n".replace(",", separator).encode()
        source = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
        documents = [Document("1", "One", "first"), Document("2", "", "second")]
        assert read(source) == documents
        assert detect_format(CorpusConfig(source=str(tmp_path))) == "csv"
        assert read(str(tmp_path)) == documents

    def test_quoted_cells_hold_separators_quotes_and_newlines(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", '_id,text\r\na,"one, ""two""\r\nthree"\r\n\r\nb,plain\r\n')
        assert read(source) == [Document("a", "", 'one, "two"\r\nthree'), Document("b", "", "plain")]

    @given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8))
    def test_what_a_csv_writer_wrote_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
    ) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("_id", "title", "text"), *((f"d{i}", a, b) for i, (a, b) in enumerate(cells))])
        source = write(tmp_path_factory.mktemp("csv") / "c.csv", text.getvalue().encode())
        for row, (title, body) in zip(read(source, kind="text"), cells, strict=True):
            if isinstance(row, Rejected):
                assert row.reason == "empty_document" and not title.strip() and not body.strip()
            else:
                assert (row.title, row.text) == (title.strip(), body.strip("\r\n"))

    def test_byte_order_mark(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "c.csv", b"\xef\xbb\xbf_id,text\na,x\n")) == [Document("a", "", "x")]

    def test_named_columns_and_others(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", "year,body,key\n1936,x,a\n")
        assert read(source, doc_id_column="key", text_column="body") == [Document("a", "", "x")]
        assert refused(source) == f"'{source}' has no column '_id'; it has year, body, key: set corpus.doc_id_column"

    def test_kind_and_metadata(self, tmp_path: Path) -> None:
        rows = ["a,x,table,", 'b,x,,"{""year"": 1936, ""kind"": ""code""}"', "c,x,poem,not JSON"]
        source = write(tmp_path / "c.csv", "_id,text,kind,metadata\n" + "\n".join(rows))
        assert read(source) == [
            Document("a", "", "x", "table"),
            Document("b", "", "x", "code", {"year": 1936, "kind": "code"}),
            Document("c", "", "x", "text", {"metadata": "not JSON"}),
        ]


class TestFaultsOfARow:
    def test_the_wrong_number_of_cells(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", "_id,text\na,x,y\nb\nc,z\n")
        assert read(source) == [
            Rejected("c.csv:2", "invalid_row", "the row has 3 cells, the header 2"),
            Rejected("c.csv:3", "invalid_row", "the row has 1 cells, the header 2"),
            Document("c", "", "z"),
        ]

    def test_the_place_is_the_line_on_which_the_row_begins(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", '_id,text\na,"1\n2\n3"\n\n,x\n')
        assert read(source)[1] == Rejected("c.csv:6", "empty_doc_id", "'_id' is empty")

    def test_bytes_that_are_no_utf8_spoil_their_own_cell(self, tmp_path: Path) -> None:
        rows = [b"a,caf\xe9,", b"caf\xe9,x,", b"c,x,caf\xe9", b"d,caf\xc3\xa9,"]
        assert read(write(tmp_path / "c.csv", b"_id,text,note\n" + b"\n".join(rows))) == [
            Rejected("a", "invalid_utf8", "'text' is not UTF-8"),
            Rejected("c.csv:3", "invalid_utf8", "'_id' is not UTF-8"),
            Document("c", "", "x"),
            Document("d", "", "café"),
        ]

    def test_too_large(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", f"_id,text\nlarge,{'x' * 2000}\nhuge,{'x' * 200_000}\nc,z\n")
        large, huge, fine = read(source, max_document_bytes=1000)
        assert large == Rejected(
            "large", "too_large", "2000 bytes of title and text; corpus.max_document_bytes is 1000"
        )
        assert (huge.doc_id, huge.reason) == ("c.csv:3", "too_large")
        assert fine == Document("c", "", "z")

    def test_a_cell_longer_than_pythons_limit_is_a_document_where_that_is_allowed(self, tmp_path: Path) -> None:
        before = csv.field_size_limit()
        assert read(write(tmp_path / "c.csv", f"_id,text\na,{'x' * 200_000}\n")) == [Document("a", "", "x" * 200_000)]
        assert csv.field_size_limit() == before

    def test_quotes_that_go_wrong_within_one_line(self, tmp_path: Path) -> None:
        bad, good = read(write(tmp_path / "c.csv", '_id,text\na,"He said "hi" to me"\nb,x\n'))
        assert (bad.doc_id, bad.reason) == ("c.csv:2", "invalid_row")
        assert "expected after '\"'" in bad.detail
        assert good == Document("b", "", "x")


class TestFaultsOfTheFile:
    """A quote that is never closed would make one document of the rest of the corpus, and nobody would miss the others."""

    @pytest.mark.parametrize(
        ("rows", "lines"),
        [
            ('a,"x\nb,y\nc,z\n', "line 2 ends is not to be told, up to line 4 (unexpected end of data)"),
            ('a,x\nb,"y\nc,z\nd,"w"\n', "line 3 ends is not to be told, up to line 5 (',' expected after '\"')"),
            (
                'a,"He said "hi" to\nfoo, bar"\nb,y\n',
                "line 2 ends is not to be told, up to line 2 (',' expected after '\"')",
            ),
            ('a,"' + 2_000 * ("x" * 99 + "\n"), "(field larger than field limit (131072)); close its quotes"),
        ],
    )
    def test_a_quote_that_is_not_closed(self, tmp_path: Path, rows: str, lines: str) -> None:
        source = write(tmp_path / "c.csv", "_id,text\n" + rows)
        error = refused(source, max_document_bytes=1000)
        assert error.startswith(f"'{source}': where the row that begins in line ")
        assert lines in error

    def test_no_header(self, tmp_path: Path) -> None:
        for content in ("", "\n\n"):
            source = write(tmp_path / "c.csv", content)
            fault = "its first row must name the columns, or set corpus.column_names"
            assert refused(source) == f"'{source}' has no header (it is empty); {fault}"

    def test_utf16(self, tmp_path: Path) -> None:
        """Excel calls it "Unicode text"."""
        source = write(tmp_path / "c.tsv", "_id\ttext\na\tx\n".encode("utf-16"))
        assert refused(source) == f"the header of '{source}' is not UTF-8; save the file as UTF-8"

    def test_a_column_named_twice(self, tmp_path: Path) -> None:
        source = write(tmp_path / "c.csv", "_id,text,note,note,text\na,x,,,y\n")
        assert refused(source) == f"the header of '{source}' names the column 'text' 2 times; rename one"

    @pytest.mark.parametrize("name", ["c.csv.gz", "c.jsonl.gz"])
    @pytest.mark.parametrize("cut", [slice(0, 60), slice(5, None)])
    def test_gzip_that_is_damaged(self, tmp_path: Path, name: str, cut: slice) -> None:
        source = write(tmp_path / name, gzip.compress(b"_id,text\n" + bytes(range(256)) * 4)[cut])
        assert refused(source).startswith(f"'{source}' cannot be unpacked (")

    def test_judgements_beside_the_documents_are_no_corpus(self, tmp_path: Path) -> None:
        (tmp_path / "qrels").mkdir()
        write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\ta\t1\n")
        assert (
            refused(str(tmp_path), format="csv")
            == f"corpus.source '{tmp_path}' has no csv file to read; check the path"
        )
        write(tmp_path / "documents.jsonl", '{"_id": "a", "text": "x"}\n')
        assert detect_format(CorpusConfig(source=str(tmp_path))) == "jsonl"
