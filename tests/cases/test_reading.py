"""Corpora and judgements as people have them, that readers refused or read wrongly. The inputs are in inputs/."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reading import read, refused
from zerogr.corpus.collection import Collection
from zerogr.corpus.document import Document, Rejected
from zerogr.evaluation.metrics import evaluate_queries
from zerogr.evaluation.runs import format_run, parse_run
from zerogr.store import storage

INPUTS = Path(__file__).parent / "inputs"


def texts(source: Path | str, **options: object) -> dict[str, str]:
    """Returns {doc_id: text} of a source whose rows are all documents."""
    found = read(str(source), **options)
    assert all(isinstance(row, Document) for row in found), found
    return {row.doc_id: row.text for row in found if isinstance(row, Document)}


class TestFoldersNamedLikeFiles:
    """01: Spark, Dask and Ray Data write a folder of parts under a file's name."""

    def test_spark(self) -> None:
        assert list(texts(INPUTS / "01-folder-named-like-a-file" / "corpus.parquet")) == ["a", "b"]

    @pytest.mark.parametrize(
        ("ending", "content"), [("csv", "_id,text\nx,one\n"), ("jsonl", '{"_id": "x", "text": "one"}\n')]
    )
    def test_other_formats(self, tmp_path: Path, ending: str, content: str) -> None:
        folder = tmp_path / f"corpus.{ending}"
        (folder / "_temporary").mkdir(parents=True)
        (folder / "_SUCCESS").touch()
        (folder / f"part-00000.{ending}").touch()  # a part without rows
        (folder / f"part-00001.{ending}").write_text(content)
        (folder / "_temporary" / f"part-00002.{ending}").write_text(content.replace("x", "y"))
        assert texts(folder) == {"x": "one"}

    @pytest.mark.integration
    def test_on_object_storage(self, s3_server: str) -> None:
        uri = "s3://zerogr/cases/corpus.parquet"
        storage.upload_folder(INPUTS / "01-folder-named-like-a-file" / "corpus.parquet", uri)
        assert list(texts(uri)) == ["a", "b"]


