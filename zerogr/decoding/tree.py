"""The tree of prefixes that one query has visited so far, with the language model's log-probabilities.

Strategies walk this tree instead of calling the model. A node is made when a walk first reaches it and scored once, in
a batch, when a strategy asks for it. What the trie already decides costs nothing:

    leaf                one docid is left below the prefix; its remaining tokens are forced
    one allowed token   its probability is 1 under `allowed`, so the model is not asked

Under `vocabulary` the forced tokens have probabilities too; the whole tail of a leaf is then scored in one batch.

The price of a decoded query is `num_scored` prefixes in `num_rounds` calls of the model; the rest is small numpy work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from zerogr.trie import DocidTrie

Scores = Callable[[list[tuple[int, ...]]], np.ndarray]
"""The language model: prefixes -> float array [len(prefixes), V], unnormalised log-probabilities of the next token."""

NORMALISATIONS = ("allowed", "vocabulary")


class Node:
    """A prefix of docids in the tree of one query. Made by `ScoredTree` only."""

    __slots__ = (
        "docid",
        "log_probs",
        "num_docids",
        "path",
        "score",
        "successors",
        "tail",
        "tokens",
        "total",
        "trie_node",
        "trie_nodes",
    )

    def __init__(self, path: tuple[int, ...], trie_node: int, score: float, docid: int, num_docids: int):
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
        self.total: float | None = None
        """Leaf: natural-log probability of the whole docid and its end; None until evaluated."""
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
        return (self.total if self.is_leaf else self.log_probs) is not None

    @property
    def known_log_probs(self) -> np.ndarray:
        """`log_probs` of an inner node that has been evaluated."""
        assert self.log_probs is not None, "the strategy must yield a node before it looks at its log-probabilities"
        return self.log_probs

    @property
    def known_total(self) -> float:
        """`total` of a leaf that has been evaluated."""
        assert self.total is not None, "the strategy must yield a leaf before it looks at its probability"
        return self.total


class ScoredTree:
    """The lazily expanded, cached tree over a read-only trie. One per decoded query."""

    def __init__(self, scores: Scores, trie: DocidTrie, eos_token_id: int, normalise: str):
        self._scores = scores
        self._trie = trie
        self._eos_token_id = eos_token_id
        self._normalise = normalise
        self.num_scored = 0
        """Prefixes the model has scored."""
        self.num_rounds = 0
        """Calls of the model."""
        self.root = self._make((), trie.root, 0.0)

    def child(self, node: Node, option: int) -> Node:
        """The node behind `node.tokens[option]`; `node` must be evaluated."""
        successor = node.successors.get(option)
        if successor is None:
            token, trie_node = int(node.tokens[option]), int(node.trie_nodes[option])
            path, score = (*node.path, token), node.score + float(node.known_log_probs[option])
            if token == self._eos_token_id:
                successor = self._make_leaf(path, trie_node, score, node.docid, tail=())
            else:
                successor = self._make(path, trie_node, score)
            node.successors[option] = successor
        return successor

    def evaluate(self, nodes: Sequence[Node]) -> None:
        """Asks the model, in one call, for what is not yet known about `nodes`."""
        waiting = [node for node in dict.fromkeys(nodes) if not node.is_evaluated]
        if not waiting:
            return
        # One prefix per inner node; per leaf one for each token of its tail.
        prefixes = [node.path + node.tail[:length] for node in waiting for length in range(max(1, len(node.tail)))]
        logits = np.asarray(self._scores(prefixes))
        self.num_scored += len(prefixes)
        self.num_rounds += 1
        begin = 0
        for node in waiting:
            end = begin + max(1, len(node.tail))
            if node.is_leaf:
                tail = np.array(node.tail)
                forced = [self._log_probs(logits[begin + i], tail[i : i + 1])[0] for i in range(len(tail))]
                node.total = node.score + float(sum(forced))
            else:
                node.log_probs = self._log_probs(logits[begin], node.tokens)
            begin = end

    def rows(self, leaf: Node) -> np.ndarray:
        """Rows (int64, ascending) of the documents that carry the leaf's docid."""
        return self._trie.docid_documents(leaf.docid)

    def _make(self, path: tuple[int, ...], trie_node: int, score: float) -> Node:
        first, last = self._trie.docid_range(trie_node)
        if last - first == 1:
            tail = (*self._trie.tail(trie_node).tolist(), self._eos_token_id)
            return self._make_leaf(path, trie_node, score, first, tail)
        node = Node(path, trie_node, score, first, last - first)
        tokens, trie_nodes = self._trie.children(trie_node)
        node.tokens, node.trie_nodes = tokens.astype(np.int64), trie_nodes
        if len(self._trie.ends(trie_node)):
            place = int(np.searchsorted(node.tokens, self._eos_token_id))
            node.tokens = np.insert(node.tokens, place, self._eos_token_id)
            node.trie_nodes = np.insert(node.trie_nodes, place, trie_node)
        if len(node.tokens) == 1 and self._normalise == "allowed":
            node.log_probs = np.zeros(1)
        return node

    def _make_leaf(
        self, path: tuple[int, ...], trie_node: int, score: float, docid: int, tail: tuple[int, ...]
    ) -> Node:
        leaf = Node(path, trie_node, score, docid, num_docids=1)
        leaf.tail = tail
        if self._normalise == "allowed" or not tail:
            leaf.total = score
        return leaf

    def _log_probs(self, logits_V: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Log-probabilities (float64 [C]) of the allowed tokens (int [C]) under the normalisation."""
        logits_C = logits_V[allowed].astype(np.float64)
        among = logits_C if self._normalise == "allowed" else logits_V
        highest = float(among.max())
        log_probs = logits_C - (highest + np.log(np.exp(among - highest).sum(dtype=np.float64)))
        if not np.isfinite(log_probs).all():
            raise ValueError(f"scores must be finite for allowed tokens, got {logits_C} for tokens {allowed}")
        return log_probs
