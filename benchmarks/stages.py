"""The stages of an index without its language model, for corpora of several sizes, watched and resumable.

Not a benchmark itself: `benchmarks.pipeline` calls it. A process of its own runs the production jobs on a local Ray:

    corpus     JSON Lines become numbered shards; duplicates and garbage are found
    docids     the fake engine's proposals are judged and repaired, collisions are resolved
    queries    passages and keyword sets
    trie       docids become a trie
    examples   queries and docids are tokenised for training, published, and mapped as a rank maps them
    opening    the index, with the base model in the place of a trained one, is loaded and answers a query

What is finished stands in `figures.json` of the size's folder; a run that was ended goes on from there, and a stage that was
ended in its middle counts its seconds on. Libraries are imported by the stage that needs them, as `zerogr index` does it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.synthetic import DOCID_WORDS, NUM_CANDIDATES, num_garbage
from jobs import corpus, docids, queries, trie
from jobs.cluster import ray_session
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.index.index import Index
from zerogr.machine import peak_resident_bytes
from zerogr.store import storage

STAGES = ("corpus", "docids", "queries", "trie", "examples", "opening")
NUM_SPANS = 4
LOOK_EVERY_S = 2.0
FIGURES = "figures.json"


def config_of(folder: str, *, shard_size: int, num_reading_workers: int = 0) -> Config:
    """The configuration of an index of the corpus in `folder`, without a language model."""
    return validate_config(
        {
            "index": str(Path(folder) / "index"),
            "corpus": {"source": str(Path(folder) / "corpus"), "shard_size": shard_size},
            "docids": {"scheme": "keywords", "engine": "fake", "candidates": NUM_CANDIDATES, "max_words": DOCID_WORDS},
            "queries": {"num_queries_per_document": 0, "num_spans_per_document": NUM_SPANS},
            "compute": {"num_engine_workers": 2, "num_reading_workers": num_reading_workers},
        }
    )


def run_stages(folder: str, num_documents: int, shard_size: int) -> dict[str, dict[str, float]]:
    """Returns {stage: its figures} of the corpus in `folder`."""
    config = config_of(folder, shard_size=shard_size)
    stages: dict[str, Callable[[Config], Any]] = {
        "corpus": corpus.run,
        "docids": docids.run,
        "queries": queries.run,
        "trie": trie.run,
        "examples": _examples,
        "opening": _opening,
    }
    file = Path(folder) / FIGURES
    figures: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    with ray_session():
        for stage, run in stages.items():
            if stage in figures:
                continue
            print(f"{num_documents:,} documents: {stage} …", flush=True)
            with Watch(Path(folder) / f"{stage}.watch.json") as watch:
                record = run(config)
            if stage in ("corpus", "docids", "queries"):
                rejected = num_garbage(num_documents) if stage == "corpus" else 0
                assert record.counts["rejected"] == rejected, record.counts
            more = record if isinstance(record, dict) else {}
            figures[stage] = {**watch.figures, "driver_bytes": peak_resident_bytes(), **more}
            file.write_text(json.dumps(figures, indent=1))
    return figures


def _examples(config: Config) -> dict[str, float]:
    """Tokenises all examples, on as many processes as engines, and maps them."""
    from jobs.examples import publish_examples
    from zerogr.llm.models import load_tokenizer, resolve_model
    from zerogr.training.recipes.retriever import RetrieverRecipe

    index = Index(config.index)
    publish_examples(config, index)
    recipe = RetrieverRecipe(config)
    start = time.monotonic()
    examples = recipe.examples(load_tokenizer(resolve_model(config.retriever.model)))
    mapped_s = time.monotonic() - start
    figures = {"mapped_s": mapped_s, "examples": len(examples)}
    del examples
    recipe.close()
    return figures


def _opening(config: Config) -> dict[str, float]:
    """Opens the index as a search does; its retriever is the base model, which no one has trained."""
    from zerogr.llm.models import resolve_model
    from zerogr.retriever import Retriever
    from zerogr.training.recipes.retriever import RetrieverRecipe

    index, recipe = Index(config.index), RetrieverRecipe(config)
    if index.begin("retriever", recipe.inputs()):
        with storage.staging_folder(index.path("retriever")) as staging:
            shutil.copytree(resolve_model(config.retriever.model), staging, dirs_exist_ok=True)
            recipe.write_settings(Path(staging))
        index.finish("retriever", recipe.inputs(), config=config.model_dump(mode="json"), counts={}, seconds=0)
    start = time.monotonic()
    retriever = Retriever.load(config.index)
    loaded_s = time.monotonic() - start
    seconds = []
    for query in ("an iterator of pairs", "how are files closed?", "a lock of several processes"):
        start = time.monotonic()
        [hits] = retriever.search([query], k=10, fields=["title"])
        assert len({hit.doc_id for hit in hits}) == 10, hits  # duplicates share a docid
        seconds.append(time.monotonic() - start)
    return {"loaded_s": loaded_s, "first_search_s": seconds[0], "later_search_s": min(seconds[1:])}


class Watch:
    """Seconds of a stage, those of a run that was ended before included, and the most memory of this process and all below it.

    Attributes:
        figures: `seconds`, and `all_bytes` that belong to these processes: what several share is counted once (PSS).
    """

    def __init__(self, file: Path) -> None:
        """`file` keeps what was seen, for a run that goes on."""
        self._file, self._done = file, threading.Event()
        self.figures = {"seconds": 0.0, "all_bytes": 0.0}
        if file.exists():
            self.figures = json.loads(file.read_text())
        self._thread = threading.Thread(target=self._look_often, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look_often(self) -> None:
        last, is_over = time.monotonic(), False
        while not is_over:
            is_over = self._done.wait(LOOK_EVERY_S)
            now_bytes = sum(map(_bytes_of, _family(os.getpid())))
            elapsed, last = time.monotonic() - last, time.monotonic()
            self.figures["seconds"] += elapsed
            self.figures["all_bytes"] = max(self.figures["all_bytes"], now_bytes)
            self._file.write_text(json.dumps(self.figures))


def _family(process: int) -> Iterator[int]:
    """Yields a process and all that it and its children have started (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    waiting = [process]
    while waiting:
        waiting += children.get(waiting[0], [])
        yield waiting.pop(0)


def _bytes_of(process: int) -> int:
    """Returns a process' share of the memory that it maps; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
