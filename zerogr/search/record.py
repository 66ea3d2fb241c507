"""A recorded search: which prefixes of docids it considered, how likely they were, and which of them became hits.

Whatever its strategy, a search leaves a tree of scored prefixes behind (`zerogr.decoding.tree`). `record` keeps a part of it
that a person can read: the paths of the hits, the first hit's first, and then the likeliest of all other prefixes, at most
`most_children` after each prefix and `most_branches` in all. What is left out is counted where it is left out.

Cost: one look at every evaluated prefix, and at the trie for what is kept; the model is asked nothing.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from zerogr.decoding.decoder import DecodedList
from zerogr.decoding.tree import Node, ScoredTree
from zerogr.ranking.ranker import Part
from zerogr.search.answer import Hit

MOST_CHILDREN = 5
MOST_BRANCHES = 200
MOST_PARTS = 16
"""Of a document's score, the largest."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A prefix of docids: that of its parent and one token more. The root is the empty prefix."""

    token: str
    """The last token's text; `<end>` where the docid ends, empty at the root."""
    log_prob: float
    """Natural-log probability of the token after the parent's prefix."""
    path_log_prob: float
    """Natural-log probability of the whole prefix: that of the parent, plus `log_prob`."""
    num_docids: int
    """Docids that begin with the prefix, of those that may be found."""
    is_followed: bool
    """Whether the search looked at what may come next; false = it was given up, or never reached."""
    best_rank: int | None = None
    """Of the hits below the prefix, from 1; None = none is below."""
    num_hits: int = 0
    docid: str | None = None
    """The only docid below, whole; None where several are."""
    rest: str | None = None
    """Of the only docid below: the text that is still to come, and certain under `allowed`."""
    children: list[Branch] = field(default_factory=list)
    """The likeliest first."""
    num_left_out: int = 0
    """Tokens that may come next too and are not among the children; 0 where nothing was asked."""
    left_out_probability: float = 0.0
    """Of all of those together."""

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """Returns the branch that `asdict` has made a value of; keys that are unknown are passed over."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**{**known, "children": [cls.of(child) for child in value["children"]]})


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one query's search."""

    strategy: str
    num_docids: int
    """That may be found."""
    num_scored: int
    """Prefixes that the model was asked about."""
    num_rounds: int
    """Calls of the model."""
    num_considered: int
    """Prefixes that were given a probability."""
    num_shown: int
    """Of those, the ones that are kept here."""
    most_children: int
    """Kept after each prefix, those on the paths of hits not counted."""
    most_branches: int
    """Kept in all."""
    bound_hit: bool
    """Whether an exact search was ended early."""
    root: Branch

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """Returns the record that `asdict` has made a value of; keys that are unknown are passed over."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**{**known, "root": Branch.of(value["root"])})


@dataclass(frozen=True, slots=True)
class Explained:
    """A query's hits and how they came about: by a tree, or by sums."""

    hits: list[Hit]
    tree: Record | None
    """None where scores are sums, or no document may be found."""
    parts: list[list[Part]] | None
    """What each hit's score is the sum of, the `MOST_PARTS` largest; None where docids are written token by token."""

    def as_json(self) -> dict[str, Any]:
        """Returns all of it in plain values; the parts stand in the hits."""
        hits = [hit.as_json() for hit in self.hits]
        for hit, parts in zip(hits, self.parts or (), strict=False):
            hit["parts"] = [part._asdict() for part in parts]
        return {"hits": hits, "tree": asdict(self.tree) if self.tree else None}


class Texts(NamedTuple):
    """How tokens are read."""

    token: Callable[[int], str]
    tokens: Callable[[Sequence[int]], str]
    """Leaves out the end of a docid."""
    docid: Callable[[Sequence[int]], str]


