"""The k most probable docids, exactly, depth by depth instead of best first.

A prefix bounds the docids below it. So a beam search that keeps every prefix which is not below the k-th best docid misses
none. A narrow beam goes first and says how good k docids can be; then all prefixes that good are looked at, which best first
looks at as well. How many they are is known on the way only, so the host asks once per depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from zerogr.decoding.device.frontier import NEVER, best
from zerogr.decoding.device.model import Scorer
from zerogr.decoding.device.programs import Beam, BeamState, Found, LogProbs, Setting

MARGINS = (0.1, 1.0, float("inf"))
"""Nats below what the narrow beam found. A score moves by rounding with the shape of its batch, and what is good enough must
not be missed for it; if it was, the next margin is tried."""


class Exact(Beam):
    """A beam search as wide as it must be, for one batch of queries."""

    def __init__(self, setting: Setting, least: torch.Tensor, max_expansions: int) -> None:
        """Takes what is known beforehand.

        Args:
            setting: Of the search.
            least: float64 [B]: a score that the k-th best docid reaches, -inf where nothing is known.
            max_expansions: Prefixes that are looked at, at most, per query; beyond, no more are kept than documents are wanted.
        """
        super().__init__(setting, beam_width=max_expansions)
        self._least, self._left = least[:, None], max_expansions
        self.is_bounded = torch.zeros(len(least), dtype=torch.bool, device=least.device)
        """bool [B]: whether prefixes had to be left out, so that the answer may not be exact."""

    def round(self, state: BeamState, depth: int, log_probs: LogProbs) -> BeamState:
        """See `Program`."""
        self._left -= state.frontier.score.shape[1] if depth else 0
        return super().round(state, depth, log_probs)

    def _choose(self, scores: torch.Tensor, state: BeamState) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps all options that are good enough, as long as there is room."""
        k, least = self._setting.k, self._least
        if state.scores.shape[1] >= k:
            least = torch.maximum(least, state.scores.topk(k).values[:, -1:])
        good = torch.where(scores >= least, scores, NEVER)
        counts = (good > NEVER).sum(1)
        wanted = 1 << (max(1, int(counts.max())) - 1).bit_length()  # of few sizes: what depends on them is kept
        width = min(wanted, max(self._left, k), scores.shape[1])
        self.is_bounded |= counts > width
        return best(good, width), good


def most_probable(
    setting: Setting, scorer_of: Callable[[int], Scorer], known: Found, max_expansions: int
) -> tuple[Found, torch.Tensor]:
    """Returns the k most probable docids of every query, and for which queries they may not be (bool [B]).

    Args:
        setting: Of the search.
        scorer_of: Makes the queries' scorer with room for so many prefixes.
        known: What a beam search found.
        max_expansions: See `Exact`.
    """
    num_wanted = min(setting.k, setting.trie.num_docids)
    least = known.scores[:, num_wanted - 1] if known.scores.shape[1] >= num_wanted else known.scores[:, 0] + NEVER
    for margin in MARGINS:
        scorer = scorer_of(max_expansions + setting.k * setting.num_rounds)
        program = Exact(setting, least - margin, max_expansions)
        state = program.begin(scorer.num_queries)
        for depth in range(setting.num_rounds):
            state = program.round(state, depth, partial(scorer.log_probs, normalise=setting.normalise))
            if depth + 1 == setting.num_rounds or not program.is_underway(state):
                break
            scorer.extend(state.frontier)
        found = program.finish(state)
        if not bool(((found.scores > NEVER).sum(1) < num_wanted).logical_and(~program.is_bounded).any()):
            break
    return found, program.is_bounded
