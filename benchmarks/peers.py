"""What people use today to decode docids under a trie, to be measured against; and the slow, plain reference.

    constrained_beam    `generate(num_beams=...)` with `prefix_allowed_tokens_fn`, after GENRE (arXiv 2010.00904)
    draw                one `generate` call of the official ZeroGR decoding, which makes one per docid
    plain_scores        no cache at all: the prompt and the prefix through the model
    bare_forwards_s     the model's own forward passes at given shapes, with nothing around them

The tries here are nested Python dicts, {token: trie}; every path ends with the end token, which leads to {}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

Path = tuple[int, ...]
DictTrie = dict[int, Any]


def dict_trie(docids: Iterable[Sequence[int]], end: int) -> DictTrie:
    """Returns the trie of whole docids, given without the end token."""
    root: DictTrie = {}
    for docid in docids:
        _insert(root, (*docid, end))
    return root


def truncated_trie(docids: Iterable[Sequence[int]], end: int) -> tuple[DictTrie, dict[Path, Path]]:
    """Returns the trie of the docids' shortest distinguishing prefixes, and {docid: its path}.

    A draw then ends at the first token that belongs to one docid alone, so it needs fewer steps than a whole docid.

    Source: the official ZeroGR code (github.com/sunnweiwei/ZeroGR, genir.py, `set_short`).
    """
    whole = [(*docid, end) for docid in dict.fromkeys(map(tuple, docids))]
    num_docids: dict[Path, int] = {}
    for path in whole:
        for length in range(1, len(path) + 1):
            num_docids[path[:length]] = num_docids.get(path[:length], 0) + 1
    root: DictTrie = {}
    path_of: dict[Path, Path] = {}
    for path in whole:
        own = next(length for length in range(1, len(path) + 1) if num_docids[path[:length]] == 1)
        path_of[path[:-1]] = path[:own] if own == len(path) else (*path[:own], end)
        _insert(root, path_of[path[:-1]])
    return root, path_of


def remove(trie: DictTrie, path: Path) -> None:
    """Takes a whole path, and the nodes that then lead nowhere, out of the trie."""
    nodes = [trie]
    for token in path[:-1]:
        nodes.append(nodes[-1][token])
    for node, token in zip(reversed(nodes), reversed(path), strict=True):
        del node[token]
        if node:
            return


def allowed_tokens(trie: DictTrie, prompt_length: int, end: int) -> Callable[[int, torch.Tensor], list[int]]:
    """Returns a `prefix_allowed_tokens_fn`: what may follow; the end token after an unknown prefix."""

    def allowed(batch_id: int, tokens: torch.Tensor) -> list[int]:
        node = trie
        for token in tokens[prompt_length:].tolist():
            if token not in node:
                return [end]
            node = node[token]
        return list(node) or [end]

    return allowed


@torch.inference_mode()
def constrained_beam(
    model: Any,
    prompt: Sequence[int],
    trie: DictTrie,
    width: int,
    *,
    end: int,
    max_tokens: int,
    has_scores: bool = False,
) -> list[tuple[Path, float]]:
    """Returns (docid, natural-log probability) of what a beam search of `generate` finds, best first.

    The mask comes after the softmax over the vocabulary: scores as under `normalise="vocabulary"`.

    Args:
        model: Causal LM.
        prompt: Tokens before the docid.
        trie: Of whole docids.
        width: Number of beams and of sequences asked for, at least 2: one beam is another algorithm to `generate`.
        end: The end token.
        max_tokens: Of the longest docid, its end included.
        has_scores: Keep the scores, which costs a copy of them per step; else all are NaN.
    """
    inputs = torch.tensor([list(prompt)], device=model.device)
    # length_penalty 0 and "never" give the textbook beam search: summed log-probabilities, and no stop before the best
    # open prefix is worse than the worst finished docid.
    settings = GenerationConfig(
        num_beams=width, num_return_sequences=width, do_sample=False, length_penalty=0.0, early_stopping="never",
        max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=end, return_dict_in_generate=True,
        output_scores=has_scores,
    )  # fmt: skip
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=settings,
        prefix_allowed_tokens_fn=allowed_tokens(trie, len(prompt), end),
    )
    scores = output.sequences_scores.tolist() if has_scores else [float("nan")] * width
    # Where the trie has fewer docids than there are beams, `generate` fills up with repetitions and dead ends.
    found: dict[Path, float] = {}
    for tokens, score in zip(output.sequences[:, len(prompt) :].tolist(), scores, strict=True):
        path = tuple(tokens[: tokens.index(end) + 1]) if end in tokens else ()
        if path and _holds(trie, path):
            found.setdefault(path[:-1], score)
    return list(found.items())


@torch.inference_mode()
def draw(
    model: Any, prompt: Sequence[int], trie: DictTrie, temperature: float, *, end: int, max_tokens: int = 64
) -> Path:
    """Returns one path of the trie, sampled at the temperature with torch's generator; at 0 it is the greedy one.

    One step of the official loop: the prompt is encoded again and nothing is kept. It deletes the path afterwards and
    draws the next. Unlike there, neither top_k nor top_p cut the distribution, which the paper does not mention.
    """
    inputs = torch.tensor([list(prompt)], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = GenerationConfig(max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=end, **sampling)
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=settings,
        prefix_allowed_tokens_fn=allowed_tokens(trie, len(prompt), end),
    )
    return tuple(output[0, len(prompt) :].tolist())


def plain_scores(model: Any, prompt: Sequence[int], batch_size: int = 8) -> Callable[[list[Path]], np.ndarray]:
    """Returns the `scores` that `zerogr.decoding.decode` takes: prompt and prefix, without any cache of keys and values.

    It remembers the answers (V floats per prefix), so that several strategies can share it.
    """
    known: dict[Path, np.ndarray] = {}

    @torch.inference_mode()
    def run(prefixes: list[Path]) -> None:
        # Every position of a sequence has logits, so a prefix that another one continues needs no pass of its own.
        whole: dict[Path, list[Path]] = {}
        longest: Path = ()
        for prefix in sorted(prefixes, reverse=True):
            longest = longest if longest[: len(prefix)] == prefix and longest in whole else prefix
            whole.setdefault(longest, []).append(prefix)
        order = sorted(whole, key=len)
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            length = len(batch[-1])
            padded = [[*prompt, *path, *[0] * (length - len(path))] for path in batch]  # the padding is in the future
            logits = model(torch.tensor(padded, device=model.device), use_cache=False, logits_to_keep=length + 1).logits
            for row, path in enumerate(batch):
                known.update({prefix: logits[row, len(prefix)].float().cpu().numpy() for prefix in whole[path]})

    def scores(prefixes: list[Path]) -> np.ndarray:
        missing = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in known]
        if missing:
            run(missing)
        return np.stack([known[prefix] for prefix in prefixes])

    return scores


@torch.inference_mode()
def bare_forwards_s(model: Any, shapes: Iterable[tuple[int, int, int]]) -> float:
    """Returns the seconds of plain forward passes without the output head, one per shape.

    Args:
        model: Causal LM.
        shapes: (new tokens, queries that have some, tokens of the longest query so far). The new tokens are shared out
            evenly; each query gets a cache of random keys and values, which is not part of the time.
    """
    config = model.config
    num_heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    seconds = 0.0
    for num_tokens, num_queries, context in shapes:
        width = -(-num_tokens // num_queries)
        past = max(0, context - width)
        cache = DynamicCache()
        for layer in range(config.num_hidden_layers if past else 0):
            shape = (num_queries, num_heads, past, size)
            keys, values = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
            cache.update(keys, values, layer)
        tokens = torch.randint(config.vocab_size, (num_queries, width), device=model.device)
        synchronise(model)
        start = time.perf_counter()
        model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        synchronise(model)
        seconds += time.perf_counter() - start
    return seconds


def synchronise(model: Any) -> None:
    """Waits until the model's device has done what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _insert(trie: DictTrie, path: Path) -> None:
    for token in path:
        trie = trie.setdefault(token, {})


def _holds(trie: DictTrie, path: Path) -> bool:
    for token in path:
        if token not in trie:
            return False
        trie = trie[token]
    return not trie
