"""Sampling that leaves the host out: what a step costs it is one launch, and once in some steps one transfer.

The prompts' keys and values are stored once, whatever the number of samples (`zerogr.llm.paths`). A step draws a token for
every sample, by the uniform number that is its own (`sampling`), and reads it. After `STEPS_PER_TRANSFER` steps the host
fetches the tokens, finds out which samples have ended, with an end token or a stop string, and stops when all have. What is
drawn behind an end is cut off. So the answers are those of the engine's loop, token by token.

On CUDA the steps are captured as graphs, once for every shape: prompts are filled up to the next power of two and to the next
multiple of `PROMPT_BUCKET` tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from zerogr.llm.engines.engine import Sampling
from zerogr.llm.engines.sampling import draw_tokens, uniforms
from zerogr.llm.paths import PATHS, PathReader, Prompts, register_paths

ON_GPU = 1024
"""Samples together, unless something else is wanted."""
PROMPT_BUCKET = 64
"""Tokens."""
STEPS_PER_TRANSFER = 8
_MAX_CHAINS = 4

Request = tuple[list[int], tuple[int, ...]]
"""A prompt's tokens, and the seeds of its samples."""


class DeviceSampler:
    """Draws samples of prompts. Not thread-safe."""

    def __init__(self, model: Any, decode: Callable[[list[int]], str]) -> None:
        """Takes the model over.

        Args:
            model: A causal LM in eval mode; its attention is replaced.
            decode: Tokens -> text, without an end token.
        """
        register_paths()
        model.set_attn_implementation(PATHS)
        self._model, self._decode = model, decode
        self._steps: OrderedDict[Hashable, Steps] = OrderedDict()
        self._suspects: dict[tuple[str, ...], np.ndarray] = {}

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[Request], sampling: Sampling, end_ids: Collection[int]
    ) -> list[list[list[int]]]:
        """Returns the tokens of every sample of every prompt, up to its end, that included; `end_ids` are end tokens."""
        texts, num_samples = [text for text, _ in requests], max(len(seeds) for _, seeds in requests)
        is_captured = self._model.device.type == "cuda"
        batch, length = len(texts), max(map(len, texts))
        if is_captured:
            batch, length = 1 << (batch - 1).bit_length(), -(-length // PROMPT_BUCKET) * PROMPT_BUCKET
        numbers = np.zeros((batch, num_samples, sampling.max_tokens))
        for row, (_, seeds) in enumerate(requests):
            numbers[row, : len(seeds)] = uniforms(seeds, sampling.max_tokens)
        prompts = Prompts.of(texts, self._model.device, batch=batch, length=length)
        given = torch.from_numpy(numbers).to(self._model.device)
        key = (batch, length, num_samples, sampling.max_tokens, sampling.temperature, sampling.top_p)
        steps = self._steps.get(key)
        if steps is None:
            steps = Steps(self._model, prompts, given, sampling)
            if is_captured:
                steps.capture()
                self._steps[key] = steps
                if len(self._steps) > _MAX_CHAINS:
                    self._steps.popitem(last=False)
        else:
            self._steps.move_to_end(key)
        steps.begin(prompts, given)
        return self._follow(steps, requests, sampling, np.array(sorted(end_ids)))

    def _follow(
        self, steps: Steps, requests: Sequence[Request], sampling: Sampling, end_ids: np.ndarray
    ) -> list[list[list[int]]]:
        """Takes steps until all samples have ended."""
        rows = [(row, sample) for row, (_, seeds) in enumerate(requests) for sample in range(len(seeds))]
        places = np.array(rows)
        drawn = np.empty((len(rows), 0), dtype=np.int64)
        ends: np.ndarray = np.full(len(rows), -1)
        suspects = self._suspects_of(sampling.stop)
        while drawn.shape[1] < sampling.max_tokens and (ends < 0).any():
            count = min(STEPS_PER_TRANSFER, sampling.max_tokens - drawn.shape[1])
            new = steps.take(count)[places[:, 0], places[:, 1]]
            known, drawn = drawn.shape[1], np.concatenate([drawn, new], axis=1)
            is_end, is_suspect = np.isin(new, end_ids), suspects[new]
            for row in np.flatnonzero((ends < 0) & (is_end | is_suspect).any(axis=1)):
                last = known + (int(is_end[row].argmax()) if is_end[row].any() else new.shape[1])
                ends[row] = self._end_of(drawn[row], known, last, sampling.stop if is_suspect[row].any() else ())
        lengths = np.where(ends < 0, drawn.shape[1], ends)
        found: list[list[list[int]]] = [[] for _ in requests]
        for (prompt, _), tokens, length in zip(rows, drawn, lengths, strict=True):
            found[prompt].append(tokens[:length].tolist())
        return found

    def _suspects_of(self, stop: tuple[str, ...]) -> np.ndarray:
        """Returns which tokens may complete a stop string (bool [V]): those that show its last character, or all.

        A character that is one byte, and no space, which tokenizers drop and add, stands in one token.
        """
        if stop not in self._suspects:
            num_tokens = self._model.get_output_embeddings().weight.shape[0]
            last = {text[-1] for text in stop if text}
            is_told_by_token = all(character.isascii() and character != " " for character in last)
            self._suspects[stop] = np.full(num_tokens, bool(last))
            if last and is_told_by_token:
                texts = (self._decode([token]) for token in range(num_tokens))
                self._suspects[stop] = np.array([not last.isdisjoint(text) for text in texts])
        return self._suspects[stop]

    def _end_of(self, tokens: np.ndarray, known: int, last: int, stop: tuple[str, ...]) -> int:
        """Returns how many tokens a sample has up to its end; -1 if it goes on.

        Args:
            tokens: All that was drawn.
            known: So many have been looked at before.
            last: The place of the first end token among the others; their number if there is none.
            stop: Texts that end a sample as well.
        """
        if stop and any(text in self._decode(tokens[:last].tolist()) for text in stop):
            for length in range(known + 1, last + 1):
                if any(text in self._decode(tokens[:length].tolist()) for text in stop):
                    return length
        return last + 1 if last < len(tokens) else -1


class Steps:
    """The steps of one batch, or, captured, of all batches of one shape."""

    def __init__(self, model: Any, prompts: Prompts, numbers: torch.Tensor, sampling: Sampling) -> None:
        """Takes what the first batch is about.

        Args:
            model: A causal LM.
            prompts: Of the batch.
            numbers: float64 [B, W, T], the uniform numbers of its samples.
            sampling: How tokens are drawn.
        """
        self._model, self._prompts, self._numbers, self._sampling = model, prompts, numbers, sampling
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._tokens: list[torch.Tensor] = []
        """int64 [B, W] of every step."""
        self._reader: PathReader | None = None
        self._num_taken = 0

    def begin(self, prompts: Prompts, numbers: torch.Tensor) -> None:
        """Begins a batch."""
        self._num_taken = 0
        if self._graphs:
            for mine, given in zip((*self._prompts, self._numbers), (*prompts, numbers), strict=True):
                mine.copy_(given)
        else:
            self._prompts, self._numbers, self._tokens, self._reader = prompts, numbers, [], None

    def take(self, count: int) -> np.ndarray:
        """Takes steps and returns their tokens, int64 [B, W, count]; the only place where the host waits."""
        for _ in range(count):
            if self._graphs:
                self._graphs[self._num_taken].replay()
            else:
                self._step()
            self._num_taken += 1
        return torch.stack(self._tokens[self._num_taken - count : self._num_taken], dim=-1).cpu().numpy()

    def capture(self) -> None:
        """Captures all steps, after having taken two, so that what is made on first use is there."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(min(2, self._sampling.max_tokens)):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self._tokens, self._reader = [], None
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for _ in range(self._sampling.max_tokens):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step()
            graphs.append(graph)
        self._graphs = graphs

    def _step(self) -> None:
        """Reads what was drawn last, at first the prompts, and draws the next tokens."""
        batch, num_samples, num_tokens = self._numbers.shape
        step = len(self._tokens)
        if self._reader is None:
            self._reader = PathReader(self._model, self._prompts, num_samples * (num_tokens - 1))
        else:
            own = torch.arange(num_samples, device=self._numbers.device)[:, None]
            ancestors = own + num_samples * torch.arange(step, device=self._numbers.device)
            self._reader.extend(self._tokens[-1], ancestors.expand(batch, -1, -1))
        head = self._model.get_output_embeddings()
        logits_BWV = head(self._reader.hidden).expand(-1, num_samples, -1)
        drawn = draw_tokens(logits_BWV.flatten(0, 1), self._numbers[:, :, step].flatten(), self._sampling)
        self._tokens.append(drawn.view(batch, num_samples))
