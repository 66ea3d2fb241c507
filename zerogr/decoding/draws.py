"""Drawing docids one after the other without replacement: what greedy, nucleus and reverse annealing share.

A draw walks from the root to a leaf and takes the leaf out of the tree. The trie is shared and read-only: what has left
it is an overlay, the number of drawn docids below each visited node. Two ways to account for drawn leaves:

    local   the remaining children of a node are renormalised; a child leaves when all its docids are drawn
    exact   a child counts with its probability less the probability of the drawn leaves below it, at the draw's own
            temperature: sampling without replacement proper (UniqueRandomizer, Shi et al. 2020)

One draw after the other would cost one call of the model per token. Instead all draws walk side by side over what is
already scored; each stops at its first unscored node, all of these are scored in one call, and the draws walk on in
order. The answer is that of drawing one by one. Every draw has its own random stream, and

    local   a walk depends on earlier draws only through the counts of the children it can choose from. An earlier draw
            that is stuck at a node has already been counted all the way to it, and a later draw that comes to this node
            is stuck too. So every step is final as it is made.
    exact   a walk needs the probabilities of all earlier leaves. Walks behind a stuck draw are guesses: they tell which
            nodes will be needed, then start again from the root with the same random numbers.

Cost: as many calls of the model as the deepest walk has nodes (`local`), whatever the number of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np

from zerogr.decoding.tree import Ask, Node, ScoredTree

Choose = Callable[[np.ndarray, float], int]
"""(log-weights float64 [C], -inf for options that have left; a uniform number in [0, 1)) -> the option a draw picks."""


class Overlay:
    """The docids that have been drawn, on top of a tree that stays as it is."""

    def __init__(self) -> None:
        self.num_drawn: dict[Node, int] = {}
        self._log_probs: dict[Node, np.ndarray] = {}

    def take(self, node: Node, option: int, child: Node) -> None:
        """Counts a draw that goes from `node` to `child`; the option leaves with the last docid below the child."""
        self.num_drawn[child] = self.num_drawn.get(child, 0) + 1
        if self.num_drawn[child] == child.num_docids:
            self._log_probs.setdefault(node, node.known_log_probs.copy())[option] = -np.inf

    def give_back(self, node: Node, option: int, child: Node) -> None:
        """Undoes `take`."""
        if self.num_drawn[child] == child.num_docids:
            self._log_probs[node][option] = node.known_log_probs[option]
        self.num_drawn[child] -= 1

    def log_probs(self, node: Node) -> np.ndarray:
        """The log-probabilities of the node's options (do not write to it), -inf for those that have left."""
        remaining = self._log_probs.get(node)
        return node.known_log_probs if remaining is None else remaining

    def log_weights(self, node: Node, temperature: float) -> np.ndarray:
        """Log of each option's probability at `temperature` less that of the drawn leaves below it (float64 [C])."""
        weights = self.log_probs(node) / temperature
        for option, child in node.successors.items():
            if not child.is_leaf and 0 < self.num_drawn.get(child, 0) < child.num_docids:
                weights[option] += self._log_remaining(child, temperature)
        return weights

    def _log_remaining(self, node: Node, temperature: float) -> float:
        """Log of the share of the node's probability that is not drawn. Sums what remains: subtracting would cancel."""
        if not node.is_evaluated:  # a stuck draw is here: only guesses come by, so guess
            return 0.0
        return _log_sum_exp(self.log_weights(node, temperature)) - _log_sum_exp(node.known_log_probs / temperature)


