from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from zerogr.config.tree import Config
from zerogr.errors import StageRefused, UserError
from zerogr.index.index import Index, fingerprint, shard_name, shards_in
from zerogr.index.stage import INDEX, KINDS, STAGES
from zerogr.store import storage

INPUTS: dict[str, Any] = {"seed": 0, "corpus": "abc", "prompt": "Say it."}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(str(tmp_path / "index"))


def finish(index: Index, stage: str, inputs: dict[str, Any] = INPUTS) -> None:
    index.finish(stage, inputs, config={"seed": 0}, counts={"rows": 3}, seconds=1.23456)


def fill(index: Index) -> None:
    """Finishes every stage, with a file in each of its folders and a rejected row."""
    for stage in INDEX.stages:
        inputs = INPUTS | dict.fromkeys(stage.upstream(Config()), "0123456789abcdef")
        index.begin(stage.name, inputs)
        for file in left_by(stage.name):
            storage.write_bytes(index.path(file), b"x")
        storage.write_bytes(index.path("rejected", f"{stage.name}-{shard_name(0)}"), b"x")
        finish(index, stage.name, inputs)


def left_by(stage: str) -> set[str]:
    """Returns a file of every place of a stage."""
    folders = (*STAGES[stage].folders, *STAGES[stage].work)
    return {*STAGES[stage].keeps, *(f"{folder}/{shard_name(0)}" for folder in folders)}


class TestFingerprint:
    def test_depends_on_content_and_not_on_order(self) -> None:
        assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
        changed = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"a": 1, "b": None}]
        assert len({fingerprint(inputs) for inputs in changed}) == len(changed)

    def test_is_the_same_for_ever(self) -> None:
        """Another value for old inputs would refuse every index there is."""
        assert fingerprint({"seed": 0, "text": "Ü"}) == "1dd73957072f3e2f"


class TestStages:
    def test_from_nothing_to_done(self, index: Index) -> None:
        assert index.record("corpus") is None
        assert index.manifest()["stages"] == {}
        assert index.begin("corpus", INPUTS)
        assert index.begun() == ["corpus"]
        assert index.begin("corpus", INPUTS)  # interrupted and run again
        storage.write_bytes(index.shard("corpus", 0), b"x")
        finish(index, "corpus")
        assert index.begun() == []
        assert not index.begin("corpus", INPUTS)
        record = index.require("corpus")
        assert record.fingerprint == fingerprint(INPUTS)
        assert (record.inputs, record.counts, record.files, record.seconds) == (INPUTS, {"rows": 3}, 1, 1.235)
        assert index.manifest()["config"] == {"seed": 0}

    def test_stages_are_kept_beside_each_other(self, index: Index) -> None:
        for stage in ("corpus", "docids"):
            finish(index, stage, {"of": stage})
        assert index.require("corpus").inputs == {"of": "corpus"}
        assert index.require("docids").inputs == {"of": "docids"}

    def test_a_trailing_slash_is_the_same_index(self, index: Index) -> None:
        finish(index, "corpus")
        assert Index(index.uri + "/").record("corpus") == index.record("corpus")

    @pytest.mark.parametrize(("stage", "command"), [("corpus", "corpus"), ("retriever", "train")])
    def test_a_missing_stage_names_its_command(self, index: Index, stage: str, command: str) -> None:
        with pytest.raises(UserError) as caught:
            index.require(stage)
        assert str(caught.value) == (
            f"'{index.uri}' has no finished stage '{stage}'; run `zerogr {command} CONFIG` or "
            "`zerogr index CONFIG` first"
        )


