"""Every fault a row can have, in JSON Lines and in Parquet, and what becomes of it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from zerogr.config.file import validate_config
from zerogr.config.tree import Config, CorpusConfig
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import detect_format, read_corpus, source_hash
from zerogr.corpus.sampling import judged_doc_ids, sample
from zerogr.corpus.stage import _SeenIds, build_corpus, corpus_inputs, load_frequency
from zerogr.corpus.tables import guess_kind, serialise_table
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.store import storage

MEGABYTE = 2**20


def json_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write(folder: Path, file_format: str, rows: list[dict[str, Any]]) -> str:
    return {"jsonl": json_lines, "parquet": parquet}[file_format](folder / f"corpus.{file_format}", rows)


def read(source: str, **options: Any) -> list[Document | Rejected]:
    return list(read_corpus(CorpusConfig(source=source, **options)))


def only(source: str, **options: Any) -> Document | Rejected:
    (row,) = read(source, **options)
    return row


def config_of(folder: Path, source: str, *, index: str = "index", **corpus: Any) -> Config:
    return validate_config({"index": str(folder / index), "corpus": {"source": source, **corpus}})


def built(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Builds the corpus; returns its rows in shard order and the counts."""
    index = Index(config.index)
    counts = build_corpus(config, index)
    tables = [storage.read_parquet(index.shard("corpus", shard)) for shard in shards_in(index.path("corpus"))]
    return pa.concat_tables(tables).to_pylist(), counts


def rejected_rows(config: Config) -> list[tuple[str, str]]:
    index = Index(config.index)
    return [
        (row["doc_id"], row["reason"])
        for name in storage.list_files(index.path("rejected"))
        for row in storage.read_parquet(index.path("rejected", name)).to_pylist()
    ]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
