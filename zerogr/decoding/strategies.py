"""The strategies: policies that decide which nodes of the tree to look at, and which docids to return.

A policy is a generator. It yields the nodes whose probabilities it needs, is resumed when they are known,
and returns an `Outcome`. It never calls the model itself, so that the nodes of many queries can be evaluated together.

    greedy              k draws, each takes the best remaining token
    nucleus             k draws from the most probable tokens
    reverse_annealing   k draws at rising temperatures: precise first, then diverse
    beam                the best prefixes of each length; fast, may miss docids with a poor beginning
    best_first          the k most probable docids, exactly
    stochastic_beam     a sample without replacement in one beam search

Ties go to the smaller token id. All orders compare (score, token path), the end token included.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple

import numpy as np

from zerogr.decoding.draws import Choose, draw_leaves, pick_at_temperature, pick_best, pick_from_nucleus
from zerogr.decoding.noise import child_hashes, gumbel, root_hash
from zerogr.decoding.schedule import temperature as annealed_temperature
from zerogr.decoding.tree import Ask, Node, ScoredTree

SHORTEST_SCHEDULE = 100
LOOKAHEAD = 128
LOOKAHEAD_EXACT = 32  # there, walking ahead is guessing: further ahead, more nodes are scored in vain


class Outcome(NamedTuple):
    """What a policy found."""

    leaves: list[Node]
    """One leaf per docid, best first or in the order of the draws; all evaluated."""
    bound_hit: bool = False
    """Whether a bound on the work ended an exact search early, so that the leaves are good but maybe not the best."""


Policy = Generator[Ask, None, Outcome]


def greedy(tree: ScoredTree, k: int, seed: int, *, lookahead: int = LOOKAHEAD) -> Policy:
    """k draws, each following the best remaining token.

    Args:
        lookahead: Draws that walk side by side; changes the number of model calls, not the answer.
    """
    return Outcome((yield from draw_leaves(tree, k, seed=seed, chooser=lambda draw: pick_best, lookahead=lookahead)))


def nucleus(
    tree: ScoredTree, k: int, seed: int, *, top_p: float = 0.9, temperature: float = 1.0, lookahead: int = LOOKAHEAD
) -> Policy:
    """k draws, each token from the fewest remaining tokens that together have the probability `top_p`, at least one.

    Args:
        top_p: In (0, 1]; 1 samples from all allowed tokens.
        temperature: Above 0.
        lookahead: As in `greedy`.
    """
    _require(0 < top_p <= 1, f"top_p must be in (0, 1], got {top_p}")
    _require(temperature > 0, f"temperature must be above 0, got {temperature}")
    choose = pick_from_nucleus(top_p, temperature)
    return Outcome((yield from draw_leaves(tree, k, seed=seed, chooser=lambda draw: choose, lookahead=lookahead)))


def reverse_annealing(
    tree: ScoredTree,
    k: int,
    seed: int,
    *,
    schedule_length: int | None = None,
    max_temperature: float = 1.5,
    steepness: float = 10.0,
    midpoint: float = 0.1,
    without_replacement: str = "local",
    lookahead: int | None = None,
) -> Policy:
    """k draws among the allowed tokens; draw i at temperature T_i, from 0 (greedy) rising to `max_temperature`.

    Args:
        schedule_length: K of the schedule; None means max(k, 100).
        max_temperature, steepness, midpoint: The shape of the schedule, see `zerogr.decoding.schedule`.
        without_replacement: `local` renormalises the remaining children of a node, as in the paper; `exact` subtracts
            the probability, at T_i, of the leaves drawn before.
        lookahead: As in `greedy`; None means 128, or 32 with `exact`.

    Source: ZeroGR (arXiv 2510.10419), Eq. 5 and 6.
    """
    length = max(k, SHORTEST_SCHEDULE) if schedule_length is None else schedule_length
    _require(length >= 1, f"schedule_length must be at least 1, got {length}")
    _require(max_temperature >= 0, f"max_temperature must not be negative, got {max_temperature}")
    _require(
        without_replacement in ("local", "exact"),
        f"without_replacement must be local or exact, got {without_replacement!r}",
    )

    def temperature(draw: int) -> float:
        return annealed_temperature(
            draw, length, max_temperature=max_temperature, steepness=steepness, midpoint=midpoint
        )

    def chooser(draw: int) -> Choose:
        # Exact weights are already at the draw's temperature.
        is_tempered = without_replacement == "exact" and temperature(draw) > 0
        return pick_at_temperature(1.0 if is_tempered else temperature(draw))

    exact_temperature = temperature if without_replacement == "exact" else None
    if lookahead is None:
        lookahead = LOOKAHEAD_EXACT if exact_temperature else LOOKAHEAD
    leaves = yield from draw_leaves(
        tree, k, seed=seed, chooser=chooser, exact_temperature=exact_temperature, lookahead=lookahead
    )
    return Outcome(leaves)


def beam(tree: ScoredTree, k: int, seed: int, *, beam_width: int | None = None) -> Policy:
    """Beam search: of all continuations of the prefixes kept so far, the best `beam_width` are kept.

    Under `allowed` a prefix with one docid left has a certain future, so it leaves the beam and waits among the results.
    Under `vocabulary` its forced tokens still cost probability, and it competes token by token, as in the `generate` of
    Hugging Face with a length penalty of 0. With a width of at least the number of docids the ranking is exact.

    Args:
        beam_width: At least k, the default.
    """
    width = k if beam_width is None else beam_width
    _require(width >= k, f"beam_width must be at least k = {k}, got {width}")
    return Outcome((yield from _beam_search(tree, [tree.root], k, width)))


def _beam_search(tree: ScoredTree, frontier: Iterable[Node], k: int, width: int) -> Generator[Ask, None, list[Node]]:
    """The best k leaves that a beam of `width` finds below the frontier, no node of which is below another."""
    found: list[Node] = []
    kept = sorted(frontier, key=lambda node: node.path)
    while kept:
        # Once all are leaves nobody joins the beam any more and few leave it: whole tails, in one pass, spare the rounds.
        yield Ask(kept, num_forced=None if all(node.is_leaf for node in kept) else 1)
        found += [node for node in kept if node.is_leaf and node.is_evaluated]
        worst = sorted((leaf.total for leaf in found), reverse=True)[k - 1] if len(found) >= k else -np.inf
        # Scores only fall, so a prefix below k finished docids cannot come back.
        live = [node for node in kept if not (node.is_leaf and node.is_evaluated) and node.bound >= worst]
        kept = [node for node in _best_continuations(tree, live, width) if node.bound >= worst]
    return _ranked(found)[:k]


def _best_continuations(tree: ScoredTree, live: list[Node], width: int) -> list[Node]:
    """The best `width` of the inner nodes' children and the unfinished leaves, in the order of their paths, as `live` is."""
    if not live:
        return []
    scores = [np.array([node.bound]) if node.is_leaf else node.score + node.known_log_probs for node in live]
    offsets = np.cumsum([0] + [len(part) for part in scores])
    best = np.sort(_top(np.concatenate(scores), width))
    parents = np.searchsorted(offsets, best, side="right") - 1
    return [
        live[parent] if live[parent].is_leaf else tree.child(live[parent], int(place - offsets[parent]))
        for parent, place in zip(parents, best, strict=True)
    ]


