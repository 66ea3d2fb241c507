"""Engines that break as real ones do, around a sound engine; and how a stage is given one.

They run in the processes that Ray starts and tell what they did in files.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import s3fs

import jobs.docids
import jobs.queries
from zerogr.config.tree import Config
from zerogr.docids.stage import DocidProposer
from zerogr.index.index import Index
from zerogr.llm.engines.engine import Engine, Generation, Prompt, Sampling
from zerogr.llm.generation import load_generator
from zerogr.queries.stage import QueryWriter

STAGES = {"docids": (jobs.docids, DocidProposer), "queries": (jobs.queries, QueryWriter)}
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"

Spoil = Callable[[Engine], Engine]


def use(monkeypatch: pytest.MonkeyPatch, stage: str, spoil: Spoil) -> None:
    """Lets the engine that the stage's configuration names pass through `spoil`, in every process that loads it."""
    monkeypatch.setattr(STAGES[stage][0], "make_worker", partial(make_worker, stage, spoil))


def make_worker(stage: str, spoil: Spoil, config: Config) -> DocidProposer | QueryWriter:
    """Stands in for the stage's own `make_worker`."""
    compute = config.compute
    engine = load_generator(
        getattr(config, stage), batch_size=compute.engine_batch_size, options=compute.engine_options
    )
    return STAGES[stage][1](config, Index(config.index), spoil(engine))


class Diary:
    """Counts what happened in files of a folder, one per process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def note(self, event: str) -> None:
        """Adds an event of this process."""
        with (self._folder / str(os.getpid())).open("a") as file:
            file.write(f"{event}\n")

    def events(self) -> dict[int, Counter[str]]:
        """Returns {process: {event: times}}."""
        return {int(file.name): Counter(file.read_text().split()) for file in self._folder.iterdir()}


class Mortal:
    """Breaks at every n-th batch of its life, and stays broken."""

    def __init__(self, engine: Engine, *, batches: int, diary: Path) -> None:
        self.name, self._engine = engine.name, engine
        self._batches, self._diary = batches, Diary(diary)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        self._batches -= 1
        self._diary.note("answered" if self._batches else "broke")
        if self._batches <= 0:
            raise RuntimeError(CUDA_ERROR)
        return self._engine.generate(prompts, sampling)


class Poisoned:
    """Breaks, or loses its process as by a segmentation fault, whenever a prompt holds a word."""

    def __init__(self, engine: Engine, *, word: str, is_killed: bool, diary: Path) -> None:
        self.name, self._engine = engine.name, engine
        self._word, self._is_killed, self._diary = word, is_killed, Diary(diary)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        if any(self._word in prompt.user for prompt in prompts):
            self._diary.note("poisoned")
            if self._is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(CUDA_ERROR)
        self._diary.note("answered")
        return self._engine.generate(prompts, sampling)


class Blind:
    """Has an error instead of an answer for every prompt with a word."""

    def __init__(self, engine: Engine, *, word: str) -> None:
        self.name, self._engine, self._word = engine.name, engine, word

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        failed = Generation(texts=[], error=f"ValueError: '{self._word}' is in the prompt")
        generations = self._engine.generate(prompts, sampling)
        return [
            failed if self._word in prompt.user else generation
            for prompt, generation in zip(prompts, generations, strict=True)
        ]


def unloadable(engine: Engine, *, times: int, diary: Path) -> Engine:
    """Loads only after as many failures, each in a process of its own."""
    Diary(diary).note("loaded")
    if len(Diary(diary).events()) <= times:
        raise RuntimeError("CUDA out of memory")
    return engine


def through(engine: Engine, *, endpoint: str) -> Engine:
    """Leaves the engine sound and lets its process reach S3 through another endpoint."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    s3fs.S3FileSystem.clear_instance_cache()
    return engine


class Held:
    """Answers some batches at once; the others wait until a file is there."""

    def __init__(self, engine: Engine, *, batches: int, until: Path, diary: Path) -> None:
        self.name, self._engine = engine.name, engine
        self._batches, self._until, self._diary = batches, until, Diary(diary)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        import ray

        self._batches -= 1
        if self._batches < 0:
            self._diary.note(ray.get_runtime_context().get_node_id())
            while not self._until.exists():
                time.sleep(0.01)
        return self._engine.generate(prompts, sampling)