class TestFaultsOfARow:
    """A reader that drops or mends a row in silence would lose documents that nobody misses until they are searched."""

    @pytest.mark.parametrize("doc_id", ["", "  ", None])
    def test_empty_doc_id_is_named_by_its_place(self, tmp_path: Path, file_format: str, doc_id: str | None) -> None:
        good = {"_id": "a", "title": "t", "text": "x"}
        source = write(tmp_path, file_format, [good, {"_id": doc_id, "title": "t", "text": "x"}])
        first, second = read(source)
        assert first == Document("a", "t", "x")
        assert second == Rejected(f"corpus.{file_format}:2", "empty_doc_id", "'_id' is empty")

    def test_a_title_alone_is_a_document(self, tmp_path: Path, file_format: str) -> None:
        rows = [{"_id": "a", "title": "t", "text": ""}, {"_id": "b", "title": "t", "text": None}]
        assert read(write(tmp_path, file_format, rows)) == [Document("a", "t"), Document("b", "t")]

    @pytest.mark.parametrize(("title", "text"), [("", ""), (None, ""), ("", None), (" ", "\n\t\r\n")])
    def test_title_and_text_empty(self, tmp_path: Path, file_format: str, title: str | None, text: str | None) -> None:
        rows = [{"_id": "full", "title": "t", "text": "x"}, {"_id": "a", "title": title, "text": text}]
        row = read(write(tmp_path, file_format, rows))[1]
        assert row == Rejected("a", "empty_document", "title and text are both empty")

    def test_ten_megabytes_are_too_large_unless_allowed(self, tmp_path: Path, file_format: str) -> None:
        text = "word " * (2 * MEGABYTE)
        source = write(tmp_path, file_format, [{"_id": "big", "title": "t", "text": text}])
        row = only(source)
        assert isinstance(row, Rejected)
        assert (row.doc_id, row.reason) == ("big", "too_large")
        assert f"{10 * MEGABYTE + 1} bytes" in row.detail
        assert f"corpus.max_document_bytes is {4 * MEGABYTE}" in row.detail
        assert only(source, max_document_bytes=11 * MEGABYTE).text == text

    def test_size_is_counted_in_bytes_without_the_key(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"_id": "a long key", "title": "é", "text": "éé"}])
        assert isinstance(only(source, max_document_bytes=6), Document)
        assert only(source, max_document_bytes=5).reason == "too_large"

    def test_numeric_ids_become_strings(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"_id": 0, "text": "x"}, {"_id": 17, "text": "x"}])
        assert [row.doc_id for row in read(source)] == ["0", "17"]

    def test_other_types_of_key_and_text_are_rejected(self, tmp_path: Path, file_format: str) -> None:
        (tmp_path / "key").mkdir()
        key = only(write(tmp_path / "key", file_format, [{"_id": 1.5, "text": "x"}]))
        assert key.reason == "invalid_row"
        assert key.detail == "'_id' is a float, not a string or an integer"
        text = only(write(tmp_path, file_format, [{"_id": "a", "text": 7}]))
        assert text == Rejected("a", "invalid_row", "'text' is a int, not a string")

    def test_a_list_of_rows_is_a_table(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"_id": "a", "text": [["year", "city"], ["1936", "Berlin"]]}])
        assert only(source) == Document("a", "", "| year | city |\n|---|---|\n| 1936 | Berlin |", "table")

    def test_missing_column_is_one_error(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"doc_id": "a", "title": "t", "contents": "x"}])
        with pytest.raises(UserError) as caught:
            read(source)
        assert str(caught.value) == (
            f"'{source}' has no column '_id'; it has doc_id, title, contents: set corpus.doc_id_column; "
            "did you mean 'doc_id'?"
        )
        assert only(source, doc_id_column="doc_id", text_column="contents") == Document("a", "t", "x")

    def test_neither_title_nor_text_column_is_one_error(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"_id": "a", "body": "x"}])
        with pytest.raises(UserError, match="has no column 'text'; it has _id, body: set corpus.text_column"):
            read(source)
        assert only(source, text_column="body") == Document("a", "", "x")

    def test_duplicates_are_rejected_and_the_first_stays(self, tmp_path: Path, file_format: str) -> None:
        rows = [{"_id": "a", "text": "one"}, {"_id": " a ", "text": "two"}, {"_id": "b", "text": "three"}]
        config = config_of(tmp_path, write(tmp_path, file_format, rows), shard_size=1)
        documents, counts = built(config)
        assert [(row["row_id"], row["doc_id"], row["text"]) for row in documents] == [
            (0, "a", "one"),
            (1, "b", "three"),
        ]
        assert counts == {"rows": 2, "rejected": 1, "rejected_reasons": {"duplicate_doc_id": 1}}
        assert rejected_rows(config) == [("a", "duplicate_doc_id")]

    def test_no_usable_row_is_one_error(self, tmp_path: Path, file_format: str) -> None:
        source = write(tmp_path, file_format, [{"_id": "a", "text": ""}, {"_id": "", "text": "x"}])
        with pytest.raises(UserError) as caught:
            built(config_of(tmp_path, source))
        assert "has no usable document; 2 rows were rejected" in str(caught.value)
        assert "the first: empty_document, title and text are both empty" in str(caught.value)


