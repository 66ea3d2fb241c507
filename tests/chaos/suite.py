"""The whole pipeline, again and again, on a cluster whose machines come and go, over storage that fails. Its index must be that
of a calm run, row for row and weight for weight, and no shard may be made twice that was published once.

    python -m tests.chaos.suite --seeds 50            # `make chaos`
    python -m tests.chaos.suite --first 17 --seeds 1  # one of them again

A seed says what happens and how long after what happened before; `FAULTS` has what can. What it meets depends on the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.torch import load

from tests import tiny
from tests.chaos.faulty_s3 import PASSING, FaultyS3, faulty_s3
from tests.chaos.settings import LANGUAGE_MODEL, run_stages, write_config
from tests.chaos.test_nodes import SOON, kill_node
from tests.processes import ON_A_CLUSTER, REPOSITORY, kill_with_descendants
from tests.published import contents
from tests.servers import s3
from zerogr.index.index import Index
from zerogr.store import storage

STAGES = ("corpus", "docids", "queries", "trie", "retriever")
NUM_EVENTS = 8
GAP_S = 3.0
"""Mean of the seconds between two events."""
TROUBLE_S = 2.0
"""That storage fails, or is full."""
MOST_NODES = 3
DEADLINE_S = 900.0
DRAIN_S = "2"
"""That Ray gives a node that is told to end."""


@dataclass
class Run:
    """One run of the pipeline under faults."""

    seed: int
    cluster: Any
    proxy: FaultyS3
    index: str
    config: str
    log: Path
    happened: list[str] = field(default_factory=list)
    """The faults, in order."""
    num_drivers: int = 0
    is_excused: bool = False
    """Whether something has happened since the driver was started that it may end of."""
    driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the same command, as a person would."""
        self.num_drivers += 1
        self.is_excused = False
        with self.log.open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", "index", self.config],
                cwd=REPOSITORY, env={**os.environ, **ON_A_CLUSTER, "RAY_ADDRESS": self.cluster.address},
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip


def lose_node(run: Run) -> None:
    """A machine is gone without a word, perhaps the last one."""
    for node in list(run.cluster.worker_nodes)[:1]:
        kill_node(node)
        run.cluster.worker_nodes.remove(node)


def end_node(run: Run) -> None:
    """A machine is told to end, and gets two seconds, as a pre-empted one gets half a minute."""
    for node in list(run.cluster.worker_nodes)[:1]:
        run.cluster.remove_node(node, allow_graceful=True)


def add_node(run: Run) -> None:
    """A machine joins."""
    if len(run.cluster.worker_nodes) < MOST_NODES:
        run.cluster.add_node(num_cpus=1)


def kill_driver(run: Run) -> None:
    """The process that leads is gone; the same command is given again."""
    assert run.driver is not None
    run.is_excused = True
    kill_with_descendants(run.driver.pid)


def end_driver(run: Run) -> None:
    """The process that leads is told to end; the same command is given again."""
    assert run.driver is not None
    run.is_excused = True
    run.driver.terminate()


def trouble_storage(run: Run) -> None:
    """Every third request to S3 fails for a while, each time in another way."""

    def fault(method: str, before: Counter[str]) -> str | None:
        turn, place = divmod(before.total(), 3)
        return PASSING[turn % len(PASSING)] if place == 2 else None

    run.proxy.fault = fault
    time.sleep(TROUBLE_S)
    run.proxy.fault = lambda method, before: None


def fill_storage(run: Run) -> None:
    """Storage is full for a while; the stage ends with a sentence, and the same command is given again."""
    run.is_excused = True
    run.proxy.fault = lambda method, before: "full" if method in ("PUT", "POST") else None
    time.sleep(TROUBLE_S)
    run.proxy.fault = lambda method, before: None


FAULTS: dict[str, tuple[Callable[[Run], None], float]] = {
    "node lost": (lose_node, 3),
    "node told to end": (end_node, 2),
    "node joins": (add_node, 4),
    "driver killed": (kill_driver, 1),
    "driver told to end": (end_driver, 1),
    "storage fails": (trouble_storage, 2),
    "storage full": (fill_storage, 1),
}
"""What can happen, and how often beside the others."""


