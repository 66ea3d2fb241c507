"""The strategies as array programs: one round looks at all prefixes of one depth of all queries, and chooses the next ones.

They answer what the policies of `zerogr.decoding.strategies` answer, which are the definition. A round is a fixed sequence of
operators on arrays whose shapes are known beforehand: nothing in it asks the device for a value.

    beam         the best W of all options; what is final leaves the beam and waits among the results
    draws        greedy, nucleus, reverse annealing: all draws of a query walk side by side, see `draw`
    stochastic   a beam over perturbed scores, in which finished docids go on competing

Shapes: B queries, W prefixes, C options, K draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from zerogr.decoding.device.draw import NO_ORDER, draw
from zerogr.decoding.device.frontier import (
    NEVER,
    Frontier,
    Options,
    best,
    forced,
    is_final,
    log_softmax,
    options_of,
    root,
    step_to,
)
from zerogr.decoding.device.perturb import perturb
from zerogr.decoding.device.trie import BELOW, DOCID, TOKEN, DeviceTrie
from zerogr.decoding.noise import root_hash
from zerogr.decoding.schedule import temperature as annealed_temperature
from zerogr.decoding.strategies import SHORTEST_SCHEDULE

LogProbs = Callable[[Options], torch.Tensor]
"""Options of a frontier -> what the model says of them, float64 [B, C]: logits under `allowed`, else log-probabilities."""


class Found(NamedTuple):
    """What a search found, in the order of the answer."""

    docids: torch.Tensor
    """int64 [B, n]: places in the trie's sorted order."""
    scores: torch.Tensor
    """float64 [B, n]; -inf where there is nothing."""


class Program(Protocol):
    """A strategy. Made for one trie, one k and one set of options; every call is for a batch of queries."""

    width: int
    """Prefixes of a depth that are kept at most."""

    def begin(self, num_queries: int) -> Any:
        """Returns the state in which nothing is known."""

    def round(self, state: Any, depth: int, log_probs: LogProbs) -> Any:
        """Returns the state after looking at the prefixes of a depth; its `frontier` is what comes next."""

    def is_underway(self, state: Any) -> torch.Tensor:
        """Returns whether any query still has something to look at (bool [])."""

    def reseed(self, seed: int) -> None:
        """Takes the random numbers of another seed from now on, in the tensors that hold those of the last one."""

    def finish(self, state: Any) -> Found:
        """Returns what was found."""


@dataclass(frozen=True)
class Setting:
    """What all programs are made for."""

    trie: DeviceTrie
    k: int
    normalise: str

    @property
    def with_forced(self) -> bool:
        """Whether prefixes with one docid left are looked at, too."""
        return self.normalise == "vocabulary"

    @property
    def num_rounds(self) -> int:
        """Depths at which something is to be known."""
        levels = self.trie.levels
        return levels.max_docid_tokens + 1 if self.with_forced else self.trie.head_depth + 1

    def num_places(self, width: int) -> int:
        """Returns how many tokens of prefixes are read, if at most `width` of each depth are kept."""
        return (self.num_rounds - 1) * width

    def options(self, frontier: Frontier, depth: int) -> Options:
        """Returns what may follow the prefixes of a depth."""
        capacity = self.trie.capacity(depth, frontier.score.shape[1], self.with_forced)
        return options_of(self.trie, frontier, capacity, forced(self.trie, frontier) if self.with_forced else None)

    def log_probs(self, options: Options, model: LogProbs) -> torch.Tensor:
        """Returns the log-probabilities of options, -inf for those that are none."""
        found = model(options)
        if self.normalise == "allowed":
            return log_softmax(self.trie, found, options)
        return torch.where(options.is_valid, found, NEVER)


class BeamState(NamedTuple):
    """Of `Beam`."""

    frontier: Frontier
    first_place: int
    docids: torch.Tensor
    scores: torch.Tensor