class TestJsonLines:
    def test_bytes_that_are_no_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_bytes(b'{"_id": "a", "text": "caf\xe9"}\n{"_id": "b", "text": "x"}\n')
        bad, good = read(str(path))
        assert bad == Rejected("corpus.jsonl:1", "invalid_utf8", "byte 25 of the line is not UTF-8")
        assert good == Document("b", "", "x")

    @pytest.mark.parametrize(
        "line",
        [
            r'{"_id": "a", "title": "", "text": "half \ud83d"}',
            r'{"_id": "a", "title": "half \ud83d", "text": "x"}',
            r'{"_id": "half \ud83d", "title": "", "text": "x"}',
            r'{"_id": "half \ud83d", "title": "", "text": ""}',
            r'{"_id": "half \ud83d", "title": "", "text": 7}',
            r'{"_id": "a", "text": "x", "metadata": {"from": "half \ud83d"}}',
        ],
    )
    def test_half_of_a_surrogate_pair(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_text('{"_id": "good", "title": "", "text": "x"}\n' + line + "\n")
        config = config_of(tmp_path, str(path))
        assert built(config)[1]["rows"] == 1  # what is written about the row must be UTF-8 itself
        assert [reason for _, reason in rejected_rows(config)] == ["invalid_utf8"]

    def test_a_whole_surrogate_pair_is_a_character(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_text(r'{"_id": "a", "text": "\ud83d\ude00"}')
        assert only(str(path)) == Document("a", "", "😀")

    @pytest.mark.parametrize(
        ("line", "reason", "detail"),
        [
            ('{"_id": "b", "text": ', "invalid_json", "Expecting value at column 21"),
            ("not json", "invalid_json", "Expecting value at column 1"),
            ('["a", "b"]', "invalid_row", "the line holds a list, not an object"),
            ('"text"', "invalid_row", "the line holds a str, not an object"),
            ("null", "invalid_row", "the line holds a NoneType, not an object"),
        ],
    )
    def test_lines_that_are_no_objects(self, tmp_path: Path, line: str, reason: str, detail: str) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_text(f'{line}\n\n{{"_id": "a", "text": "x"}}\n')
        bad, good = read(str(path))
        assert bad == Rejected("corpus.jsonl:1", reason, detail)
        assert good == Document("a", "", "x")

    @pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "9" * 5_000])
    def test_json_that_python_refuses_to_read(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_text(f'{{"_id": "deep", "text": {value}}}\n{{"_id": "a", "text": "x"}}\n')
        bad, good = read(str(path))
        assert (bad.doc_id, bad.reason) == ("corpus.jsonl:1", "invalid_json")
        assert good == Document("a", "", "x")

    def test_byte_order_mark_and_blank_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"_id": "a", "text": "x"}\r\n\r\n{"_id": "b", "text": "y"}')
        assert [row.doc_id for row in read(str(path))] == ["a", "b"]

    def test_a_later_row_without_the_key_is_that_row_alone(self, tmp_path: Path) -> None:
        first, second = read(json_lines(tmp_path / "c.jsonl", [{"_id": "a", "text": "x"}, {"text": "y"}]))
        assert isinstance(first, Document)
        assert second == Rejected("c.jsonl:2", "empty_doc_id", "'_id' is empty")

    def test_gzip(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n'))
        assert [row.doc_id for row in read(str(path))] == ["a", "b"]
        assert [row.doc_id for row in read(str(tmp_path))] == ["a", "b"]  # a BEIR folder


class TestParquet:
    def test_bytes_that_are_no_utf8(self, tmp_path: Path) -> None:
        """Arrow does not look into its strings, and many writers do not either."""
        strings = [b"fine", b"caf\xe9", b"also fine"]
        offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 8, 17)))
        column = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"".join(strings)))
        path = tmp_path / "corpus.parquet"
        pq.write_table(pa.table({"_id": ["a", "b", "c"], "text": column}), path)
        assert read(str(path)) == [
            Document("a", "", "fine"),
            Rejected("b", "invalid_utf8", "'text' is not UTF-8"),
            Document("c", "", "also fine"),
        ]
        pq.write_table(pa.table({"_id": column, "text": ["x", "y", "z"]}), path)
        assert read(str(path))[1] == Rejected("corpus.parquet:2", "invalid_utf8", "'_id' is not UTF-8")

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.parquet"
        path.write_bytes(b"this is not Parquet")
        with pytest.raises(UserError, match="is not a Parquet file"):
            read(str(path))

    def test_a_folder_of_files_is_read_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        parquet(tmp_path / "b.parquet", [{"_id": "2", "text": "x"}])
        parquet(tmp_path / "a.parquet", [{"_id": "1", "text": "x"}])
        assert [row.doc_id for row in read(str(tmp_path))] == ["1", "2"]


