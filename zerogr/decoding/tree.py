"""The tree of prefixes that one query has visited so far, with the language model's log-probabilities.

Strategies walk this tree instead of calling the model. A node is made when a walk first reaches it and scored once, in
a batch, when a strategy asks for it. What the trie already decides costs nothing:

    leaf                one docid is left below the prefix; its remaining tokens are forced
    one allowed token   its probability is 1 under `allowed`, so the model is not asked

Under `vocabulary` the forced tokens have probabilities too; the tail of a leaf is then scored in one pass, or token by token
where a strategy may give the leaf up on the way.

The price of a decoded query is `num_scored` prefixes in `num_rounds` calls of the model; the rest is small numpy work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zerogr.decoding.scoring import Prefix, Request
from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.grown import GrownTrie

Trie = DocidTrie | FilteredTrie | GrownTrie
"""All documents of an index, or the view of those that a query may find."""


class Node:
    """A prefix of docids in the tree of one query. Made by `ScoredTree` only."""

    __slots__ = (
        "bound",
        "docid",
        "log_probs",
        "num_docids",
        "num_forced_scored",
        "path",
        "score",
        "successors",
        "tail",
        "tokens",
        "trie_node",
        "trie_nodes",
    )

    def __init__(self, path: Prefix, trie_node: int, score: float, docid: int, num_docids: int):
        self.path = path
        """The tokens from the root; the last one is the end token where the docid has ended."""
        self.trie_node = trie_node
        self.score = score
        """Natural-log probability of `path` at temperature 1."""
        self.docid = docid
        """Place of the first docid below in the sorted order of the trie."""
        self.num_docids = num_docids
        """How many distinct docids lie below."""
        self.tail: tuple[int, ...] = ()
        """Leaf: the forced tokens after `path`, the end token included."""
        self.num_forced_scored = 0
        """Leaf: how many tokens of the tail are scored, or need not be."""
        self.bound = score
        """Natural-log probability of `path` and, of a leaf, the scored part of the tail: no docid below has more."""
        self.tokens = np.empty(0, dtype=np.int64)
        """Inner node: the allowed tokens, ascending; the end token is among them where a docid ends."""
        self.trie_nodes = np.empty(0, dtype=np.int64)
        """Inner node: where each allowed token leads in the trie; the node itself for the end token."""
        self.log_probs: np.ndarray | None = None
        """Inner node: float64 [len(tokens)], None until evaluated."""
        self.successors: dict[int, Node] = {}
        """Inner node: the nodes made so far, by index into `tokens`."""

    @property
    def is_leaf(self) -> bool:
        """Whether one docid is left."""
        return self.num_docids == 1

    @property
    def is_evaluated(self) -> bool:
        """Whether everything the model has to say about this node is known."""
        return self.num_forced_scored == len(self.tail) if self.is_leaf else self.log_probs is not None

    @property
    def known_log_probs(self) -> np.ndarray:
        """`log_probs` of an inner node that has been evaluated."""
        assert self.log_probs is not None, "the strategy must yield a node before it looks at its log-probabilities"
        return self.log_probs

    @property
    def total(self) -> float:
        """Natural-log probability of the whole docid and its end; of a leaf that has been evaluated."""
        assert self.is_evaluated, "the strategy must yield a leaf before it looks at its probability"
        return self.bound


class Ask(NamedTuple):
    """What a policy needs from the model before it goes on."""

    nodes: Sequence[Node]
    """May hold nodes that are evaluated already."""
    num_forced: int | None = None
    """Forced tokens to score per leaf; None = all that are left, in the same pass."""


class ScoredTree:
    """The lazily expanded, cached tree over a read-only trie. One per decoded query."""

    def __init__(self, trie: Trie, eos_token_id: int, normalise: str, query: int = 0):
        self._trie = trie
        self.eos_token_id = eos_token_id
        """Ends a docid."""
        self._normalise = normalise
        self._query = query
        self.num_scored = 0
        """Prefixes the model has scored."""
        self.num_rounds = 0
        """Calls of the model."""
        self.root = self._make((), trie.root, 0.0)

    def child(self, node: Node, option: int) -> Node:
        """The node behind `node.tokens[option]`; `node` must be evaluated."""
        successor = node.successors.get(option)
        if successor is None:
            successor = node.successors[option] = self.peek(node, option)
        return successor

    def peek(self, node: Node, option: int) -> Node:
        """The same, but a node that no walk has reached is not kept."""
        if option in node.successors:
            return node.successors[option]
        token, trie_node = int(node.tokens[option]), int(node.trie_nodes[option])
        path, score = (*node.path, token), node.score + float(node.known_log_probs[option])
        if token == self.eos_token_id:
            return self._make_leaf(path, trie_node, score, node.docid, tail=())
        return self._make(path, trie_node, score)

    def requests(self, ask: Ask) -> tuple[list[Node], list[Request]]:
        """What is not yet known about the nodes: the requests to the model, and the node that each is for."""
        nodes, requests = [], []
        for node in dict.fromkeys(ask.nodes):
            if node.is_evaluated:
                continue
            if not node.is_leaf:
                nodes.append(node)
                requests.append(Request(self._query, node.path, node.tokens))
                continue
            begin, end = node.num_forced_scored, len(node.tail)
            if ask.num_forced is not None:
                end = min(end, begin + ask.num_forced)
            tail = np.array(node.tail)
            nodes += [node] * (end - begin)
            requests += [Request(self._query, node.path + node.tail[:i], tail[i : i + 1]) for i in range(begin, end)]
        if requests:
            self.num_scored += len(requests)
            self.num_rounds += 1
        return nodes, requests

    def accept(self, nodes: Sequence[Node], log_probs: Sequence[np.ndarray]) -> None:
        """Takes the model's answers to `requests`."""
        for node, answer in zip(nodes, log_probs, strict=True):
            if node.is_leaf:
                node.bound += float(answer[0])
                node.num_forced_scored += 1
            else:
                node.log_probs = answer

    def rows(self, leaf: Node) -> np.ndarray:
        """Rows (int64, ascending) of the documents that carry the leaf's docid."""
        return self._trie.docid_documents(leaf.docid)

    def _make(self, path: Prefix, trie_node: int, score: float) -> Node:
        first, num_docids = self._trie.docids_below(trie_node)
        if num_docids == 1:
            tail = (*self._trie.tail(trie_node).tolist(), self.eos_token_id)
            return self._make_leaf(path, trie_node, score, first, tail)
        node = Node(path, trie_node, score, first, num_docids)
        tokens, trie_nodes = self._trie.children(trie_node)
        node.tokens, node.trie_nodes = tokens.astype(np.int64), trie_nodes
        if len(self._trie.ends(trie_node)):
            place = int(np.searchsorted(node.tokens, self.eos_token_id))
            node.tokens = np.insert(node.tokens, place, self.eos_token_id)
            node.trie_nodes = np.insert(node.trie_nodes, place, trie_node)
        if len(node.tokens) == 1 and self._normalise == "allowed":
            node.log_probs = np.zeros(1)
        return node

    def _make_leaf(self, path: Prefix, trie_node: int, score: float, docid: int, tail: tuple[int, ...]) -> Node:
        leaf = Node(path, trie_node, score, docid, num_docids=1)
        leaf.tail = tail
        if self._normalise == "allowed":
            leaf.num_forced_scored = len(tail)
        return leaf
