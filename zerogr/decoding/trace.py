"""The path of a docid: what the model thought of each of its tokens, and what it would rather have written.

For finding out why a document was missed. All docids of all queries are walked side by side in one tree per query, so that
a trace costs as many calls of the model as the longest path has choices. Normalised over the allowed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zerogr.decoding.scoring import Scorer
from zerogr.decoding.tree import Ask, Node, ScoredTree, Trie


class Step(NamedTuple):
    """One token of a docid, the end token included."""

    token: int
    log_prob: float
    """Natural logarithm; 0 where no other token is allowed."""
    rank: int
    """Among the allowed tokens, 1 = the likeliest; equal ones share the better rank."""
    num_allowed: int
    best: int
    """The likeliest allowed token."""
    best_log_prob: float


def trace_batch(
    scorer: Scorer, trie: Trie, docids: Sequence[Sequence[Sequence[int]]], *, eos_token_id: int
) -> list[list[list[Step]]]:
    """Returns the steps of docids, query by query.

    Args:
        scorer: The language model with the queries' prompts.
        trie: That holds the docids.
        docids: For each query the tokens of some docids, without the end token.
        eos_token_id: Ends a docid.

    Raises:
        ValueError: A docid is not in the trie.
    """
    trees = [ScoredTree(trie, eos_token_id, "allowed", query) for query in range(len(docids))]
    walks = [
        [_Walk(tree, [*tokens, eos_token_id]) for tokens in wanted] for tree, wanted in zip(trees, docids, strict=True)
    ]
    while underway := [
        (tree, still_open)
        for tree, of_tree in zip(trees, walks, strict=True)
        if (still_open := [walk for walk in of_tree if walk.is_open])
    ]:
        asked = [tree.requests(Ask([walk.node for walk in still_open])) for tree, still_open in underway]
        if requests := [request for _, of_tree in asked for request in of_tree]:
            answers = iter(scorer.log_probs(requests, "allowed"))
            for (tree, _), (nodes, _) in zip(underway, asked, strict=True):
                tree.accept(nodes, [next(answers) for _ in nodes])
        for _, still_open in underway:
            for walk in still_open:
                walk.advance()
    return [[walk.steps for walk in of_tree] for of_tree in walks]


class _Walk:
    """One docid's way down the tree."""

    def __init__(self, tree: ScoredTree, tokens: list[int]):
        self.tree, self.node = tree, tree.root
        self.steps: list[Step] = []
        self._tokens = tokens

    @property
    def is_open(self) -> bool:
        """Whether there are tokens left."""
        return len(self.steps) < len(self._tokens)

    def advance(self) -> None:
        """Goes down by one token, or by all that are forced at the end."""
        node, left = self.node, self._tokens[len(self.steps) :]
        if node.is_leaf:
            if list(node.tail) != left:
                raise self._unknown()
            self.steps += [Step(token, 0.0, 1, 1, token, 0.0) for token in left]
            return
        option = int(np.searchsorted(node.tokens, left[0]))
        if option == len(node.tokens) or node.tokens[option] != left[0]:
            raise self._unknown()
        self.steps.append(_step(node, option))
        self.node = self.tree.child(node, option)

    def _unknown(self) -> ValueError:
        return ValueError(f"the trie holds no docid with the tokens {self._tokens[:-1]}")


def _step(node: Node, option: int) -> Step:
    log_probs = node.known_log_probs
    best = int(np.argmax(log_probs))
    rank = 1 + int((log_probs > log_probs[option]).sum())
    return Step(
        int(node.tokens[option]),
        float(log_probs[option]),
        rank,
        len(log_probs),
        int(node.tokens[best]),
        float(log_probs[best]),
    )
