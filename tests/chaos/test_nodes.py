"""A machine of the cluster is lost in the middle of a stage. Its shards are made on the machine that is left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Case
from tests.chaos.engines import Diary
from tests.chaos.settings import run_stages
from tests.processes import kill_with_descendants, running
from tests.published import contents, files
from zerogr.docids.stage import FOLDER
from zerogr.index.index import Index, shards_in

pytestmark = [pytest.mark.integration]

DEADLINE_S = 900
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A lost node is noticed within seconds; a slow one still has ten to answer."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that computes nothing and two nodes with room for one engine each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SOON}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def test_lost_node(case: Case, cluster: Any, collection: Path, tiny_model: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    config = run_stages(
        index, collection, tiny_model, "corpus",
        **case.changes, compute__num_engine_workers=2, compute__shards_in_flight=1,
    )  # fmt: skip
    go, diary, log = tmp_path / "go", Diary(tmp_path / "diary"), tmp_path / "driver.log"
    arguments = ["docids", config, str(go), str(tmp_path / "diary")]
    with running("tests.chaos.held_driver", *arguments, log=log, RAY_ADDRESS=cluster.address) as driver:
        wait(lambda: any(diary.events().values()) and bool(shards_in(Index(index).path(FOLDER))), driver)
        published = files(index, FOLDER)
        held = next(filter(None, diary.events().values()))  # a file is there before its first line
        lost = next(node for node in cluster.worker_nodes if node.node_id in held)
        kill_node(lost)
        assert len(files(index, FOLDER)) < 5
        go.touch()
        assert driver.wait(timeout=DEADLINE_S) == 0
    assert {name: file for name, file in files(index).items() if name in published} == published
    assert contents(index, "docids", FOLDER) == contents(case.undisturbed, "docids", FOLDER)
    assert Index(index).require("docids").counts == Index(case.undisturbed).require("docids").counts


def kill_node(node: Any) -> None:
    """Kills every process of a node of the cluster, and theirs."""
    for process in [each.process for group in node.all_processes.values() for each in group]:
        kill_with_descendants(process.pid)


def wait(until: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """Waits until it is so; the driver must not end meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert driver.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