class TestRefusal:
    """Shards of two configurations under one name would be an index that nobody can explain."""

    @pytest.mark.parametrize("is_finished", [False, True])
    def test_names_the_keys_that_differ(self, index: Index, is_finished: bool) -> None:
        index.begin("docids", INPUTS)
        if is_finished:
            finish(index, "docids")
        other = {"seed": 1, "corpus": "abc", "prompt": "Sing it.", "top_p": 0.5}
        with pytest.raises(StageRefused) as caught:
            index.begin("docids", other)
        assert str(caught.value) == (
            f"stage 'docids' of '{index.uri}' was made with another prompt (\"Say it.\" there, \"Sing it.\" now), "
            "seed (0 there, 1 now), top_p (absent there, 0.5 now); "
            "run again with --rebuild docids, or with another index URI"
        )
        assert index.begin("docids", INPUTS) is not is_finished  # the refusal changed nothing

    def test_long_values_are_cut(self, index: Index) -> None:
        index.begin("docids", {"prompt": "a" * 1000})
        with pytest.raises(StageRefused) as caught:
            index.begin("docids", {"prompt": "b" * 1000})
        assert len(str(caught.value)) < 400 + len(index.uri)

    def test_other_stages_do_not_mind(self, index: Index) -> None:
        index.begin("docids", INPUTS)
        assert index.begin("queries", {"seed": 1})


