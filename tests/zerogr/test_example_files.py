from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.examples import answers, asked, of_tokens
from zerogr.training.examples import Examples
from zerogr.training.files import ExampleFiles, PublishedExamples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path))
    return tmp_path


def part(prefixes: list[list[int]], *examples: tuple[int, list[int]]) -> Examples:
    """Examples of (task, tokens), the last token of each its target."""
    return of_tokens(prefixes, [(task, query, [([target], 0.5)]) for task, (*query, target) in examples])


def parts() -> Iterator[Examples]:
    yield part([[1], [2, 2]], (0, [10, 11]), (1, [12]))
    yield part([])  # a shard of rejected documents
    yield part([[2, 2], [3]], (0, [13, 14, 15]), (1, [16]))


NUM_RANKS = 3


def parts_when_all_ask(diary: Path) -> Iterator[Examples]:
    (diary / f"wrote-{os.getpid()}").touch()
    while len(list(diary.glob("asks-*"))) < NUM_RANKS:
        time.sleep(0.01)
    yield from parts()


def rank(diary: Path) -> None:
    (diary / f"asks-{os.getpid()}").touch()
    assert len(ExampleFiles("key").open(lambda: parts_when_all_ask(diary))) == 4


def test_parts_become_one(cache: Path) -> None:
    examples = ExampleFiles("key").open(parts)
    assert examples.prefixes == [[1], [2, 2], [3]]
    assert examples.task.tolist() == [0, 1, 1, 2]
    pieces = [(asked(examples, i), answers(examples, i)) for i in range(4)]
    assert pieces == [
        ([1, 10], [([11], 0.5)]),
        ([2, 2], [([12], 0.5)]),
        ([2, 2, 13, 14], [([15], 0.5)]),
        ([3], [([16], 0.5)]),
    ]
    assert not examples.query_tokens.flags.writeable  # a map of the file, not a copy
    assert examples.num_tokens_of(np.array([1, 3])) == (2 + 1) + (1 + 1)


def test_of_nothing() -> None:
    assert len(ExampleFiles("key").open(lambda: iter([]))) == 0


def test_a_later_run_finds_them() -> None:
    first = ExampleFiles("key").open(parts)
    again = ExampleFiles("key").open(lambda: pytest.fail("they are there"))
    assert np.array_equal(again.answer_tokens, first.answer_tokens)
    assert len(ExampleFiles("other").open(lambda: iter([part([[1]], (0, [5]))]))) == 1


def test_what_a_killed_run_left_is_written_anew(cache: Path) -> None:
    def dies() -> Iterator[Examples]:
        yield part([[1]], (0, [5]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ExampleFiles("key").open(dies)
    assert len(ExampleFiles("key").open(parts)) == 4


def test_deleted_they_stay_readable_for_who_has_them(cache: Path) -> None:
    files = ExampleFiles("key")
    examples = files.open(parts)
    files.delete()
    assert examples.answer_tokens.tolist() == [11, 12, 15, 16]
    files.delete()
    assert [file.name for file in (cache / "examples").iterdir()] == ["key.lock"]
    assert len(files.open(parts)) == 4


def test_ranks_of_a_machine_write_them_once(cache: Path, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.mkdir()
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank, args=(diary,)) for _ in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * NUM_RANKS
    assert len(list(diary.glob("wrote-*"))) == 1


def test_published_parts_are_what_was_written(tmp_path: Path) -> None:
    published = PublishedExamples(str(tmp_path / "published"))
    assert published.names() == set()
    for number, written in enumerate(parts()):
        published.write(str(number), written)
        read = published.read(str(number))
        assert read.prefixes == written.prefixes
        for name in Examples.__dataclass_fields__.keys() - {"prefixes"}:
            before, after = getattr(written, name), getattr(read, name)
            assert np.array_equal(before, after) and before.dtype == after.dtype, name
    assert published.names() == {"0", "1", "2"}
    with pytest.raises(FileNotFoundError):
        published.read("3")