def best_first(tree: ScoredTree, k: int, seed: int, *, max_expansions: int = 10_000, batch_size: int = 16) -> Policy:
    """The k most probable docids, exactly: always expands the most probable prefixes, whatever their length.

    The probability of a prefix bounds that of all docids below it, so a docid that heads the queue is final.

    Args:
        max_expansions: Nodes to expand at most. When that is not enough, a beam search of width k from the best open
            prefixes completes the list, and the outcome says `bound_hit`.
        batch_size: Nodes evaluated in one call of the model. The answer is the same for all values.
    """
    _require(max_expansions >= 1, f"max_expansions must be at least 1, got {max_expansions}")
    _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    found: list[Node] = []
    # (-log-probability, path, parent, option); children become nodes only when they are popped. Paths are unique.
    queue: list[tuple[float, tuple[int, ...], Node, int | None]] = [(0.0, (), tree.root, None)]
    num_expansions = 0
    while queue and len(found) < k:
        batch: list[Node] = []
        waiting: list[Node] = []  # finished docids behind a prefix that may still beat them
        # What is not among the best entries may never be needed.
        while queue and len(found) + len(waiting) + len(batch) < k and len(batch) < batch_size:
            _, _, node, option = heapq.heappop(queue)
            node = node if option is None else tree.child(node, option)
            if not (node.is_leaf and node.is_evaluated):
                batch.append(node)
            elif batch:
                waiting.append(node)
            else:
                found.append(node)
        for leaf in waiting:
            heapq.heappush(queue, (-leaf.total, leaf.path, leaf, None))
        num_expansions += sum(not node.is_evaluated for node in batch)
        if num_expansions > max_expansions:
            missing = k - len(found)
            best_open = [n if o is None else tree.child(n, o) for _, _, n, o in heapq.nsmallest(missing, queue)]
            completed = yield from _beam_search(tree, batch + best_open, missing, missing)
            return Outcome(found + completed, bound_hit=True)
        yield Ask(batch)
        for node in batch:
            if node.is_leaf:
                heapq.heappush(queue, (-node.total, node.path, node, None))
                continue
            for option, score in enumerate((node.score + node.known_log_probs).tolist()):
                heapq.heappush(queue, (-score, (*node.path, int(node.tokens[option])), node, option))
    return Outcome(found)


