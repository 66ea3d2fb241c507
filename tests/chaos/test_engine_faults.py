"""Engines that break while they work. A broken engine is replaced with its whole process; what it was given is made again, so
that the rows are those of an undisturbed run; and what breaks every engine ends the stage instead of going on for ever."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from jobs.attempts import WITHOUT_A_WORD
from jobs.cli import main
from tests.chaos.engines import CUDA_ERROR, Blind, Diary, Mortal, Poisoned, unloadable, use
from tests.chaos.settings import LANGUAGE_MODEL, run_stages
from tests.published import contents, files, rows
from zerogr.index.index import Index

pytestmark = [pytest.mark.integration]

KEPT = "; what is published is kept, and the same command goes on from there"


def test_mortal_engine_is_replaced(
    undisturbed: str, collection: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = str(tmp_path / "index")
    config = run_stages(index, collection, tiny_model, "corpus", compute__shards_in_flight=1)
    for stage in ("docids", "queries"):
        use(monkeypatch, stage, partial(Mortal, batches=3, diary=tmp_path / stage))
        assert main([stage, config]) == 0
        # Five shards: two, a death, two, a death, one. Two shards were begun twice, none more often.
        lives = Diary(tmp_path / stage).events()
        assert sorted((life["answered"], life["broke"]) for life in lives.values()) == [(1, 0), (2, 1), (2, 1)]
    folders = ("docids", "work/docids", "queries", "rejected")
    assert contents(index, *folders) == contents(undisturbed, *folders)
    for stage in ("docids", "queries"):
        assert Index(index).require(stage).counts == Index(undisturbed).require(stage).counts


def test_mortal_language_model_is_replaced(
    undisturbed_lm: str, collection: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = str(tmp_path / "index")
    config = run_stages(index, collection, tiny_model, "corpus", compute__shards_in_flight=1, **LANGUAGE_MODEL)
    use(monkeypatch, "docids", partial(Mortal, batches=4, diary=tmp_path / "diary"))
    assert main(["docids", config]) == 0
    lives = Diary(tmp_path / "diary").events()
    assert sorted((life["answered"], life["broke"]) for life in lives.values()) == [(2, 0), (3, 1)]
    assert contents(index, "docids", "work/docids") == contents(undisturbed_lm, "docids", "work/docids")
    assert Index(index).require("docids").counts["output_tokens"] > 0


@pytest.mark.parametrize(
    ("is_killed", "max_retries", "error"),
    [(False, 0, f"RuntimeError: {CUDA_ERROR}"), (True, 1, WITHOUT_A_WORD)],
    ids=["raises", "is-killed"],
)
def test_shard_that_breaks_every_engine_ends_the_stage(
    is_killed: bool,
    max_retries: int,
    error: str,
    undisturbed: str,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = str(tmp_path / "index")
    config = run_stages(
        index, collection, tiny_model, "corpus", compute__max_retries=max_retries, compute__shards_in_flight=1
    )
    with monkeypatch.context() as patch:
        use(patch, "docids", partial(Poisoned, word="of chess", is_killed=is_killed, diary=tmp_path / "diary"))
        assert main(["docids", config]) == 1
    tries = max_retries + 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    expected = f"stage 'docids' gave up at shard 2: it failed {tries} times, the last time with {error}{KEPT}"
    assert last_line == f"zerogr: {expected}"
    lives = Diary(tmp_path / "diary").events()
    assert [life["poisoned"] for life in lives.values() if life["poisoned"]] == [1] * tries  # each in its own process
    published = files(index, "work/docids")
    assert len(published) >= 2 and "work/docids/part-000002.parquet" not in published
    assert Index(index).begun() == ["docids"]

    assert main(["docids", config]) == 0  # with a sound engine
    assert {name: file for name, file in files(index).items() if name in published} == published
    assert contents(index, "docids", "work/docids") == contents(undisturbed, "docids", "work/docids")


def test_engines_with_several_shards_in_hand(
    undisturbed: str, collection: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends takes the other shards it had in hand with it; they too are made again."""
    index = str(tmp_path / "index")
    config = run_stages(
        index, collection, tiny_model, "corpus", compute__shards_in_flight=3, compute__num_engine_workers=2
    )
    use(monkeypatch, "docids", partial(Mortal, batches=3, diary=tmp_path / "diary"))
    assert main(["docids", config]) == 0
    assert sum(life["broke"] for life in Diary(tmp_path / "diary").events().values()) >= 1
    assert contents(index, "docids", "work/docids") == contents(undisturbed, "docids", "work/docids")


def test_engine_that_cannot_be_loaded(
    undisturbed: str,
    collection: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = str(tmp_path / "index")
    config = run_stages(index, collection, tiny_model, "corpus", compute__max_retries=1)
    use(monkeypatch, "docids", partial(unloadable, times=2, diary=tmp_path / "never"))
    assert main(["docids", config]) == 1
    assert f"it failed 2 times, the last time with RuntimeError: CUDA out of memory{KEPT}" in capsys.readouterr().err
    assert len(Diary(tmp_path / "never").events()) == 2
    use(monkeypatch, "docids", partial(unloadable, times=1, diary=tmp_path / "second"))
    assert main(["docids", config]) == 0
    assert contents(index, "docids", "work/docids") == contents(undisturbed, "docids", "work/docids")


def test_prompt_without_an_answer_is_rejected_alone(
    undisturbed: str, collection: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = str(tmp_path / "index")
    config = run_stages(index, collection, tiny_model, "corpus", compute__max_rejected_fraction=0.2)
    failed = {row["doc_id"] for row in rows(index, "corpus") if "beginner" in row["text"]}
    assert len(failed) == 5  # one in each shard
    for stage in ("docids", "queries"):
        use(monkeypatch, stage, partial(Blind, word="beginner"))
        assert main([stage, config]) == 0
        assert rows(index, stage) == [row for row in rows(undisturbed, stage) if row["doc_id"] not in failed]
    rejected = rows(index, "rejected")
    assert Counter((row["doc_id"], row["stage"]) for row in rejected) == Counter(
        (doc_id, stage) for doc_id in failed for stage in ("docids", "queries")
    )
    assert {(row["reason"], row["detail"]) for row in rejected} == {
        ("engine_error", "ValueError: 'beginner' is in the prompt")
    }