def record(
    tree: ScoredTree,
    found: DecodedList,
    rows: Sequence[int],
    texts: Texts,
    *,
    strategy: str,
    most_children: int = MOST_CHILDREN,
    most_branches: int = MOST_BRANCHES,
) -> Record:
    """Returns what is kept of a search that is done.

    Args:
        tree: That it has walked.
        found: What it has found there.
        rows: Of the hits, best first; each is among what was found.
        texts: Of tokens.
        strategy: Its name.
        most_children, most_branches: See `Record`. Paths of hits get half of the branches, that of the first hit all it needs.
    """
    kept = _Kept(tree, texts, most_children)
    tokens_of = {each.row: each.tokens for each in found}
    for rank, row in enumerate(rows, 1):
        kept.mark(rank, kept.path(tokens_of[row]), most_branches // 2)
    kept.fill(most_branches)
    return Record(
        strategy=strategy,
        num_docids=tree.root.num_docids,
        num_scored=found.num_scored,
        num_rounds=found.num_rounds,
        num_considered=_num_considered(tree.root),
        num_shown=kept.num_shown,
        most_children=most_children,
        most_branches=most_branches,
        bound_hit=found.bound_hit,
        root=kept.branch(tree.root, "", 0.0, is_followed=True),
    )


_Step = tuple[Node, int]
"""A node and an option of it."""


class _Kept:
    """The options that are kept, node by node."""

    def __init__(self, tree: ScoredTree, texts: Texts, most_children: int) -> None:
        self._tree, self._texts, self._most_children = tree, texts, most_children
        self._options: dict[Node, set[int]] = defaultdict(set)
        self._ranks: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """Path -> the ranks of the hits below, ascending."""
        self.num_shown = 0

    def path(self, docid: tuple[int, ...]) -> list[_Step]:
        """Returns the steps to the leaf of a docid that was found."""
        node, steps, tokens = self._tree.root, list[_Step](), (*docid, self._tree.eos_token_id)
        while not node.is_leaf:
            option = int(np.searchsorted(node.tokens, tokens[len(node.path)]))
            steps.append((node, option))
            node = node.successors[option]
        return steps

    def mark(self, rank: int, path: list[_Step], most: int) -> None:
        """Notes a hit at all prefixes of its path, and keeps these where there is room for all of them."""
        self._ranks[()].append(rank)
        for node, option in path:
            self._ranks[(*node.path, int(node.tokens[option]))].append(rank)
        new = [(node, option) for node, option in path if option not in self._options.get(node, ())]
        if rank == 1 or self.num_shown + len(new) <= most:
            for node, option in new:
                self._keep(node, option)

    def fill(self, most: int) -> None:
        """Keeps the likeliest prefixes besides, each after its parent, until there are so many."""
        queue: list[tuple[float, tuple[int, ...], Node, int]] = []

        def open_(node: Node) -> None:
            if node.is_leaf or node.log_probs is None:
                return
            already = self._options.get(node, set())
            order = np.argsort(-node.log_probs, kind="stable")[: self._most_children + len(already)].tolist()
            for option in [option for option in order if option not in already][: self._most_children]:
                path = (*node.path, int(node.tokens[option]))
                heapq.heappush(queue, (-node.score - float(node.log_probs[option]), path, node, option))

        for node in dict.fromkeys([self._tree.root, *self._options]):
            open_(node)
        while queue and self.num_shown < most:
            _, _, node, option = heapq.heappop(queue)
            self._keep(node, option)
            if (successor := node.successors.get(option)) is not None:
                open_(successor)

    def branch(self, node: Node, token: str, log_prob: float, *, is_followed: bool) -> Branch:
        """Returns a node and what is kept below it."""
        ranks = self._ranks.get(node.path, [])
        children, left_out, left_out_probability = list[Branch](), 0, 0.0
        if not node.is_leaf and node.log_probs is not None and is_followed:
            options = sorted(self._options.get(node, ()), key=lambda option: (-node.known_log_probs[option], option))
            children = [self._child(node, option) for option in options]
            left_out = len(node.tokens) - len(options)
            left_out_probability = float(np.exp(np.delete(node.log_probs, options)).sum())
        return Branch(
            token=token,
            log_prob=log_prob,
            path_log_prob=node.score,
            num_docids=node.num_docids,
            is_followed=is_followed,
            best_rank=min(ranks, default=None),
            num_hits=len(ranks),
            docid=self._texts.docid((node.path + node.tail)[:-1]) if node.is_leaf else None,
            rest=self._texts.tokens(node.tail) if node.is_leaf else None,
            children=children,
            num_left_out=left_out,
            left_out_probability=left_out_probability,
        )

    def _child(self, node: Node, option: int) -> Branch:
        child = self._tree.peek(node, option)
        is_followed = option in node.successors and child.is_evaluated
        token = self._texts.token(int(node.tokens[option]))
        return self.branch(child, token, float(node.known_log_probs[option]), is_followed=is_followed)

    def _keep(self, node: Node, option: int) -> None:
        self._options[node].add(option)
        self.num_shown += 1


def _num_considered(root: Node) -> int:
    """Returns how many prefixes below a node have a probability."""
    count, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        if not node.is_leaf and node.log_probs is not None:
            count += len(node.tokens)
            waiting += node.successors.values()
    return count