def stochastic_beam(tree: ScoredTree, k: int, seed: int, *, temperature: float = 1.0) -> Policy:
    """A sample of k docids without replacement, in the order of sequential draws at one temperature.

    Every docid gets its log-probability plus Gumbel noise; the k largest sums are such a sample. The largest sum below
    a prefix can be drawn before its docids are known, and bounds them, so a beam of width k finds the k largest.

    Args:
        temperature: Above 0.

    Source: Kool et al. 2019, "Stochastic Beams and Where to Find Them", Algorithm 1.
    """
    _require(temperature > 0, f"temperature must be above 0, got {temperature}")
    # (perturbed log-probability, log-probability at the temperature, hash, node) in the order of the paths
    kept: list[tuple[float, float, int, Node]] = [(0.0, 0.0, root_hash(seed), tree.root)]
    while not all(node.is_leaf for *_, node in kept):
        yield Ask([node for *_, node in kept if not node.is_leaf])
        continued: list[tuple[float, float, int, Node, int | None]] = []
        for perturbed, log_prob, hash_, node in kept:
            if node.is_leaf:
                continued.append((perturbed, log_prob, hash_, node, None))
                continue
            tempered = node.known_log_probs / temperature
            tempered = log_prob + tempered - tempered.max() - np.log(np.exp(tempered - tempered.max()).sum())
            hashes = child_hashes(hash_, node.tokens)
            noisy = tempered + gumbel(hashes)
            # Conditions the largest of the children's sums on being the parent's, in Kool's stable form (Appendix B.3).
            with np.errstate(divide="ignore"):  # the largest: log(0)
                shift = perturbed - noisy + np.log1p(-np.exp(noisy - noisy.max()))
            conditioned = perturbed - np.maximum(shift, 0) - np.log1p(np.exp(-np.abs(shift)))
            continued += [
                (float(conditioned[i]), float(tempered[i]), int(hashes[i]), node, i) for i in range(len(tempered))
            ]
        best = np.sort(_top(np.array([entry[0] for entry in continued]), k))
        chosen = [continued[i] for i in best]
        kept = [(g, p, h, node if option is None else tree.child(node, option)) for g, p, h, node, option in chosen]
    leaves = [node for *_, node in sorted(kept, key=lambda entry: -entry[0])]
    yield Ask(leaves)
    return Outcome(leaves)


STRATEGIES: dict[str, Callable[..., Policy]] = {
    "greedy": greedy,
    "beam": beam,
    "nucleus": nucleus,
    "reverse_annealing": reverse_annealing,
    "stochastic_beam": stochastic_beam,
    "best_first": best_first,
}
"""Every strategy: (tree, k, seed, **options) -> Policy. The keyword-only parameters are its options."""


def _ranked(leaves: list[Node]) -> list[Node]:
    return sorted(leaves, key=lambda leaf: (-leaf.total, leaf.path))


def _top(scores: np.ndarray, n: int) -> np.ndarray:
    """Indices of the n best scores, or of all there are; of equals the first."""
    if n >= len(scores):
        return np.arange(len(scores))
    bar = np.partition(scores, len(scores) - n)[len(scores) - n]
    candidates = np.flatnonzero(scores >= bar)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:n]]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