class TestSource:
    def test_missing(self, tmp_path: Path) -> None:
        for source in (tmp_path / "nowhere", tmp_path / "nowhere.jsonl", tmp_path / "nowhere.parquet"):
            with pytest.raises(
                UserError, match=r"nowhere.*(does not exist; give a BEIR or MAIR folder|check the path)"
            ):
                read(str(source))

    def test_two_formats_in_one_folder(self, tmp_path: Path) -> None:
        json_lines(tmp_path / "a.jsonl", [{"_id": "1", "text": "x"}])
        parquet(tmp_path / "b.parquet", [{"_id": "2", "text": "x"}])
        with pytest.raises(UserError, match=r"holds \.jsonl and \.parquet files; name one file, or set corpus\.format"):
            read(str(tmp_path))
        assert only(str(tmp_path), format="parquet").doc_id == "2"

    def test_nothing_readable_in_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "readme.txt").write_text("x")
        with pytest.raises(
            UserError, match=r"holds no corpus\.jsonl, docs\.jsonl, \.jsonl, \.csv, \.tsv or \.parquet file"
        ):
            read(str(tmp_path))
        with pytest.raises(UserError, match="has no beir file to read; check the path"):
            read(str(tmp_path), format="beir")

    def test_beir_reads_the_corpus_and_not_the_questions(self, collection: Path) -> None:
        assert detect_format(CorpusConfig(source=str(collection))) == "beir"
        assert [row.doc_id for row in read(str(collection))] == [row["_id"] for row in tiny.documents()]

    def test_pystdlib_with_something_behind_the_colon(self) -> None:
        with pytest.raises(UserError, match="'pystdlib:csv'; the built-in corpus is written 'pystdlib:'"):
            detect_format(CorpusConfig(source="pystdlib:csv"))

    def test_hash_is_of_the_content_and_not_of_the_place(self, tmp_path: Path) -> None:
        def hash_of(name: str, text: str) -> str:
            return source_hash(CorpusConfig(source=json_lines(tmp_path / name, [{"_id": "a", "text": text}])))

        assert hash_of("a.jsonl", "x") == hash_of("b.jsonl", "x") != hash_of("c.jsonl", "y")


class TestKinds:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("The cat sat on the mat.\nIt purred.", "text"),
            ("| a | b |\n|---|---|\n| 1 | 2 |", "table"),
            ("def area(r):\n    return 3.14 * r ** 2\n", "code"),
            ("#include <stdio.h>\nint main() {\n}", "code"),
            ("import this", "text"),  # one line is too little to tell
            ("", "text"),
        ],
    )
    def test_guessed(self, text: str, kind: str) -> None:
        assert guess_kind(text) == kind

    def test_config_then_row_then_look(self, tmp_path: Path) -> None:
        prose = {"_id": "a", "text": "prose"}
        rows = [{**prose, "metadata": {"kind": "code"}}, {**prose, "kind": "table"}, {**prose, "kind": "poem"}]
        source = json_lines(tmp_path / "c.jsonl", rows)
        assert [row.kind for row in read(source)] == ["code", "table", "text"]
        assert {row.kind for row in read(source, kind="code")} == {"code"}

    def test_ragged_and_awkward_cells(self) -> None:
        assert serialise_table([["a|b", None], ["two\nlines", 3, 4.5]]) == (
            "| a\\|b |  |  |\n|---|---|---|\n| two lines | 3 | 4.5 |"
        )
        assert serialise_table([]) == ""


