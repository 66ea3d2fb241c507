"""A node is told to end, as Kubernetes tells a pod: Ray drains it, and the trainer leaves a checkpoint while there is time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.noting_driver import noting_driver
from tests.chaos.settings import write_config
from tests.chaos.test_nodes import wait
from tests.processes import kill_with_descendants
from zerogr.index.index import Index
from zerogr.index.stage import RETRIEVER
from zerogr.training.checkpoints import latest_step
from zerogr.training.loop import REPORT_EVERY

pytestmark = [pytest.mark.integration]


@pytest.fixture
def head() -> Iterator[Any]:
    """A head that computes nothing and one node with room for one rank."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def pod(head: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another node, started as a container starts it, that has all the time it wants to drain."""
    ray = Path(sys.executable).parent / "ray"
    patient = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "3600", "RAY_raylet_start_wait_time_s": "240"}
    with (tmp_path / "pod.log").open("wb") as log:
        process = subprocess.Popen(
            [str(ray), "start", f"--address={head.address}", "--num-cpus=1", "--block"],
            env={**os.environ, **patient}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        kill_with_descendants(process.pid)
        process.wait()
        print((tmp_path / "pod.log").read_text(errors="replace"))


def test_a_node_that_is_told_to_end_leaves_a_checkpoint(
    head: Any, pod: subprocess.Popen[bytes], tiny_index: str, collection: Path, tiny_model: Path, tmp_path: Path
) -> None:
    index, diary = str(tmp_path / "index"), tmp_path / "diary"
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    changes = {"compute__num_training_workers": 2, "training__num_epochs": 1000, "training__checkpoint_every": 10**6}
    config = write_config(index, collection, tiny_model, tmp_path, **changes)
    checkpoints = f"{index}/{RETRIEVER.work[0]}/checkpoints"
    with noting_driver(config, diary, RAY_ADDRESS=head.address) as driver:
        wait(lambda: (diary / "waiting-2-0").exists() and (diary / "waiting-2-1").exists(), driver)
        pod.terminate()
        (diary / "go").touch()
        # It asks before every tenth step, and the checkpoint follows that step; those that come by the clock follow any other.
        wait(lambda: latest_step(checkpoints) % REPORT_EVERY == 1, driver)
        assert pod.poll() is None  # the node is still there: nothing was lost