class TestRebuild:
    @pytest.mark.parametrize(
        ("stage", "fallen"),
        [
            (
                "corpus",
                {
                    "corpus",
                    "embeddings",
                    "scheme",
                    "docids",
                    "queries",
                    "lexical",
                    "negatives",
                    "trie",
                    "retriever",
                    "statistics",
                    "evaluation",
                },
            ),
            ("embeddings", {"embeddings"}),
            ("scheme", {"scheme"}),
            ("docids", {"docids", "lexical", "negatives", "trie", "retriever", "statistics", "evaluation"}),
            ("queries", {"queries", "negatives", "retriever", "statistics", "evaluation"}),
            ("trie", {"trie", "evaluation"}),
            ("retriever", {"retriever", "statistics", "evaluation"}),
            ("evaluation", {"evaluation"}),
        ],
    )
    def test_everything_made_from_it_falls(self, index: Index, stage: str, fallen: set[str]) -> None:
        fill(index)
        before = set(storage.list_files(index.uri))
        assert set(index.rebuild(stage)) == fallen
        assert set(index.manifest()["stages"]) == {each.name for each in INDEX.stages} - fallen
        gone = before - set(storage.list_files(index.uri))
        expected = {f"rejected/{name}-{shard_name(0)}" for name in fallen} | {f"work/{name}.json" for name in fallen}
        for name in fallen:
            expected |= left_by(name)
        assert gone == expected

    def test_afterwards_other_inputs_are_welcome(self, index: Index) -> None:
        index.begin("docids", INPUTS)
        index.rebuild("docids")
        assert index.begin("docids", {"seed": 1})

    def test_of_nothing(self, index: Index) -> None:
        index.rebuild("corpus")
        assert storage.list_files(index.uri) == {}

    def test_interrupted_it_leaves_no_half_deleted_finished_stage(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(index)

        def die(_uri: str) -> None:
            raise ConnectionError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(storage, "delete", die)
            with pytest.raises(ConnectionError):
                index.rebuild("docids")
        assert set(index.manifest()["stages"]) == {"corpus", "embeddings", "scheme", "queries"}
        fallen = {"docids", "lexical", "negatives", "trie", "retriever", "statistics", "evaluation"}
        assert set(index.rebuild("docids")) == fallen
        assert storage.list_files(index.path("docids")) == {}

    def test_every_stage_comes_after_what_it_needs(self) -> None:
        for kind in KINDS:
            names = [stage.name for stage in kind.stages]
            for number, stage in enumerate(kind.stages):
                assert set(stage.upstream(Config())) <= set(names[:number])


class TestManifest:
    @pytest.mark.parametrize(
        ("content", "seen"), [('{"format": 7, "stages": {}}', "7"), ("{}", "None"), ("[]", "list")]
    )
    def test_of_another_format(self, index: Index, content: str, seen: str) -> None:
        storage.write_bytes(index.path("index.json"), content.encode())
        with pytest.raises(UserError, match=rf"index\.json' has format {seen}; this version reads 2: build the index"):
            index.manifest()

    def test_damaged(self, index: Index) -> None:
        finish(index, "corpus")
        path = Path(index.path("index.json"))
        path.write_bytes(path.read_bytes()[:-5])
        for ask in (index.manifest, lambda: index.begin("docids", INPUTS), lambda: index.require("corpus")):
            with pytest.raises(UserError, match=r"index\.json' is not valid JSON: "):
                ask()

    def test_is_readable_by_a_person(self, index: Index) -> None:
        finish(index, "corpus", {"instruction": "Find — über"})
        text = Path(index.path("index.json")).read_text(encoding="utf-8")
        assert "Find — über" in text
        assert text.count("\n") > 10
        assert json.loads(text)["format"] == 2


class TestShards:
    def test_pending_are_those_of_the_corpus_that_are_missing(self, index: Index) -> None:
        for shard in (0, 1, 2, 11):
            storage.write_bytes(index.shard("corpus", shard), b"x")
        assert index.pending_shards("queries") == [0, 1, 2, 11]
        for shard in (1, 11):
            storage.write_bytes(index.shard("queries", shard), b"x")
        assert index.pending_shards("queries") == [0, 2]

    def test_only_finished_shards_count(self, index: Index) -> None:
        for name in ("part-000001.parquet", ".part-000002.parquet.abc", "part-3.parquet", "notes.txt"):
            storage.write_bytes(index.path("queries", name), b"x")
        assert shards_in(index.path("queries")) == [1]
        assert shards_in(index.path("nowhere")) == []

    def test_names_go_on_beyond_a_million(self, index: Index) -> None:
        assert shard_name(42) == "part-000042.parquet"
        storage.write_bytes(index.shard("queries", 1_234_567), b"x")
        assert shards_in(index.path("queries")) == [1_234_567]

    def test_rejected_rows_are_counted_by_stage_and_reason(self, index: Index) -> None:
        table = pa.table({"row_id": [1]})
        index.publish_shard("docids", "work/docids", 0, table, [("a", "no_words", "?"), ("b", "engine_error", "?")])
        index.publish_shard("docids", "work/docids", 1, table, [("c", "engine_error", "?")])
        index.publish_shard("queries", "queries", 0, table, [("a", "engine_error", "?")])
        index.publish_shard("queries", "queries", 1, table, [])
        assert index.num_rejected("docids") == {"engine_error": 2, "no_words": 1}
        assert index.num_rejected("queries") == {"engine_error": 1}
        assert index.num_rejected("corpus") == {}
        assert set(storage.list_files(index.path("rejected"))) == {
            f"docids-{shard_name(0)}",
            f"docids-{shard_name(1)}",
            f"queries-{shard_name(0)}",
        }

    def test_a_repeated_shard_does_not_count_its_rejected_rows_twice(self, index: Index) -> None:
        for _ in range(2):
            index.publish_shard("docids", "work/docids", 0, pa.table({"row_id": [1]}), [("a", "no_words", "?")])
        assert index.num_rejected("docids") == {"no_words": 1}

    def test_rejected_rows_are_published_before_their_shard(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other way round, a death between the two would lose them: a published shard is never made again."""
        write, order = storage.write_parquet, []

        def note(uri: str, table: pa.Table) -> None:
            order.append(uri)
            write(uri, table)

        monkeypatch.setattr(storage, "write_parquet", note)
        index.publish_shard("queries", "queries", 0, pa.table({"row_id": [1]}), [("a", "engine_error", "?")])
        assert order == [index.path("rejected", f"queries-{shard_name(0)}"), index.shard("queries", 0)]


def test_rows_of_shards_are_known_without_opening_them(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    for shard, size in enumerate((4, 4, 3)):
        index.publish_shard("corpus", "corpus", shard, pa.table({"row_id": [0] * size}), [])
    index.finish("corpus", {"corpus.shard_size": 4}, config={}, counts={"rows": 11}, seconds=0)
    assert index.rows_of_shards() == {0: 4, 1: 4, 2: 3}
    index.publish_shard("corpus", "corpus", 3, pa.table({"row_id": [0][:0]}), [("d", "empty_document", "")])
    assert index.rows_of_shards() == {0: 4, 1: 4, 2: 3, 3: 0}  # the last rows were all rejected


class TestKindsOfFolder:
    """Both kinds keep shards in docids/ and queries/: one would take the other's for its own, a rebuild delete them."""

    def test_teacher_data_keeps_off_an_index(self, tmp_path: Path) -> None:
        index = Index(str(tmp_path / "index"))
        index.finish("corpus", {}, config={}, counts={}, seconds=0)
        for attempt in (lambda: index.begin("distil", {}), lambda: index.rebuild("distil")):
            with pytest.raises(
                UserError, match="holds an index; give teacher data a folder of its own: set distil.out"
            ):
                attempt()

    @pytest.mark.parametrize("is_finished", [False, True])
    def test_an_index_keeps_off_teacher_data(self, tmp_path: Path, is_finished: bool) -> None:
        index = Index(str(tmp_path / "teacher"))
        index.begin("distil", {})
        if is_finished:
            index.finish("distil", {}, config={}, counts={}, seconds=0)
        assert index.begun() == ([] if is_finished else ["distil"])
        for attempt in (lambda: index.begin("corpus", {}), lambda: index.rebuild("docids")):
            with pytest.raises(UserError, match="holds teacher data; give an index a folder of its own: set index"):
                attempt()


class TestReuse:
    def test_what_later_stages_and_updates_read_is_copied_too(self, index: Index, tmp_path: Path) -> None:
        """An index that lacks the terms of its documents could never be updated."""
        donor = Index(str(tmp_path / "donor"))
        fill(donor)
        storage.delete(donor.path("work/lexical"))
        storage.write_bytes(donor.shard("work/lexical", 0), b"terms")
        for stage in ("corpus", "docids", "lexical"):
            assert index.adopt(stage, donor.require(stage).inputs, donor, config={})
        assert storage.read_bytes(index.shard("work/lexical", 0)) == b"terms"
        assert storage.read_bytes(index.path("work/document_frequency.bin")) == b"x"
        assert not storage.exists(index.path("work/docids"))

    def test_what_was_taken_over_in_part_binds_the_stage(
        self, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shards of the donor must never stand beside ones that were made from other inputs."""
        donor = Index(str(tmp_path / "donor"))
        fill(donor)
        inputs = donor.require("corpus").inputs
        monkeypatch.setattr(storage, "upload_folder", lambda *_: (_ for _ in ()).throw(OSError("lost")))
        with pytest.raises(OSError, match="lost"):
            index.adopt("corpus", inputs, donor, config={})
        monkeypatch.undo()
        with pytest.raises(StageRefused, match="was made with another"):
            index.begin("corpus", {**inputs, "other": 1})
        assert index.adopt("corpus", inputs, donor, config={})
        assert index.require("corpus").fingerprint == donor.require("corpus").fingerprint


class TestWhatNobodyHasClaimed:
    def test_is_neither_taken_nor_deleted(self, index: Index, tmp_path: Path) -> None:
        """Shards of an update that was forgotten halfway are other documents'; and a folder `corpus` may be the user's own."""
        donor = Index(str(tmp_path / "donor"))
        fill(donor)
        for stage, name in (("queries", "part-000000.parquet"), ("corpus", "mine.jsonl")):
            storage.write_bytes(index.path(stage, name), b"precious")
            inputs = donor.require(stage).inputs
            for attempt in (partial(index.begin, stage, inputs), partial(index.adopt, stage, inputs, donor, config={})):
                with pytest.raises(
                    UserError, match=f"{stage}/{name}' is there, and .* was never begun; .*--rebuild {stage}"
                ):
                    attempt()
            assert storage.read_bytes(index.path(stage, name)) == b"precious"
        index.rebuild("queries")
        assert index.begin("queries", {"seed": 1})
        storage.write_bytes(index.shard("queries", 0), b"mine")
        assert index.begin("queries", {"seed": 1})

    def test_what_is_named_by_its_inputs_binds_nobody(self, index: Index) -> None:
        """Examples that were tokenised before a mistake in the training's settings serve when it is mended."""
        assert index.begin("retriever", {"training.lora_rank": 4})
        storage.write_bytes(index.path("work/training/examples/key/000000.safetensors"), b"x")
        index.release("retriever")
        assert index.begin("retriever", {"training.lora_rank": 0})
        assert storage.exists(index.path("work/training/examples/key/000000.safetensors"))
        storage.write_bytes(index.path("work/training/checkpoints/latest.json"), b"x")
        index.release("retriever")
        with pytest.raises(StageRefused):
            index.begin("retriever", {"training.lora_rank": 8})