class TestSampling:
    def test_does_not_depend_on_the_order(self, tmp_path: Path) -> None:
        rows = tiny.documents()

        def chosen(name: str, rows: list[dict[str, Any]], **corpus: Any) -> set[str]:
            config = config_of(tmp_path, json_lines(tmp_path / name, rows), index=f"of-{name}", **corpus)
            return {row["doc_id"] for row in built(config)[0]}

        sampled = chosen("forwards.jsonl", rows, max_documents=10)
        assert len(sampled) == 10
        assert chosen("backwards.jsonl", rows[::-1], max_documents=10) == sampled
        assert chosen("more.jsonl", rows, max_documents=11) > sampled

    def test_judged_documents_are_kept_first(self, tmp_path: Path, collection: Path) -> None:
        judged = ["bread-0", "chess-7", "sailing-3"]
        qrels = tmp_path / "judged" / "qrels"
        qrels.mkdir(parents=True)
        lines = [f"q\t{doc_id}\t1" for doc_id in judged] + ["q\tcoffee-0\t0"]
        (qrels / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
        assert judged_doc_ids(str(tmp_path / "judged")) == set(judged)

        config = config_of(tmp_path, str(collection), max_documents=5, keep_judged=str(tmp_path / "judged"))
        documents, counts = built(config)
        assert counts["rows"] == 5
        assert set(judged) < {row["doc_id"] for row in documents}

    def test_no_judgements_is_one_error(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, str(collection), max_documents=5, keep_judged=str(tmp_path))
        with pytest.raises(UserError, match=r"corpus.keep_judged .* has no qrels/\*\.tsv"):
            built(config)

    def test_another_seed_draws_another_sample_and_rejected_rows_pass(self) -> None:
        rows: list[Document | Rejected] = [Rejected("bad", "invalid_json"), *(Document(str(i), "t") for i in range(50))]
        samples = [[row.doc_id for row in sample(lambda: iter(rows), 10, judged=set(), seed=seed)] for seed in (0, 1)]
        assert [len(drawn) for drawn in samples] == [11, 11]
        assert samples[0] != samples[1]
        assert all(drawn[0] == "bad" and drawn[1:] == sorted(drawn[1:], key=int) for drawn in samples)


class TestShards:
    def test_built_twice_gives_the_same_bytes(self, tmp_path: Path, collection: Path) -> None:
        def files(index: str) -> dict[str, bytes]:
            config = config_of(tmp_path, str(collection), index=index, shard_size=7)
            build_corpus(config, Index(config.index))
            return {name: storage.read_bytes(f"{config.index}/{name}") for name in storage.list_files(config.index)}

        first, second = files("first"), files("second")
        assert list(first) == [*(f"corpus/part-{i:06d}.parquet" for i in range(6)), "work/document_frequency.bin"]
        assert first == second

    def test_rows_are_numbered_in_the_order_of_the_source(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, str(collection), shard_size=16)
        documents, counts = built(config)
        assert counts == {"rows": 40, "rejected": 0, "rejected_reasons": {}}
        assert [row["row_id"] for row in documents] == list(range(40))
        assert [row["doc_id"] for row in documents] == [row["_id"] for row in tiny.documents()]
        sizes = [storage.parquet_num_rows(Index(config.index).shard("corpus", shard)) for shard in range(3)]
        assert sizes == [16, 16, 8]

    def test_a_rerun_writes_only_what_is_missing(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, str(collection), shard_size=16)
        expected = built(config)
        shards = [Path(Index(config.index).shard("corpus", shard)) for shard in range(3)]
        shards[1].unlink()
        written = [shards[i].stat().st_mtime_ns for i in (0, 2)]
        assert built(config) == expected
        assert [shards[i].stat().st_mtime_ns for i in (0, 2)] == written

    def test_rejected_rows_behind_the_last_document_are_kept(self, tmp_path: Path) -> None:
        source = json_lines(tmp_path / "c.jsonl", [{"_id": "a", "text": "x"}, {"_id": "b", "text": ""}])
        config = config_of(tmp_path, source, shard_size=1)
        documents, counts = built(config)
        assert len(documents) == 1
        assert counts["rejected_reasons"] == {"empty_document": 1}
        assert rejected_rows(config) == [("b", "empty_document")]

    def test_document_frequencies_count_every_document_once(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, str(collection), shard_size=16)
        built(config)
        frequency = load_frequency(Index(config.index))
        assert frequency.num_documents == 40
        assert [frequency.of(word) for word in ("about", "history", "unheard-of")] == [40, 5, 0]

    def test_metadata_is_carried_along(self, tmp_path: Path) -> None:
        source = json_lines(tmp_path / "c.jsonl", [{"_id": "a", "text": "x", "metadata": {"year": 1936, "who": "Ø"}}])
        documents, _ = built(config_of(tmp_path, source))
        assert json.loads(documents[0]["metadata"]) == {"year": 1936, "who": "Ø"}

    def test_ten_million_ids_are_remembered_across_the_sorted_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_SeenIds, "LIMIT", 10)
        seen = _SeenIds()
        ids = [f"d{i % 37}" for i in range(100)]
        assert Counter(doc_id for doc_id in ids if seen.add(doc_id)) == Counter(set(ids))


def test_inputs_name_what_the_corpus_depends_on(tmp_path: Path, collection: Path) -> None:
    def inputs(**corpus: Any) -> dict[str, Any]:
        return corpus_inputs(config_of(tmp_path, str(collection), **corpus))

    plain, sampled = inputs(), inputs(max_documents=5)
    assert plain["corpus.source"] == source_hash(CorpusConfig(source=str(collection)))
    assert str(collection) not in json.dumps(plain)  # a moved corpus is the same corpus
    assert {key for key in plain if plain[key] != sampled[key]} == {"corpus.max_documents", "seed"}
