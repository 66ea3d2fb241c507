"""MAIR's layout: documents without configured columns, queries with their own instructions and grades."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.collection import Collection, Query
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import detect_format, read_corpus
from zerogr.corpus.sampling import judged_doc_ids
from zerogr.errors import UserError

DOCS = [{"id": "d1", "doc": "Title\nBody"}, {"id": 2, "doc": "def f():\n    return 1\n"}, {"id": "d3", "doc": " "}]
QUERIES = [
    {"qid": "q1", "instruction": "Find trials.", "query": "asthma", "labels": [{"id": "d1", "score": 2}]},
    {"qid": 7, "instruction": "", "query": "code", "labels": [{"id": 2, "score": 1.0}, {"id": " d3", "score": 0}]},
    {"qid": "unjudged", "instruction": "Find.", "query": "", "labels": []},
]


def json_lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def read(source: str, **options: Any) -> list[Document | Rejected]:
    return list(read_corpus(CorpusConfig(source=source, **options)))


class TestCorpus:
    @pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz"])
    def test_a_folder(self, tmp_path: Path, name: str) -> None:
        json_lines(tmp_path / name, DOCS)
        json_lines(tmp_path / "queries.jsonl", QUERIES)
        assert detect_format(CorpusConfig(source=str(tmp_path))) == "mair"
        assert read(str(tmp_path)) == [
            Document("d1", "", "Title\nBody"),
            Document("2", "", "def f():\n    return 1", "code"),
            Rejected("d3", "empty_document", "title and text are both empty"),
        ]

    def test_a_file_of_a_task_with_several_corpora(self, tmp_path: Path) -> None:
        source = json_lines(tmp_path / "keywords_docs.jsonl", DOCS)
        assert [row.doc_id for row in read(source)] == ["d1", "2", "d3"]

    def test_its_columns_are_known_in_other_formats(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"id": ["a"], "doc": ["x"]}), tmp_path / "c.parquet")
        (tmp_path / "c.csv").write_text("id,doc\na,x\n")
        for name in ("c.parquet", "c.csv"):
            assert read(str(tmp_path / name)) == [Document("a", "", "x")]

    def test_what_is_configured_goes_before(self, tmp_path: Path) -> None:
        source = json_lines(tmp_path / "docs.jsonl", [{"id": "a", "doc": "x", "body": "y"}])
        with pytest.raises(UserError, match="has no column '_id'; it has id, doc, body: set corpus.doc_id_column"):
            read(source, text_column="body")
        assert read(source, doc_id_column="id", text_column="body") == [Document("a", "", "y")]

    def test_other_documents_in_a_file_of_the_same_name(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "docs.jsonl", [{"_id": "a", "text": "x", "id": 1, "doc": "y"}])
        json_lines(tmp_path / "docs2.jsonl", [{"_id": "b", "text": "z"}])
        assert detect_format(CorpusConfig(source=str(tmp_path / "docs.jsonl"))) == "jsonl"
        assert read(str(tmp_path / "docs.jsonl")) == [Document("a", "", "x")]

    def test_tasks_are_not_read_as_one_unless_that_is_said(self, tmp_path: Path) -> None:
        """The documents of other tasks among those of one give figures that are plausible and wrong."""
        json_lines(tmp_path / "APPS" / "docs.jsonl", [{"id": "a", "doc": "x"}])
        json_lines(tmp_path / "IFEval" / "keywords_docs.jsonl", [{"id": "b", "doc": "y"}])
        with pytest.raises(UserError) as caught:
            read(str(tmp_path))
        assert str(caught.value) == (
            f"corpus.source '{tmp_path}' holds 2 corpora (APPS/docs.jsonl, IFEval/keywords_docs.jsonl); name one, or set "
            "corpus.format to read them as one"
        )
        assert [row.doc_id for row in read(str(tmp_path), format="jsonl")] == ["a", "b"]


class TestCollection:
    LOADED = Collection(
        {"q1": Query("q1", "asthma", "Find trials."), "7": Query("7", "code", None)},
        {"q1": {"d1": 2}, "7": {"2": 1, "d3": 0}},
    )

    @pytest.mark.parametrize("name", ["queries.jsonl", "queries.jsonl.gz"])
    def test_a_folder(self, tmp_path: Path, name: str) -> None:
        json_lines(tmp_path / name, QUERIES)
        assert Collection.load(str(tmp_path) + "/") == self.LOADED

    @pytest.mark.parametrize("name", ["keywords_queries.jsonl", "keywords_queries.jsonl.gz"])
    def test_a_file(self, tmp_path: Path, name: str) -> None:
        assert Collection.load(json_lines(tmp_path / name, QUERIES)) == self.LOADED

    def test_in_object_storage(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "queries.jsonl", QUERIES)
        fsspec.filesystem("memory").put(str(tmp_path), "/mair/task", recursive=True)
        assert Collection.load("memory://mair/task") == self.LOADED

    def test_ids_are_those_of_the_corpus(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "docs" / "docs.jsonl", DOCS)
        json_lines(tmp_path / "queries.jsonl", QUERIES)
        doc_ids = {row.doc_id for row in read(str(tmp_path / "docs"))}
        assert Collection.load(str(tmp_path)).restricted_to(doc_ids) == self.LOADED

    def test_there_are_no_splits(self, tmp_path: Path) -> None:
        source = json_lines(tmp_path / "queries.jsonl", QUERIES)
        with pytest.raises(UserError) as caught:
            Collection.load(str(tmp_path), "train")
        assert str(caught.value) == (
            f"'{source}' is of MAIR, which has no splits: 'train' is none; leave the split at 'test', or give a BEIR folder"
        )

    def test_qrels_make_it_a_beir_folder(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "queries.jsonl", QUERIES)
        (tmp_path / "qrels").mkdir()
        with pytest.raises(UserError, match="holds no split 'test'; the splits that exist: none"):
            Collection.load(str(tmp_path))

    def test_a_missing_file_and_a_folder_of_parts(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"there is no file '.*/a_queries\.jsonl'; give a folder with judged queries"
        ):
            Collection.load(str(tmp_path / "a_queries.jsonl"))
        for part in "ba":
            json_lines(tmp_path / f"{part}_queries.jsonl", QUERIES)
        with pytest.raises(
            UserError, match=r"holds no queries\.jsonl; .*one of its files, a_queries\.jsonl, b_queries\.jsonl$"
        ):
            Collection.load(str(tmp_path))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"labels": [{"id": "d1", "score": 0.5}]}, "the score of document 'd1' must be a whole number, not 0.5"),
            ({"labels": [{"id": "d1", "score": "1"}]}, "the score of document 'd1' must be a whole number, not '1'"),
            ({"labels": [{"id": "d1", "score": True}]}, "the score of document 'd1' must be a whole number, not True"),
            ({"labels": [{"id": "d1"}]}, "the score of document 'd1' must be a whole number, not None"),
            ({"labels": [{"score": 1}]}, 'a label must be an object with "id" and "score", not {\'score\': 1}'),
            ({"labels": ["d1"]}, 'a label must be an object with "id" and "score", not \'d1\''),
            ({"query": " "}, "the text of the judged query 'q9' is empty"),
            ({"instruction": ["Find."]}, "the instruction must be a string, not ['Find.']"),
        ],
    )
    def test_malformed_rows_are_named(self, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
        json_lines(tmp_path / "queries.jsonl", [QUERIES[0], {**QUERIES[0], "qid": "q9", **changed}])
        with pytest.raises(UserError) as caught:
            Collection.load(str(tmp_path))
        assert str(caught.value) == f"queries.jsonl:2: {message}"

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (QUERIES[0], r"^queries\.jsonl:2 repeats the query id 'q1'"),
            ({"qid": None, "query": "x", "labels": []}, r'^queries\.jsonl:2 must be an object with "qid", the string'),
            (
                {"qid": "q9", "query": "x"},
                r'^queries\.jsonl:2 must be an object with "qid", the string "query" and the',
            ),
            ([1], r"^queries\.jsonl:2 cannot be read: the line holds a list, not an object; mend that line$"),
            (
                {**QUERIES[0], "qid": "q9", "labels": [{"id": "d", "score": 1}, {"id": "d", "score": 2}]},
                r"^queries\.jsonl:2 judges document 'd' for query 'q9' again, with another score$",
            ),
        ],
    )
    def test_other_faults_of_a_row(self, tmp_path: Path, second: Any, message: str) -> None:
        json_lines(tmp_path / "queries.jsonl", [QUERIES[0], second])
        with pytest.raises(UserError, match=message):
            Collection.load(str(tmp_path))

    def test_nothing_is_judged(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "queries.jsonl", [QUERIES[2]])
        with pytest.raises(UserError, match=r"holds no judgement; give a file with at least one label$"):
            Collection.load(str(tmp_path))

    def test_judged_documents_for_a_sample(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "queries.jsonl", QUERIES)
        assert judged_doc_ids(str(tmp_path)) == judged_doc_ids(str(tmp_path), "test") == {"d1", "2"}
        with pytest.raises(UserError, match="is of MAIR, which has no splits: 'dev' is none"):
            judged_doc_ids(str(tmp_path), "dev")
