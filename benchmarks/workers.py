"""Do N engine workers do N times the work of one? `python -m benchmarks.workers [--quick]`

The query stage, on a Ray of this machine, with an engine that waits as long as a GPU would be busy, so that few cores carry
many workers. What is seen is everything around the engine: Ray Data's scheduling, the driver, reading and publishing shards.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline import in_fresh_process, say
from benchmarks.report import report
from benchmarks.synthetic import write_documents
from zerogr.config.file import validate_config
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.fake import FakeEngine
from zerogr.machine import peak_resident_bytes
from zerogr.network import prepare_own_ray

WORKERS = (1, 2, 4, 8, 16)
SHARD_SIZE, SHARDS_PER_WORKER = 20, 12
LOOK_EVERY_S = 0.1
NOTES = """
- A shard has 20 documents, whose queries take the engine `engine_s` seconds; a worker makes 12 shards, one at a time.
- `shards_per_s_N`: of N workers, from the end of the first shards, one for each worker, to the end of the last: the workers'
  start is not in it. `share_of_linear_N`: that over N times the rate of one worker.
- `start_s_N`: seconds from the stage's begin to the end of the first N shards, less the engine's own: Ray Data, and processes
  that import the library.
- `driver_cores_N`: processor seconds of the driver's process a second in the same time; `driver_peak_bytes_N`: its memory.
  `workers_of_a_driver`: for how many workers it would need a whole core, by the last row. Ray's own processes are not in it.
- On a local disk and one machine: what storage and a network add is not seen.
"""


class Waiting(FakeEngine):
    """An engine that makes up its answers, and takes its time."""

    def __init__(self, model: str, *, batch_size: int, seconds: float) -> None:
        """`seconds` are those of a call; `model` and `batch_size` are what engines are given."""
        self._seconds = seconds

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """As the fake engine, later."""
        begin = time.monotonic()
        answers = super().generate(prompts, sampling)
        time.sleep(max(0.0, self._seconds - (time.monotonic() - begin)))
        return answers


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 2 workers, an engine of half a second")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    numbers, engine_s = ((1, 2), 0.5) if arguments.quick else (WORKERS, 4.0)
    figures: dict[str, Any] = {"engine_s": engine_s}
    for number in numbers:
        say(f"{number} workers")
        found = in_fresh_process(run, number, engine_s)
        figures |= {f"{name}_{number}": value for name, value in found.items()}
        linear = number * figures["shards_per_s_1"]
        figures[f"share_of_linear_{number}"] = round(found["shards_per_s"] / linear, 3)
    most = numbers[-1]
    figures["workers_of_a_driver"] = round(most / figures[f"driver_cores_{most}"])
    report(f"The query stage with up to {most} workers", figures, arguments.out, NOTES)


def run(num_workers: int, engine_s: float) -> dict[str, Any]:
    """Returns what that many workers do."""
    import ray

    from jobs import corpus, queries

    num_shards = num_workers * SHARDS_PER_WORKER
    with tempfile.TemporaryDirectory(prefix="zerogr-workers-") as folder:
        (Path(folder) / "corpus").mkdir()
        write_documents(folder, num_shards * SHARD_SIZE, 0)
        config = validate_config(
            {
                "index": str(Path(folder) / "index"),
                "corpus": {"source": str(Path(folder) / "corpus"), "shard_size": SHARD_SIZE},
                "queries": {
                    "engine": "benchmarks.workers:Waiting",
                    "num_queries_per_document": 2,
                    "num_spans_per_document": 2,
                },
                "compute": {
                    "num_engine_workers": num_workers,
                    "shards_in_flight": 1,
                    "engine_batch_size": SHARD_SIZE,
                    "engine_options": {"seconds": engine_s},
                },
            }
        )
        prepare_own_ray()
        # Logical CPUs: a worker waits most of the time.
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=num_workers + 4,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        corpus.run(config)
        seen = Seen(Index(config.index), num_workers, num_shards)
        queries.run(config)
        seen.end()
        ray.shutdown()
    return seen.figures(engine_s)


class Seen(threading.Thread):
    """Looks on while shards are published."""

    def __init__(self, index: Index, num_workers: int, num_shards: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._num_workers, self._num_shards = index.path("queries"), num_workers, num_shards
        self._begin, self._is_over = time.monotonic(), threading.Event()
        self._seen: list[tuple[float, int, float]] = []
        """Seconds since the begin, shards published, and processor seconds of this process."""
        self.start()

    def run(self) -> None:
        """Notes what there is, again and again."""
        while not self._is_over.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        times = os.times()
        published = len(shards_in(self._folder))
        self._seen.append((time.monotonic() - self._begin, published, times.user + times.system))

    def end(self) -> None:
        """Looks a last time."""
        self._is_over.set()
        self.join()
        self._look()

    def figures(self, engine_s: float) -> dict[str, Any]:
        """Returns rate, start and the driver's cost."""
        first = next(each for each in self._seen if each[1] >= self._num_workers)
        last = next(each for each in self._seen if each[1] == self._num_shards)
        seconds = last[0] - first[0]
        return {
            "shards_per_s": round((last[1] - first[1]) / seconds, 3),
            "start_s": round(first[0] - engine_s, 1),
            "driver_cores": round((last[2] - first[2]) / seconds, 4),
            "driver_peak_bytes": peak_resident_bytes(),
        }


if __name__ == "__main__":
    main()