class Beam:
    """Beam search, see `zerogr.decoding.strategies.beam`."""

    def __init__(self, setting: Setting, *, beam_width: int | None = None) -> None:
        """Takes the options of the policy."""
        self._setting, self.width = setting, beam_width or setting.k

    def begin(self, num_queries: int) -> BeamState:
        """See `Program`."""
        frontier = root(self._setting.trie, num_queries)
        nothing = frontier.score[:, :0]
        return BeamState(frontier, 0, nothing.long(), nothing)

    def round(self, state: BeamState, depth: int, log_probs: LogProbs) -> BeamState:
        """See `Program`."""
        setting, frontier = self._setting, state.frontier
        options = setting.options(frontier, depth)
        scores = frontier.score.gather(1, options.owner) + setting.log_probs(options, log_probs)
        found, docids = [state.scores], [state.docids]
        if setting.with_forced:  # the last token of a forced tail completes a docid, and competes with nobody
            is_last = options.is_forced & (options.info[..., TOKEN] == setting.trie.num_tokens)
            nothing = setting.trie.filled(frontier.score.shape, NEVER)
            found.append(nothing.scatter_reduce(1, options.owner, torch.where(is_last, scores, NEVER), "amax"))
            docids.append(frontier.info[..., DOCID])
            scores = scores.masked_fill(is_last, NEVER)
        chosen, scores = self._choose(scores, state)
        following = step_to(setting.trie, frontier, options, chosen, scores, state.first_place)
        is_leaf = is_final(following.info, setting.trie, setting.normalise)
        all_found = torch.cat([*found, torch.where(is_leaf, following.score, NEVER)], dim=1)
        all_docids = torch.cat([*docids, following.info[..., DOCID]], dim=1)
        is_open = following.is_open & ~is_leaf
        if all_found.shape[1] >= setting.k:  # scores only fall: what is below k finished docids cannot come back
            is_open &= following.score >= all_found.topk(setting.k).values[:, -1:]
        return BeamState(
            following._replace(is_open=is_open), state.first_place + chosen.shape[1], all_docids, all_found
        )

    def _choose(self, scores: torch.Tensor, state: BeamState) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the places of the options that are kept (int64 [B, W']), and the scores, -inf for what is out."""
        return best(scores, min(self.width, scores.shape[1])), scores

    def is_underway(self, state: BeamState) -> torch.Tensor:
        """See `Program`."""
        return state.frontier.is_open.any()

    def reseed(self, seed: int) -> None:
        """Nothing is drawn."""

    def finish(self, state: BeamState) -> Found:
        """See `Program`."""
        ranks = self._setting.trie.path_ranks
        by_path = (state.docids if ranks is None else ranks[state.docids]).argsort(dim=1, stable=True)
        scores = state.scores.gather(1, by_path)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self._setting.k]
        return Found(state.docids.gather(1, by_path.gather(1, order)), scores.gather(1, order))


class DrawState(NamedTuple):
    """Of `Draws`; [B, K] for the draws."""

    frontier: Frontier
    first_place: int
    node: torch.Tensor
    docids: torch.Tensor
    scores: torch.Tensor
    is_done: torch.Tensor


class Draws:
    """Draws without replacement, renormalised at every node, see `zerogr.decoding.draws`."""

    def __init__(self, setting: Setting, temperatures: np.ndarray, top_p: float = NO_ORDER) -> None:
        """Takes the temperature of each draw; 0 picks the best option."""
        device, num_draws = setting.trie.device, min(setting.k, setting.trie.num_docids)
        self._setting, self._top_p, self.width = setting, top_p, num_draws
        self._temperatures = torch.from_numpy(temperatures[:num_draws].astype(np.float64)).to(device)
        self._uniforms = torch.empty(setting.num_rounds, num_draws, dtype=torch.float64, device=device)
        self.reseed(0)

    def begin(self, num_queries: int) -> DrawState:
        """See `Program`."""
        frontier = root(self._setting.trie, num_queries)
        zeros = torch.zeros(num_queries, self.width, dtype=torch.int64, device=frontier.score.device)
        return DrawState(frontier, 0, zeros, zeros, zeros.double(), zeros.bool())

    def round(self, state: DrawState, depth: int, log_probs: LogProbs) -> DrawState:
        """See `Program`."""
        setting, frontier = self._setting, state.frontier
        options = setting.options(frontier, depth)
        known = setting.log_probs(options, log_probs)
        if self._top_p >= 0:
            order = known.argsort(dim=1, descending=True, stable=True)
            order = order.gather(1, options.owner.gather(1, order).argsort(dim=1, stable=True))
        else:
            order = options.owner[:, :0]
        picked = draw(
            known, options.info[..., BELOW], options.ends, state.node, state.is_done, order,
            self._temperatures, self._uniforms[depth], self._top_p,
        )  # fmt: skip
        info = options.info.gather(1, picked[..., None].expand(-1, -1, 4))
        gained = known.gather(1, picked).masked_fill(state.is_done, 0)
        docids = torch.where(state.is_done, state.docids, info[..., DOCID])
        is_done = state.is_done | is_final(info, setting.trie, setting.normalise)
        # The prefixes that draws have come to, each once, in the order of their paths.
        num_queries, capacity = known.shape
        nothing = setting.trie.filled((num_queries, capacity + 1), 0)
        number = nothing.scatter(1, picked.masked_fill(is_done, capacity), 1)[:, :capacity].cumsum(1)
        width = min(self.width, capacity)
        places = setting.trie.places(num_queries, width)
        chosen = torch.searchsorted(number, places, right=True).clamp(max=capacity - 1)
        is_open = places < number[:, -1:]
        following = step_to(setting.trie, frontier, options, chosen, known, state.first_place, is_open)
        node = number.gather(1, picked) - 1
        return DrawState(following, state.first_place + width, node, docids, state.scores + gained, is_done)

    def is_underway(self, state: DrawState) -> torch.Tensor:
        """See `Program`."""
        return state.frontier.is_open.any()

    def reseed(self, seed: int) -> None:
        """See `Program`: draw i has the random stream (seed, i)."""
        uniforms = np.empty(self._uniforms.shape)
        for number in range(self.width):
            key = np.array([seed % 2**64, number], dtype=np.uint64)
            uniforms[:, number] = np.random.Generator(np.random.Philox(key=key)).random(len(uniforms))
        self._uniforms.copy_(torch.from_numpy(uniforms))

    def finish(self, state: DrawState) -> Found:
        """See `Program`."""
        return Found(state.docids, state.scores)


class StochasticState(NamedTuple):
    """Of `Stochastic`; [B, W] for the prefixes."""

    frontier: Frontier
    first_place: int
    perturbed: torch.Tensor
    tempered: torch.Tensor
    hashes: torch.Tensor


class Stochastic:
    """Stochastic beam search, see `zerogr.decoding.strategies.stochastic_beam`."""

    def __init__(self, setting: Setting, *, temperature: float = 1.0) -> None:
        """Takes the options of the policy."""
        self._setting, self._temperature, self.width = setting, temperature, setting.k
        self._seed = torch.zeros(1, 1, dtype=torch.int64, device=setting.trie.device)
        self.reseed(0)

    def begin(self, num_queries: int) -> StochasticState:
        """See `Program`."""
        frontier = root(self._setting.trie, num_queries)
        return StochasticState(frontier, 0, frontier.score, frontier.score, self._seed.expand(num_queries, 1))

    def round(self, state: StochasticState, depth: int, log_probs: LogProbs) -> StochasticState:
        """See `Program`."""
        setting, frontier = self._setting, state.frontier
        is_over = is_final(frontier.info, setting.trie, setting.normalise)
        if setting.with_forced:
            is_forced, other = forced(setting.trie, frontier)
            instead = (is_forced | is_over, torch.where(is_over[..., None], frontier.info, other))
        else:
            instead = (is_over, frontier.info)
        capacity = setting.trie.capacity(depth, frontier.score.shape[1], with_forced=True)
        options = options_of(setting.trie, frontier, capacity, instead)
        owner = options.owner
        is_kept = is_over.gather(1, owner)
        known = setting.log_probs(options, log_probs).masked_fill(is_kept & options.is_valid, 0)

        tempered = known
        if setting.with_forced or self._temperature != 1:
            tempered = log_softmax(setting.trie, known / self._temperature, options)
        tempered = tempered + state.tempered.gather(1, owner)
        hashes, conditioned = perturb(
            tempered,
            setting.trie.tokens[options.info[..., TOKEN]],
            options.ends,
            state.hashes,
            state.perturbed,
            is_over,
        )

        chosen = best(conditioned, min(self.width, capacity))
        scores = frontier.score.gather(1, owner) + known
        following = step_to(setting.trie, frontier, options, chosen, scores, state.first_place)
        return StochasticState(
            following,
            state.first_place + chosen.shape[1],
            conditioned.gather(1, chosen),
            tempered.gather(1, chosen),
            hashes.gather(1, chosen),
        )

    def is_underway(self, state: StochasticState) -> torch.Tensor:
        """See `Program`."""
        frontier = state.frontier
        return (frontier.is_open & ~is_final(frontier.info, self._setting.trie, self._setting.normalise)).any()

    def reseed(self, seed: int) -> None:
        """See `Program`."""
        self._seed.fill_(_signed(root_hash(seed)))

    def finish(self, state: StochasticState) -> Found:
        """See `Program`."""
        order = state.perturbed.argsort(dim=1, descending=True, stable=True)
        info, score = state.frontier.info[..., DOCID], state.frontier.score
        return Found(info.gather(1, order), score.gather(1, order))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def program(strategy: str, setting: Setting, options: dict[str, Any]) -> Program | None:
    """Returns the program of a strategy; None if it has none and the reference has to do it.

    Args:
        strategy, options: As in `zerogr.decoding.decode`, checked.
        setting: What it is made for.
    """
    options = {name: value for name, value in options.items() if name not in ("lookahead", "batch_size")}
    draws = np.zeros(setting.k)
    if strategy == "greedy":
        return Draws(setting, draws)
    if strategy == "nucleus":
        return Draws(setting, draws + options.get("temperature", 1.0), options.get("top_p", 0.9))
    if strategy == "reverse_annealing" and options.pop("without_replacement", "local") == "local":
        length = options.pop("schedule_length", None) or max(setting.k, SHORTEST_SCHEDULE)
        return Draws(setting, np.array([annealed_temperature(i, length, **options) for i in range(setting.k)]))
    if strategy == "beam":
        return Beam(setting, **options)
    if strategy == "stochastic_beam":
        return Stochastic(setting, **options)
    return None