def run_seed(seed: int, cluster: Any, proxy: FaultyS3, whole: str, folder: Path, **changes: Any) -> Run:
    """Runs the pipeline once under the faults of a seed, and holds it against a calm run's index.

    Args:
        seed: Of what happens.
        cluster: Of Ray; a head, and any number of other nodes.
        proxy: S3.
        whole: The index of a calm run with the same changes.
        folder: With `collection` and `model`.
        changes: Of the configuration.
    """
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    proxy.requests.clear()
    place = folder / str(seed)
    index = f"s3://zerogr/chaos-{folder.name}-{seed}"
    place.mkdir()
    config = write_config(index, folder / "collection", folder / "model", place, **changes)
    run = Run(seed, cluster, proxy, index, config, place / "driver.log")
    draw = np.random.default_rng([seed, 0xCA05])
    names, weights = list(FAULTS), np.array([weight for _, weight in FAULTS.values()])
    events = iter(
        [(draw.exponential(GAP_S), str(draw.choice(names, p=weights / weights.sum()))) for _ in range(NUM_EVENTS)]
    )
    deadline = time.monotonic() + DEADLINE_S
    try:
        run.start()
        while not _is_done(run, deadline):
            gap_s, fault = next(events, (1.0, ""))
            if _ends_within(run, gap_s):
                continue
            if fault:
                FAULTS[fault][0](run)
                run.happened.append(fault)
            elif not cluster.worker_nodes:
                cluster.add_node(num_cpus=1)
        check(run, whole)
    except BaseException:
        print(run.log.read_text(errors="replace"))
        print(f"seed {seed}, {run.happened}; again: python -m tests.chaos.suite --first {seed} --seeds 1", flush=True)
        raise
    finally:
        proxy.fault = lambda method, before: None
        if run.driver is not None and run.driver.poll() is None:
            kill_with_descendants(run.driver.pid)
        if run.driver is not None:
            run.driver.wait()
    return run


def _ends_within(run: Run, seconds: float) -> bool:
    assert run.driver is not None
    try:
        run.driver.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_done(run: Run, deadline: float) -> bool:
    """Whether the driver has ended well; one that was ended is started again."""
    assert run.driver is not None
    assert time.monotonic() < deadline, "it takes too long"
    if (status := run.driver.poll()) is None:
        return False
    if status == 0:
        return True
    assert run.is_excused, f"the driver ended with {status}, and nobody had asked it to"
    run.start()
    return False


def check(run: Run, whole: str) -> None:
    """Raises AssertionError if the index is not that of a calm run, or a shard was made again without need."""
    folders = ("corpus", "docids", "queries", "trie", "rejected")
    one, other = contents(run.index, *folders), contents(whole, *folders)
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    assert one == other, [name for name in one if one[name] != other[name]]
    weights, expected = (load(storage.read_bytes(f"{uri}/retriever/model.safetensors")) for uri in (run.index, whole))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected), "other weights"
    for stage in STAGES:
        counts, calm = (Index(uri).require(stage).counts for uri in (run.index, whole))
        assert {**counts, **_TIMES} == {**calm, **_TIMES}, (stage, counts, calm)
    again = made_again(run.proxy.requests)
    # Whoever has published a shard and is lost before it could say so leaves it to another, which finds it there.
    assert not again, again


_TIMES = {"useful_tokens_per_s": 0, "loss": 0}
"""The loss in the report is the mean over the steps of the driver that finished."""


def made_again(requests: Iterable[tuple[str, str, str | None]]) -> list[str]:
    """Returns the shards that were put into storage a second time, although the first time was answered.

    Requests are (method, path, fault), as `FaultyS3` keeps them.
    """
    answered = Counter(
        path
        for method, path, fault in requests
        if method == "PUT" and path.endswith(".parquet") and fault in (None, "slow", "cut")
    )
    return sorted(path for path, number in answered.items() if number > 1)


@contextmanager
def a_cluster() -> Iterator[Any]:
    """A head that computes nothing, to which nodes of one core are added."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": SOON}
    with mock.patch.dict(os.environ, {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": DRAIN_S}):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()


def has_language_model(seed: int) -> bool:
    """Whether a seed's engine is one; the others' is the fake one."""
    return seed % 5 == 4


def changes_of(seed: int) -> dict[str, Any]:
    """Returns the configuration of a seed."""
    engine = LANGUAGE_MODEL if has_language_model(seed) else {}
    return {"compute__num_engine_workers": 2, "compute__max_retries": 20, "corpus__shard_size": 2, **engine}


def calm_index(folder: Path, seed: int) -> str:
    """Writes collection and model into a folder; returns the index that a calm run makes of a seed's configuration."""
    collection, model = folder / "collection", folder / "model"
    if not model.exists():
        tiny.write_collection(collection)
        tiny.save_model(model)
    place = folder / f"calm-{seed}"
    place.mkdir()
    index = str(place / "index")
    run_stages(index, collection, model, "index", **{**changes_of(seed), "compute__num_engine_workers": 1})
    return index


def main() -> None:
    """Runs the seeds, and says of each what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="zerogr-chaos-") as name,
        s3() as endpoint,
        faulty_s3(endpoint) as proxy,
    ):
        folder = Path(name)
        calm = {has_language_model(seed): calm_index(folder, seed) for seed in (0, 4)}
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        total: Counter[str] = Counter()
        with a_cluster() as cluster:
            for seed in range(options.first, options.first + options.seeds):
                start = time.monotonic()
                run = run_seed(seed, cluster, proxy, calm[has_language_model(seed)], folder, **changes_of(seed))
                total += Counter(run.happened)
                faults = sum(fault is not None for _, _, fault in proxy.requests)
                print(
                    f"seed {seed}: the same index after {time.monotonic() - start:.0f} s, {run.num_drivers} drivers, "
                    f"{faults} S3 faults: {', '.join(run.happened)}",
                    flush=True,
                )
    print("\n".join(f"{number:5} {name}" for name, number in total.most_common()))


if __name__ == "__main__":
    main()