class Walk:
    """One draw on its way from the root to a leaf."""

    def __init__(self, root: Node, seed: int, draw: int, choose: Choose, temperature: float | None):
        self._seed, self._draw, self._choose, self._temperature = seed, draw, choose, temperature
        self._steps: list[tuple[Node, int, Node]] = []
        self.node = root
        self._rewind_to(root)

    def _rewind_to(self, root: Node) -> None:
        self.node = root
        key = np.array([self._seed % 2**64, self._draw], dtype=np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))

    def advance(self, tree: ScoredTree, overlay: Overlay) -> None:
        """Walks on until a leaf or an unscored node, and takes the path out of the tree."""
        while not self.node.is_leaf and self.node.is_evaluated:
            node, temperature = self.node, self._temperature
            weights = overlay.log_weights(node, temperature) if temperature else overlay.log_probs(node)
            option = self._choose(weights, self._random.random())
            step = (self.node, option, tree.child(self.node, option))
            overlay.take(*step)
            self._steps.append(step)
            self.node = step[2]

    def rewind(self, root: Node, overlay: Overlay) -> None:
        """Gives everything back and starts again, with the same random numbers."""
        while self._steps:
            overlay.give_back(*self._steps.pop())
        self._rewind_to(root)


def draw_leaves(
    tree: ScoredTree,
    num_draws: int,
    *,
    seed: int,
    chooser: Callable[[int], Choose],
    exact_temperature: Callable[[int], float] | None = None,
    lookahead: int,
) -> Generator[Ask, None, list[Node]]:
    """Yields the nodes to score, and returns the drawn leaves in the order of the draws.

    Args:
        tree: The query's tree; its trie is not empty.
        num_draws: How many leaves to draw; all there are if fewer.
        seed: Draw i uses the random stream (seed, i).
        chooser: How draw i picks an option.
        exact_temperature: The temperature of draw i at which drawn mass is subtracted; None renormalises locally.
        lookahead: How many draws walk side by side. It has no influence on what is drawn.

    Raises:
        ValueError: `lookahead` is below 1.
    """
    if lookahead < 1:
        raise ValueError(f"lookahead must be at least 1, got {lookahead}")
    overlay = Overlay()
    walks = [
        Walk(tree.root, seed, draw, chooser(draw), exact_temperature(draw) if exact_temperature else None)
        for draw in range(min(num_draws, tree.root.num_docids))
    ]
    num_done = 0
    while num_done < len(walks):
        underway = walks[num_done : num_done + lookahead]
        for walk in underway:
            walk.advance(tree, overlay)
        stuck = [walk.node for walk in underway if not walk.node.is_leaf]
        first_stuck = next((i for i, walk in enumerate(underway) if not walk.node.is_leaf), len(underway))
        num_done += first_stuck
        if exact_temperature:
            # The first stuck draw has seen all earlier leaves; those behind it have guessed.
            for walk in underway[first_stuck + 1 :]:
                walk.rewind(tree.root, overlay)
        if stuck:
            yield Ask(stuck)
    leaves = [walk.node for walk in walks]
    yield Ask(leaves)  # under `vocabulary` their tails are still to be scored
    return leaves


def pick_best(weights: np.ndarray, uniform: float) -> int:
    """The best option, the first of equals; greedy needs no random number."""
    return int(weights.argmax())


def pick_at_temperature(temperature: float) -> Choose:
    """Samples from softmax(weights / temperature); at 0 the best option."""
    if temperature == 0:
        return pick_best
    return lambda weights, uniform: _sample(np.exp((weights - weights.max()) / temperature), uniform)


def pick_from_nucleus(top_p: float, temperature: float) -> Choose:
    """Samples from the fewest best options that together have the probability `top_p`, at least one.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """

    def pick(weights: np.ndarray, uniform: float) -> int:
        probs = np.exp((weights - weights.max()) / temperature)
        best_first = np.argsort(-probs, kind="stable")
        cumulative = np.cumsum(probs[best_first])
        size = 1 + int(np.searchsorted(cumulative, top_p * cumulative[-1]))
        nucleus = best_first[:size]
        return int(nucleus[_sample(probs[nucleus], uniform)])

    return pick


def _sample(probs: np.ndarray, uniform: float) -> int:
    """The option drawn by a uniform number in [0, 1) in proportion to `probs`, the largest of which is 1."""
    cumulative = np.cumsum(probs)
    # 1 - uniform lies in (0, 1], so an option of probability 0 is never hit, nor the end passed.
    return int(np.searchsorted(cumulative, (1.0 - uniform) * cumulative[-1]))


def _log_sum_exp(values: np.ndarray) -> float:
    highest = values.max()
    return float(highest + np.log(np.exp(values - highest).sum()))
