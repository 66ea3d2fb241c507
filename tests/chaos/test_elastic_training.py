"""A node is lost in the middle of an epoch, and later another one joins: training goes on with the ranks that there are, and
what is learnt is what would have been."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.chaos.noting_driver import PAUSE, noting_driver
from tests.chaos.settings import write_config
from tests.chaos.test_nodes import DEADLINE_S, cluster, kill_node, wait
from zerogr.index.index import Index

__all__ = ["cluster"]  # the fixture
pytestmark = [pytest.mark.integration]


def test_two_ranks_then_one_then_two(
    cluster: Any, tiny_index: str, collection: Path, tiny_model: Path, tmp_path: Path
) -> None:
    index, diary = str(tmp_path / "index"), tmp_path / "diary"
    shutil.copytree(tiny_index, index)
    Index(index).rebuild("retriever")
    config = write_config(index, collection, tiny_model, tmp_path, compute__num_training_workers=[1, 2])
    with noting_driver(config, diary, RAY_ADDRESS=cluster.address) as driver:
        wait(lambda: (diary / "waiting-2-0").exists() and (diary / "waiting-2-1").exists(), driver)
        kill_node(next(iter(cluster.worker_nodes)))
        wait(lambda: (diary / "waiting-1-0").exists(), driver)
        cluster.add_node(num_cpus=1)
        assert driver.wait(timeout=DEADLINE_S) == 0

    notes = [json.loads(line) for file in diary.glob("*.jsonl") for line in file.read_text().splitlines()]
    counts = Index(index).require("retriever").counts
    ranks_of, ids_of = _what_counts(notes)
    assert sorted(ids_of) == list(range(1, counts["steps"] + 1))
    steps_per_epoch = counts["steps"] // 2
    assert PAUSE[2] < steps_per_epoch < PAUSE[1] < counts["steps"]
    # Steps after the last checkpoint, every fifth step's, are taken again.
    assert [ranks_of[step] for step in (5, 6, 15, 16)] == [2, 1, 1, 2]
    for epoch in range(2):
        steps = range(epoch * steps_per_epoch + 1, (epoch + 1) * steps_per_epoch + 1)
        seen = Counter(i for step in steps for i in ids_of[step])
        assert len(seen) == counts["examples"] and set(seen.values()) == {1}

    trained, expected = (load_file(Path(uri, "retriever", "model.safetensors")) for uri in (index, tiny_index))
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, atol=2e-4, rtol=0)  # ranks add in another order


def _what_counts(notes: list[dict[str, Any]]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Returns the ranks and the example ids of every step as the last group of workers that took it did."""
    ranks_of: dict[int, int] = {}
    ids_of: dict[int, list[int]] = {}
    last: dict[int, tuple[int, list[dict[str, Any]]]] = {}
    for note in sorted(notes, key=lambda note: note["begun"]):
        # Two ranks of a group begin within moments of each other, groups follow one another: 2, 1, 2 ranks.
        num_ranks, taken = last.get(note["step"], (0, []))
        is_same_group = num_ranks == note["num_ranks"] and len(taken) < num_ranks
        last[note["step"]] = (note["num_ranks"], [*taken, note] if is_same_group else [note])
    for step, (num_ranks, taken) in last.items():
        assert sorted(note["rank"] for note in taken) == list(range(num_ranks))
        ranks_of[step] = num_ranks
        ids_of[step] = [i for note in taken for i in note["ids"]]
    return ranks_of, ids_of
