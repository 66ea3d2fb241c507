"""Rounds captured as CUDA graphs: a search costs the host one launch per round, whatever a round consists of.

A chain belongs to one program and one shape of a batch. Its graphs share their memory and are replayed in the order in which
they were captured. After each round the device copies a flag to the host, whether anything is underway. The host looks at the
flags that have arrived, and stops when one says no, so that a deep trie costs no rounds that nobody needs. It waits for none.
"""

from __future__ import annotations

from typing import Any

import torch

from zerogr.decoding.device.model import Head, PathScorer
from zerogr.decoding.device.programs import Found, Program, Setting
from zerogr.decoding.language_model import TreeModel
from zerogr.llm.paths import Prompts


class Chain:
    """The graphs of a search: one for the prompts, one for every round, one that ranks after it."""

    def __init__(self, model: TreeModel, head: Head, setting: Setting, program: Program, example: Prompts) -> None:
        """Runs the search once, so that all that is made on first use is there, then captures it.

        Args:
            model, head: Of the trie in `setting`.
            setting, program: What is searched, and how.
            example: Some prompts of the shape that all batches will have.
        """
        self._model, self._head, self._setting, self._program = model, head, setting, program
        self.trie = setting.trie
        self._prompts = example
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            scorer = self._scorer()
            state = program.begin(scorer.num_queries)
            for depth in range(setting.num_rounds):
                state = self._round(scorer, state, depth)
                program.finish(state)
        torch.cuda.current_stream().wait_stream(stream)

        self._rounds: list[torch.cuda.CUDAGraph] = []
        self._rankings: list[torch.cuda.CUDAGraph] = []
        self._found: list[Found] = []
        self._flags: list[torch.Tensor] = []
        self._on_host = torch.ones(setting.num_rounds, dtype=torch.bool, pin_memory=True)
        self._kept: list[Any] = []
        """States, whose tensors the graphs read and write."""
        self._events = [torch.cuda.Event() for _ in range(setting.num_rounds)]
        pool = torch.cuda.graph_pool_handle()
        self._reading = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._reading, pool=pool):
            scorer = self._scorer()
            state = program.begin(scorer.num_queries)
        self._kept += [scorer, state]
        for depth in range(setting.num_rounds):
            graph, ranking = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                state = self._round(scorer, state, depth)
                flag = program.is_underway(state)
            with torch.cuda.graph(ranking, pool=pool):
                found = program.finish(state)
            self._kept.append(state)
            self._rounds.append(graph)
            self._rankings.append(ranking)
            self._flags.append(flag)
            self._found.append(found)

    def run(self, prompts: Prompts, seed: int) -> Found:
        """Returns what is found for prompts of the chain's shape; the result is overwritten by the next call."""
        for mine, given in zip(self._prompts, prompts, strict=True):
            mine.copy_(given, non_blocking=True)
        self._program.reseed(seed)
        self._reading.replay()
        last = len(self._rounds) - 1
        for depth, graph in enumerate(self._rounds):
            graph.replay()
            self._on_host[depth].copy_(self._flags[depth], non_blocking=True)
            self._events[depth].record()
            if any(not self._on_host[d] for d in range(depth) if self._events[d].query()):
                last = depth
                break
        self._rankings[last].replay()
        return self._found[last]

    def _scorer(self) -> PathScorer:
        num_places = self._setting.num_places(self._program.width)
        return PathScorer(self._model, self._head, self._setting.trie, self._prompts, num_places)

    def _round(self, scorer: PathScorer, state: Any, depth: int) -> Any:
        state = self._program.round(state, depth, lambda options: scorer.log_probs(options, self._setting.normalise))
        if depth + 1 < self._setting.num_rounds:
            scorer.extend(state.frontier)
        return state
