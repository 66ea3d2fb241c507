"""Models of real shapes with random weights, tries of random docids, and how a device is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from zerogr.trie import DocidTrie

END = 2
_SHAPES: dict[str, tuple[type, dict[str, Any]]] = {
    "135M": (LlamaConfig, {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                           "intermediate_size": 1536, "vocab_size": 49_152}),
    "1B": (LlamaConfig, {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                         "intermediate_size": 8192, "vocab_size": 128_256, "head_dim": 64}),
    "1.7B": (Qwen3Config, {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
                           "num_key_value_heads": 8, "intermediate_size": 6144, "vocab_size": 151_936, "head_dim": 128}),
    "3B": (LlamaConfig, {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
                         "intermediate_size": 8192, "vocab_size": 128_256, "head_dim": 128}),
    "toy": (LlamaConfig, {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                          "intermediate_size": 128, "vocab_size": 512}),
}  # fmt: skip
"""SmolLM2-135M, Llama-3.2-1B, Qwen3-1.7B and Llama-3.2-3B, by their published configurations."""


def model_of(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Returns a causal LM with random weights, tied as the published ones are."""
    torch.manual_seed(0)
    kind, sizes = _SHAPES[shape]
    config = kind(**sizes, max_position_embeddings=4096, tie_word_embeddings=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


def trie_of(num_docids: int, vocabulary: int) -> DocidTrie:
    """Returns a trie of random docids, 7 to 11 tokens long, whose tokens are as uneven as words are."""
    random = np.random.default_rng(0)
    lengths = random.integers(7, 12, size=num_docids)
    size = min(vocabulary, 30_000) - 3
    ranks = np.exp(random.random(int(lengths.sum())) * np.log(size)).astype(np.int64)  # log-uniform: Zipf's law
    return DocidTrie.build(
        ((3 + np.minimum(ranks, size - 1)).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    )


def prompts_of(batch: int, length: int, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Returns random prompts of one length."""
    random = np.random.default_rng(1)
    return [([], random.integers(3, vocabulary, size=length).tolist()) for _ in range(batch)]


def seconds(device: torch.device, work: Callable[[], object], rounds: int = 3, warm_ups: int = 1) -> float:
    """Returns the median time of some rounds, until the device has done the work."""
    timed = []
    for i in range(warm_ups + rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= warm_ups:
            timed.append(time.perf_counter() - start)
    return median(timed)


def captured(device: torch.device, work: Callable[[], object]) -> Callable[[], object]:
    """Returns the work as one CUDA graph; on a CPU as it is."""
    if device.type != "cuda":
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
