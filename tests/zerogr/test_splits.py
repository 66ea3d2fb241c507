"""A source that is cut gives what one stream gives, however it is cut and whoever reads which part when."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.config.file import validate_config
from zerogr.config.tree import Config, CorpusConfig
from zerogr.corpus import numbering, separated
from zerogr.corpus.assembly import SplitWriter, finish_corpus, pending_splits, pending_surveys
from zerogr.corpus.numbering import Numbering, number
from zerogr.corpus.splits import Piece, Splits, cut
from zerogr.corpus.stage import build_corpus
from zerogr.corpus.streams import Span
from zerogr.corpus.survey import FOLDER, Surveyor, write_splits
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency


@pytest.fixture(autouse=True, scope="module")
def few_counters() -> Iterator[None]:
    """The table of frequencies is 16 MiB, for every split of a hundred bytes as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DocumentFrequency, "NUM_COUNTERS", 2**10)
        yield


def config_of(folder: Path, source: Path | str, **corpus: Any) -> Config:
    return validate_config({"index": str(folder), "corpus": {"source": str(source), **corpus}})


def surveyed(config: Config, split_bytes: int, seed: int = 0) -> tuple[Splits, Numbering]:
    """Does the first pass, split after split in some order."""
    index, splits = Index(config.index), cut(config.corpus, split_bytes=split_bytes)
    write_splits(index, splits)
    pending = pending_surveys(index, splits)
    random.Random(seed).shuffle(pending)
    surveyor = Surveyor(config, index)
    for split in pending:
        surveyor(split)
    return splits, number(config, index, splits)


def built_in_parts(config: Config, split_bytes: int, seed: int = 0) -> dict[str, Any]:
    """Builds the corpus as the job does, without Ray; returns its counts."""
    index = Index(config.index)
    _, numbered = surveyed(config, split_bytes, seed)
    pending = list(pending_splits(config, index, numbered))
    random.Random(seed).shuffle(pending)
    writer = SplitWriter(config, index)
    for split in pending:
        writer(split)
    assert not pending_splits(config, index, numbered)
    counts = finish_corpus(config, index, numbered)
    storage.delete(index.path(FOLDER))
    return counts


def contents(config: Config) -> dict[str, bytes]:
    """Returns every file of the index."""
    return {name: storage.read_bytes(f"{config.index}/{name}") for name in storage.list_files(config.index)}


def assert_as_one_stream(folder: Path, source: Path | str, split_bytes: int, seed: int = 0, **corpus: Any) -> None:
    whole, parts = (config_of(folder / name, source, **corpus) for name in ("whole", "parts"))
    try:
        counts = build_corpus(whole, Index(whole.index))
    except UserError as refused:
        with pytest.raises(UserError) as caught:
            built_in_parts(parts, split_bytes, seed)
        assert str(caught.value) == str(refused)
        return
    assert built_in_parts(parts, split_bytes, seed) == counts
    assert contents(parts) == contents(whole)


KEYS = st.sampled_from(["a", "b", "c", " a ", "", "ключ", *(f"d{i}" for i in range(40))])
TEXTS = st.sampled_from(
    ["", "x", "some words", "naïve café", '"quoted" text', "long " * 30, "carriage\rreturn", "\ufeffmark"]
)
ROWS = st.lists(st.tuples(KEYS, TEXTS, TEXTS), max_size=25)


def json_lines(rows: list[tuple[str, str, str]]) -> bytes:
    made = [json.dumps({"_id": key, "title": title, "text": text}, ensure_ascii=False) for key, title, text in rows]
    return "\n".join([*made[:3], "", "no JSON", *made[3:]]).encode()


def tab_separated(rows: list[tuple[str, str, str]]) -> bytes:
    return "\n".join(["_id\ttitle\ttext", *("\t".join(row) for row in rows), "", "one cell"]).encode() + b"\n\xe9\tt\tx"


