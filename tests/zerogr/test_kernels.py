"""The kernels for CUDA, interpreted on the CPU: they pick what the definitions pick."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHECK = """
import numpy as np
import torch
import zerogr.decoding.device.kernels as kernels
from zerogr.decoding.device.draw import draw

kernels.BLOCK = 8
random = np.random.default_rng(0)
for case in range(60):
    queries, nodes, draws = random.integers(1, 4, size=3) * (1, 1, 6)
    counts = random.integers(0, 30, size=(queries, nodes))
    counts[:, -1] += 1
    ends = torch.from_numpy(counts.cumsum(1))
    num_options = int(ends.max()) + 3
    logs = torch.from_numpy(random.normal(size=(queries, num_options)) * 2)
    logs[torch.from_numpy(random.random(logs.shape) < 0.1)] = -np.inf
    left = torch.from_numpy(random.integers(1, 4, size=(queries, num_options)))
    node, done = np.zeros((queries, draws), dtype=np.int64), np.zeros((queries, draws), dtype=bool)
    for query in range(queries):
        for each in range(draws):
            begins = [0, *ends[query].tolist()]
            room = [int(left[query, a:b][logs[query, a:b] > -np.inf].sum()) for a, b in zip(begins, begins[1:])]
            used = [int(((node[query, :each] == n) & ~done[query, :each]).sum()) for n in range(nodes)]
            free = [n for n in range(nodes) if room[n] > used[n]]
            node[query, each] = random.choice(free) if free else 0
            done[query, each] = not free or random.random() < 0.2
    for top_p, heats in ((-1.0, np.zeros(draws)), (-1.0, random.random(draws) * 2), (0.7, random.random(draws) + 0.1)):
        owner = torch.searchsorted(ends, torch.arange(num_options).expand(queries, -1).contiguous(), right=True)
        order = logs.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, owner.gather(1, order).argsort(dim=1, stable=True))
        given = (logs, left, ends, torch.from_numpy(node), torch.from_numpy(done), order if top_p >= 0 else order[:, :0],
                 torch.from_numpy(heats), torch.from_numpy(random.random(draws)), top_p)
        assert torch.equal(draw(*given), kernels.draw_on_cuda(*given)), (case, top_p)
print("equal")
"""


SAMPLING = """
import numpy as np
import torch
import zerogr.llm.engines.kernels as kernels
from zerogr.llm.engines.engine import Sampling
from zerogr.llm.engines.sampling import draw_tokens

kernels.BLOCK = 64
random = np.random.default_rng(0)
for case in range(12):
    rows, vocabulary = 24, int(random.integers(3, 300))
    logits = torch.from_numpy(random.normal(size=(rows, vocabulary)) * 3).float()
    logits[torch.from_numpy(random.random(logits.shape) < 0.2)] = -np.inf
    logits[:, 0] = 0
    if case % 3 == 0:
        logits = logits.round()  # ties
    uniforms = torch.from_numpy(np.append(random.random(rows - 2), [0.0, np.nextafter(1.0, 0.0)]))
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.9), (1.4, 0.3)):
        expected = draw_tokens(logits, uniforms, Sampling(max_tokens=1, temperature=temperature, top_p=top_p))
        found = kernels.sample_on_cuda(logits, uniforms, temperature, top_p)
        assert (found != expected).sum() <= 1, (case, temperature, top_p, found, expected)  # rounding at a boundary
print("equal")
"""


NOISE = """
import numpy as np
import torch
import zerogr.decoding.device.kernels as kernels
from zerogr.decoding.device.perturb import perturb

kernels.BLOCK = 8
random = np.random.default_rng(0)
for case in range(20):
    queries, prefixes = 2, int(random.integers(1, 5))
    counts = random.integers(0, 20, size=(queries, prefixes))
    is_kept = random.random(counts.shape) < 0.3
    counts[is_kept] = np.minimum(counts[is_kept], 1)
    ends = torch.from_numpy(counts.cumsum(1))
    num_options = int(ends.max()) + 3
    logs = torch.from_numpy(-random.exponential(size=(queries, num_options)) * 5)
    logs[torch.from_numpy(random.random(logs.shape) < 0.2)] = -np.inf
    logs[torch.arange(num_options) >= ends[:, -1:]] = -np.inf
    given = (logs, torch.from_numpy(random.integers(0, 50_000, size=logs.shape)), ends,
             torch.from_numpy(random.integers(-(2**63), 2**63 - 1, size=counts.shape)),
             torch.from_numpy(random.normal(size=counts.shape)), torch.from_numpy(is_kept))
    expected, found = perturb(*given), kernels.perturb_on_cuda(*given)
    is_option = torch.isfinite(expected[1])
    assert torch.equal(is_option, torch.isfinite(found[1]))
    assert torch.equal(expected[0][is_option], found[0][is_option]), case
    torch.testing.assert_close(found[1][is_option], expected[1][is_option], rtol=1e-9, atol=1e-9)
print("equal")
"""


@pytest.mark.parametrize("check", [CHECK, SAMPLING, NOISE], ids=["draws", "sampling", "noise"])
def test_they_pick_what_the_definitions_pick(check: str) -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for CUDA")
    done = subprocess.run(
        [sys.executable, "-c", check], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr
