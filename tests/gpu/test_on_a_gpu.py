"""On a machine with a GPU: it answers what the CPU and the references answer. Elsewhere the benchmark's dry run does this."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.gpu import equality

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def test_decoder_learner_and_engine() -> None:
    rows = equality.measure(torch.device("cuda"), argparse.Namespace(dry_run=False))
    engine = rows.pop()
    assert not [row for row in rows if row["other answers"]]
    assert all(row["largest difference"] < 1e-3 for row in rows)
    assert engine["other answers"] <= 1  # rounding may move a draw across a boundary