def comma_separated(rows: list[tuple[str, str, str]]) -> bytes:
    cells = ([f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in [("_id", "title", "text"), *rows])
    return ("\r\n".join(",".join(row) for row in cells) + "\r\n").encode()


def row_groups(rows: list[tuple[str, str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([dict(zip(("_id", "title", "text"), row, strict=True)) for row in rows])
    table = table if rows else pa.table({"_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    pq.write_table(table, sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[list[tuple[str, str, str]]], bytes]] = {
    "jsonl": json_lines,
    "jsonl.gz": lambda rows: gzip.compress(json_lines(rows)),
    "tsv": tab_separated,
    "csv": comma_separated,
    "parquet": row_groups,
}


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=15, deadline=None)
@given(
    files=st.lists(ROWS, min_size=1, max_size=4),
    split_bytes=st.sampled_from([1, 20, 77, 300, 2000]),
    shard_size=st.integers(1, 7),
    max_documents=st.none() | st.integers(1, 12),
    seed=st.integers(0, 99),
    mark=st.booleans(),
)
def test_splits_of_any_size_are_one_stream(
    tmp_path_factory: pytest.TempPathFactory,
    ending: str,
    files: list[list[tuple[str, str, str]]],
    split_bytes: int,
    shard_size: int,
    max_documents: int | None,
    seed: int,
    mark: bool,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "source").mkdir()
    for number_, rows in enumerate(files):
        content = FORMATS[ending](rows)
        is_text = ending in ("jsonl", "tsv", "csv")
        content = b"\xef\xbb\xbf" + content if mark and is_text else content
        (folder / "source" / f"part-{number_}.{ending}").write_bytes(content)
    assert_as_one_stream(
        folder, folder / "source", split_bytes, seed, shard_size=shard_size, max_documents=max_documents
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files of JSON Lines with 60 documents, five of them twice, and a row without text."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [{"_id": f"d{i}", "title": f"title {i}", "text": f"text of document {i}"} for i in range(60)]
    for name, part in (("a", rows[:40]), ("b", [*rows[35:], {"_id": "empty", "text": ""}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_hashes_are_merged_a_few_at_a_time(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "AT_ONCE", 3)
    assert_as_one_stream(tmp_path, source, 300, shard_size=4)


def test_the_first_of_two_is_kept_and_lines_are_counted_through(tmp_path: Path, source: Path) -> None:
    config = config_of(tmp_path / "index", source, shard_size=7)
    counts = built_in_parts(config, 200)
    assert counts == {"rows": 60, "rejected": 6, "rejected_reasons": {"duplicate_doc_id": 5, "empty_document": 1}}
    (source / "c.jsonl").write_text(
        "".join(json.dumps({"_id": f"x{i}", "text": "x"}) + "\n" for i in range(9)) + "\nno\n"
    )
    config = config_of(tmp_path / "longer", source, shard_size=7)
    built_in_parts(config, 40)
    index = Index(config.index)
    names = storage.list_files(index.path("rejected"))
    told = [row for name in names for row in storage.read_parquet(index.path("rejected", name)).to_pylist()]
    assert told[-1]["doc_id"] == "c.jsonl:11" and told[-1]["reason"] == "invalid_json"


class TestGoingOn:
    """A run that was killed has left some files; what is there is not made again, and what is missing is."""

    def test_surveys_are_kept(self, tmp_path: Path, source: Path) -> None:
        config = config_of(tmp_path / "index", source, shard_size=4)
        splits, numbered = surveyed(config, 300)
        index = Index(config.index)
        storage.delete(index.path(FOLDER, "survey-000002.json"))
        assert pending_surveys(index, splits) == [2]
        assert surveyed(config, 300)[1] == numbered
        assert pending_surveys(index, splits) == []

    def test_a_source_that_is_cut_otherwise_is_surveyed_anew(self, tmp_path: Path, source: Path) -> None:
        config = config_of(tmp_path / "index", source, shard_size=4)
        surveyed(config, 300)
        splits = cut(config.corpus, split_bytes=200)
        write_splits(Index(config.index), splits)
        assert pending_surveys(Index(config.index), splits) == list(range(len(splits.pieces)))

    def test_only_missing_shards_are_written(self, tmp_path: Path, source: Path) -> None:
        whole, config = (config_of(tmp_path / name, source, shard_size=4) for name in ("whole", "index"))
        counts = build_corpus(whole, Index(whole.index))
        index = Index(config.index)
        _, numbered = surveyed(config, 300)
        pending = list(pending_splits(config, index, numbered))
        writer = SplitWriter(config, index)
        for split in pending[:3]:
            writer(split)
        assert list(pending_splits(config, index, numbered)) == pending[3:]
        lost = shards_in(index.path("corpus"))[1]
        kept = [Path(index.shard("corpus", shard)) for shard in shards_in(index.path("corpus")) if shard != lost]
        before = [path.stat().st_mtime_ns for path in kept]
        storage.delete(index.shard("corpus", lost))
        again = list(pending_splits(config, index, numbered))
        assert again[0] in pending[:3] and again[1:] == pending[3:]
        assert built_in_parts(config, 300) == counts
        assert contents(config) == contents(whole)
        assert [path.stat().st_mtime_ns for path in kept] == before

    def test_a_corpus_whose_counts_alone_are_missing(self, tmp_path: Path, source: Path) -> None:
        config = config_of(tmp_path / "index", source, shard_size=4)
        counts = built_in_parts(config, 300)
        expected = contents(config)
        assert built_in_parts(config, 300) == counts and contents(config) == expected


class TestFaults:
    def test_a_file_that_changes_between_the_passes(self, tmp_path: Path, source: Path) -> None:
        config = config_of(tmp_path / "index", source, shard_size=4)
        surveyed(config, 300)
        with (source / "a.jsonl").open("a") as file:
            file.write("{}\n")
        with pytest.raises(UserError, match=r"a\.jsonl' has changed since the source was cut .*--rebuild corpus"):
            SplitWriter(config, Index(config.index))(0)

    def test_a_file_of_another_time(self, tmp_path: Path, source: Path) -> None:
        splits = cut(config_of(tmp_path / "index", source).corpus)
        os.utime(source / "b.jsonl", (1, 1))
        splits.check(Piece(0))
        with pytest.raises(UserError, match=r"b\.jsonl' has changed"):
            splits.check(Piece(1))

    def test_a_file_that_a_node_does_not_see(self, tmp_path: Path, source: Path) -> None:
        splits = cut(config_of(tmp_path / "index", source).corpus)
        (source / "a.jsonl").unlink()
        with pytest.raises(UserError, match=r"is not to be found .* compute\.num_reading_workers to 1"):
            splits.check(Piece(0))

    def test_a_file_without_its_columns(self, tmp_path: Path, source: Path) -> None:
        (source / "a.jsonl").write_text('{"key": "a", "text": "x"}\n' * 50)
        with pytest.raises(UserError, match="has no column '_id'; it has key, text"):
            surveyed(config_of(tmp_path / "index", source), 100)


class TestCutting:
    """What is cut, and where it must not be."""

    def spans(self, source: Path, split_bytes: int | None, **corpus: Any) -> list[list[tuple[int, Span | None]]]:
        pieces = cut(CorpusConfig(source=str(source), **corpus), split_bytes=split_bytes).pieces
        return [[(piece.file, piece.span) for piece in split] for split in pieces]

    def test_a_small_source_is_one(self, source: Path) -> None:
        assert self.spans(source, None) == [[(0, None), (1, None)]]

    def test_small_files_go_together(self, source: Path) -> None:
        sizes = [path.stat().st_size for path in sorted(source.iterdir())]
        assert self.spans(source, max(sizes)) == [[(0, None)], [(1, None)]]
        assert self.spans(source, sum(sizes)) == [[(0, None), (1, None)]]

    def test_lines(self, source: Path) -> None:
        size = (source / "a.jsonl").stat().st_size
        halves = [[(0, Span(0, size // 2))], [(0, Span(size // 2, size))]]
        assert self.spans(source / "a.jsonl", size // 2 + 1) == halves

    def test_packed_lines_are_not(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "a", "text": "x"}\n' * 1000))
        assert self.spans(tmp_path, 10) == [[(0, None)], [(1, None)]]

    @pytest.mark.parametrize(
        ("name", "content", "quoting", "number"),
        [
            ("c.csv", "_id,text\n" + "a,x\n" * 100, "auto", 1),
            ("c.csv", "_id,text\n" + "a,x\n" * 100, "none", 5),
            ("c.tsv", "_id\ttext\n" + "a\tx\n" * 100, "auto", 5),
            ("c.tsv", "_id\ttext\n" + 'a\t"Oh!" he said\n' * 30, "auto", 5),
            ("c.tsv", "_id\ttext\n" + 'a\t"two\nlines"\n' * 30, "auto", 1),
            ("c.tsv", "_id\ttext\n" + "a\tx\n" * 100, "standard", 1),
        ],
    )
    def test_only_files_that_quote_nothing(
        self, tmp_path: Path, name: str, content: str, quoting: str, number: int
    ) -> None:
        (tmp_path / name).write_text(content)
        assert len(self.spans(tmp_path / name, len(content) // 5 + 1, quoting=quoting)) == number

    def test_quotes_that_may_still_come(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(separated, "MOST_LOOKED_AT", 100)
        (tmp_path / "c.tsv").write_text("_id\ttext\n" + "a\tx\n" * 100)
        assert len(self.spans(tmp_path / "c.tsv", 50)) == 1

    def test_row_groups(self, tmp_path: Path) -> None:
        rows = pa.table({"_id": [f"d{i}" for i in range(10)], "text": ["x"] * 10})
        pq.write_table(rows, tmp_path / "c.parquet", row_group_size=4)
        assert self.spans(tmp_path / "c.parquet", 1) == [[(0, Span(i, i + 1))] for i in range(3)]

    def test_what_is_not_on_a_disk(self) -> None:
        assert self.spans(Path("pystdlib:"), None) == [[]]

    def test_it_is_the_same_for_workers(self, source: Path) -> None:
        splits = cut(CorpusConfig(source=str(source)), split_bytes=500)
        assert Splits.of_json(json.loads(json.dumps(splits.as_json()))) == splits


@pytest.mark.integration
def test_object_storage_is_read_by_ranges(tmp_path: Path, source: Path, s3_server: str) -> None:
    storage.upload_folder(source, "s3://zerogr/splits")
    whole = config_of(tmp_path / "whole", source, shard_size=4)
    build_corpus(whole, Index(whole.index))
    remote = config_of(tmp_path / "remote", "s3://zerogr/splits", shard_size=4)
    built_in_parts(remote, 300)
    assert contents(remote) == contents(whole)
    splits = cut(remote.corpus, split_bytes=300)
    storage.write_bytes("s3://zerogr/splits/b.jsonl", b"{}" * 700)
    with pytest.raises(UserError, match=r"b\.jsonl' has changed"):
        splits.check(splits.pieces[-1][0])