class TestQuotationMarksInTabSeparatedFiles:
    """02: what quotes nothing is read as if it quoted, and rows are gone without a word."""

    def test_rows_stay_rows(self) -> None:
        found = texts(INPUTS / "02-tsv-raw-quotation-marks" / "docs.tsv")
        assert list(found) == ["1", "2", "3", "4", "5"] and found["2"] == '"He went out'

    def test_marks_that_are_never_closed(self) -> None:
        for quoting in ("auto", "none"):
            found = texts(INPUTS / "02-tsv-raw-quotation-marks" / "docs-unbalanced.tsv", quoting=quoting)
            assert found["3"] == '"never closed' and len(found) == 4

    @pytest.mark.parametrize("quoted", ['"one\ttwo"', '"said ""so"" again"', '"two\nlines"'])
    def test_cells_that_are_quoted_indeed(self, tmp_path: Path, quoted: str) -> None:
        (tmp_path / "c.tsv").write_text(f"_id\ttext\na\tplain\nb\t{quoted}\nc\tplain\n")
        assert texts(tmp_path / "c.tsv")["b"] == quoted[1:-1].replace('""', '"')

    @pytest.mark.parametrize("plain", [0, 20_000])
    def test_the_first_mark_decides_wherever_it_stands(self, tmp_path: Path, plain: int) -> None:
        rows = [f"{i}\tplain text\n" for i in range(plain)]
        raw = ['a\t"Hello.\n', "b\tmiddle\n", 'c\tbye"\n']
        (tmp_path / "raw.tsv").write_text("".join(["_id\ttext\n", *rows, *raw]))
        found = texts(tmp_path / "raw.tsv")
        assert len(found) == plain + 3 and found["a"] == '"Hello.' and found["c"] == 'bye"'
        (tmp_path / "quoted.tsv").write_text("".join(["_id\ttext\n", *rows, 'a\t"two\nlines"\n', "b\tx\n"]))
        found = texts(tmp_path / "quoted.tsv")
        assert len(found) == plain + 2 and found["a"] == "two\nlines" and found["b"] == "x"

    def test_a_quoted_cell_that_the_sample_cuts(self, tmp_path: Path) -> None:
        long = "line of text\n" * 30_000
        (tmp_path / "c.tsv").write_text(f'_id\ttext\na\t"one\ttwo"\nb\t"{long}"\nc\tx\n')
        assert texts(tmp_path / "c.tsv") == {"a": "one\ttwo", "b": long.strip("\n"), "c": "x"}

    def test_a_writer_that_quotes_all(self, tmp_path: Path) -> None:
        (tmp_path / "c.tsv").write_text('"_id"\t"text"\n"a"\t"plain"\n"b"\t"also"\n')
        assert texts(tmp_path / "c.tsv") == {"a": "plain", "b": "also"}

    def test_a_file_without_a_header(self, tmp_path: Path) -> None:
        (tmp_path / "collection.tsv").write_text('0\tThe "Manhattan" project\n1\t"Plain\n')
        found = texts(tmp_path / "collection.tsv", column_names=["_id", "text"])
        assert found == {"0": 'The "Manhattan" project', "1": '"Plain'}

    def test_semicolons_and_padded_headers(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text('_id ; text\na;"one; two"\nb;three, four\n')
        assert texts(tmp_path / "c.csv") == {"a": "one; two", "b": "three, four"}


class TestTextStoredAsBinary:
    """03: older writers leave out that bytes are text."""

    @pytest.mark.parametrize("name", ["docs", "keys"])
    def test_it_is_text(self, name: str) -> None:
        assert list(texts(INPUTS / "03-parquet-binary-text" / f"{name}.parquet").values()) == ["hello", "wörld"]

    def test_a_cell_that_is_none(self) -> None:
        found = read(str(INPUTS / "03-parquet-binary-text" / "one-bad.parquet"))
        assert [row.reason for row in found if isinstance(row, Rejected)] == ["invalid_utf8"] and len(found) == 3

    def test_large_binary(self, tmp_path: Path) -> None:
        table = pa.table({"_id": pa.array(["a"]), "text": pa.array(["wörld".encode()], pa.large_binary())})
        pq.write_table(table, tmp_path / "c.parquet")
        assert texts(tmp_path / "c.parquet") == {"a": "wörld"}


class TestJudgedQueries:
    """04, 05, 14: collections as pandas, the hub and exporters write them."""

    def test_ids_that_are_numbers(self) -> None:
        found = Collection.load(str(INPUTS / "04-integer-query-ids"))
        assert list(found.queries) == ["1"] and found.qrels == {"1": {"d1": 1}}

    @pytest.mark.parametrize("folder", ["05-packed-beir-queries", "05-packed-beir-queries/packed-qrels"])
    def test_packed(self, folder: str) -> None:
        assert len(Collection.load(str(INPUTS / folder)).queries) == 1

    def test_grades_with_a_point(self) -> None:
        assert Collection.load(str(INPUTS / "14-grades-written-as-floats")).qrels == {"q1": {"d1": 1, "d2": 0}}

    def test_a_grade_between_two(self) -> None:
        with pytest.raises(Exception, match="must be a whole number, not '0.5'"):
            Collection.load(str(INPUTS / "14-grades-written-as-floats" / "half"))

    def test_a_packed_split_is_named_among_those_there_are(self, tmp_path: Path) -> None:
        (tmp_path / "qrels").mkdir()
        (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
        (tmp_path / "qrels" / "dev.tsv.gz").write_bytes(gzip.compress(b"query-id\tcorpus-id\tscore\nq\td\t1\n"))
        with pytest.raises(Exception, match="no split 'test'; the splits that exist: dev"):
            Collection.load(str(tmp_path))


class TestRunsOfOthers:
    """10: ids that are percent-encoded by their owner."""

    FOLDER = INPUTS / "10-foreign-run-with-percent-signs"

    def test_ids_stand_as_they_are(self) -> None:
        run = parse_run((self.FOLDER / "anserini.run").read_text())
        assert (
            evaluate_queries(Collection.load(str(self.FOLDER)).qrels, run)["enwiki:Candy%20making/Hard"]["acc@1"] == 1
        )

    @pytest.mark.parametrize("key", ["a b", "a%20b", "%zerogr:a", "100%", "a\u00a0b", "%zerogr:a%20b c"])
    def test_ours_come_back(self, key: str) -> None:
        run = {key: [key, "other"]}
        assert parse_run(format_run(run, "ours")) == run


class TestEmptyCells:
    """11, 15: what there is none of is written in many ways."""

    def test_nan(self) -> None:
        assert list(texts(INPUTS / "11-nan-in-a-title" / "docs.jsonl")) == ["a", "b", "c"]
        assert len(texts(INPUTS / "11-nan-in-a-title" / "docs.parquet")) == 2

    def test_nan_where_the_text_and_the_key_are(self, tmp_path: Path) -> None:
        rows = '{"_id": "a", "text": NaN}\n{"_id": NaN, "text": "x"}\n{"_id": "c", "text": "y"}\n'
        (tmp_path / "c.jsonl").write_text(rows)
        found = read(str(tmp_path / "c.jsonl"))
        assert [row.reason for row in found if isinstance(row, Rejected)] == ["empty_document", "empty_doc_id"]

    def test_a_first_row_with_fewer_keys(self) -> None:
        first, *others = read(str(INPUTS / "15-first-row-lacks-a-column" / "docs.jsonl"))
        assert isinstance(first, Rejected) and first.reason == "empty_document"
        assert [row.doc_id for row in others if isinstance(row, Document)] == ["b", "c"]

    def test_a_first_row_without_its_key(self, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text('{"text": "x"}\n{"_id": "b", "text": "y"}\n')
        first, second = read(str(tmp_path / "c.jsonl"))
        assert isinstance(first, Rejected) and first.reason == "empty_doc_id" and isinstance(second, Document)

    def test_a_column_that_no_row_has(self, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text('{"_id": "a", "body": "x"}\n' * 200)
        assert "has no column 'text'; it has _id, body: set corpus.text_column" in refused(str(tmp_path / "c.jsonl"))


class TestFormatsThatAreSaid:
    """12: what the user says goes before a name's ending, and endings have no case."""

    FOLDER = INPUTS / "12-format-said-aloud"

    @pytest.mark.parametrize(
        ("name", "format"), [("docs.json", "jsonl"), ("DOCS.CSV", "csv"), ("docs.ndjson.gz", "auto")]
    )
    def test_files(self, name: str, format: str) -> None:
        assert len(texts(self.FOLDER / name, format=format)) == 1

    def test_a_folder_of_files_without_endings(self, tmp_path: Path) -> None:
        (tmp_path / "part-1").write_text('{"_id": "a", "text": "x"}\n')
        (tmp_path / "_SUCCESS").touch()
        assert texts(tmp_path, format="jsonl") == {"a": "x"}


@pytest.mark.parametrize("control", ["\x00", "\x1b", "\x7f", "\n"])
def test_keys_with_control_characters_are_rejected_by_name(tmp_path: Path, control: str) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"_id": f"a{control}b", "text": "x"}) + "\n")
    [found] = read(str(tmp_path / "c.jsonl"))
    assert isinstance(found, Rejected) and found.reason == "invalid_doc_id" and "control character" in found.detail


class TestTextInSeveralPieces:
    """Bodies as lists of sentences, or in several columns."""

    def test_a_list_of_sentences(self, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text(json.dumps({"_id": "a", "text": ["One.", "Two."]}) + "\n")
        assert texts(tmp_path / "c.jsonl") == {"a": "One.\nTwo."}

    def test_several_columns(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text("_id,abstract,body\na,Short.,Long.\nb,,Only.\n")
        assert texts(tmp_path / "c.csv", text_columns=["abstract", "body"]) == {"a": "Short.\nLong.", "b": "Only."}

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text("_id,abstract,body\na,Short.,Long.\n")
        told = refused(str(tmp_path / "c.csv"), text_columns=["abstract", "boddy"])
        assert "has no column 'boddy'" in told and "set corpus.text_columns; did you mean 'body'?" in told
