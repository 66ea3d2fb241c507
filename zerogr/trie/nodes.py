"""The arrays of a docid trie, and how to walk them; see `zerogr.trie.trie` for what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from zerogr.ragged import offsets_of, ranges
from zerogr.trie.build import parts

ARRAYS = (
    "vocabulary",
    "edge_token",
    "first_child",
    "first_docid",
    "tail_tokens",
    "tail_offsets",
    "docid_rows",
    "row_order",
)


class StoredTrie:
    """A read-only trie over the token sequences of docids."""

    root: int = 0
    """The node of the empty prefix. Nodes are ints; ids from `num_nodes` on are virtual nodes inside a tail."""

    def __init__(self, arrays: dict[str, np.ndarray], extra: dict[str, Any] | None = None):
        """Wraps the arrays named in `ARRAYS`; D is the number of distinct docids, M of stored nodes, N of documents."""
        self.vocabulary = arrays["vocabulary"]  # int32 [tokens that occur], sorted
        self.edge_token = arrays["edge_token"]  # [M] vocabulary index of the token that leads to the node
        self.first_child = arrays["first_child"]  # [M + 1]
        self.first_docid = arrays["first_docid"]  # [M] the first docid of the node's range
        self.tail_tokens = arrays["tail_tokens"]  # [tokens in tails] vocabulary indices
        self.tail_offsets = arrays["tail_offsets"]  # [D + 1]
        self.docid_rows = arrays["docid_rows"]  # [D + 1] range of the docid in `row_order`
        self.row_order = arrays["row_order"]  # [N] rows sorted by docid, then row
        self.extra: dict[str, Any] = dict(extra or {})
        """What was saved with the trie, such as the hash of the tokenizer."""

    @property
    def num_nodes(self) -> int:
        """The number of stored nodes, the root included."""
        return len(self.first_docid)

    @property
    def num_docids(self) -> int:
        """The number of distinct docids."""
        return len(self.tail_offsets) - 1 if len(self.row_order) else 0

    @property
    def num_rows(self) -> int:
        """The number of documents; more than `num_docids` where documents share a docid."""
        return len(self.row_order)

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(array.nbytes for array in self._arrays().values())

    def children(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (int32 [C], ascending) that may follow `node`, and the nodes (int64 [C]) they lead to."""
        if node < self.num_nodes:
            begin, end = int(self.first_child[node]), int(self.first_child[node + 1])
            if begin < end:
                return self.vocabulary[self.edge_token[begin:end]], np.arange(begin, end, dtype=np.int64)
        begin, end = self._tail_range(node)
        end = min(begin + 1, end)
        return self.vocabulary[self.tail_tokens[begin:end]], np.arange(begin, end, dtype=np.int64) + self.num_nodes

    def children_batch(self, nodes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The children of many nodes: (tokens int32 [C], nodes int64 [C], offsets int64 [len(nodes) + 1]), ragged."""
        nodes = np.asarray(nodes, dtype=np.int64)
        is_stored = nodes < self.num_nodes
        stored = np.where(is_stored, nodes, 0)
        begin = self.first_child[stored].astype(np.int64)
        num_children = np.where(is_stored, self.first_child[stored + 1] - begin, 0)
        # Where the head has no children, the next tail token is the only child, if there is one.
        position = nodes - self.num_nodes
        docid = np.where(is_stored, self.first_docid[stored], self._docid_of_tail(position))
        next_tail = np.where(is_stored, self.tail_offsets[docid], position + 1).astype(np.int64)
        in_tail = (num_children == 0) & (next_tail < self.tail_offsets[docid + 1])
        num_children = np.where(in_tail, 1, num_children)

        offsets = offsets_of(num_children)
        children = np.repeat(np.where(in_tail, next_tail + self.num_nodes, begin) - offsets[:-1], num_children)
        children += np.arange(offsets[-1])
        tokens = np.empty(len(children), dtype=np.int32)
        from_head = children < self.num_nodes
        tokens[from_head] = self.vocabulary[self.edge_token[children[from_head]]]
        tokens[~from_head] = self.vocabulary[self.tail_tokens[children[~from_head] - self.num_nodes]]
        return tokens, children, offsets

    def ends(self, node: int) -> np.ndarray:
        """Rows (int64 [E], ascending) of the documents whose docid ends exactly at `node`."""
        if node < self.num_nodes:
            child = int(self.first_child[node])
            if child < self.first_child[node + 1]:
                # A docid sorts before all its continuations: it is the first of its node's range, but in no child's.
                ends_here = self.first_docid[child] != self.first_docid[node]
                return self.docid_documents(int(self.first_docid[node])) if ends_here else np.empty(0, dtype=np.int64)
        begin, end = self._tail_range(node)
        return self.docid_documents(self.docid_range(node)[0]) if begin == end else np.empty(0, dtype=np.int64)

    def is_end(self, nodes: np.ndarray) -> np.ndarray:
        """Whether a docid ends exactly at each of many nodes (int64 [n]), bool [n]."""
        is_stored = nodes < self.num_nodes
        stored = np.where(is_stored, nodes, 0)
        child = self.first_child[stored]
        has_children = is_stored & (child < self.first_child[stored + 1])
        ends_before_children = self.first_docid[np.minimum(child, self.num_nodes - 1)] != self.first_docid[stored]
        position = nodes - self.num_nodes
        docid = np.where(is_stored, self.first_docid[stored], self._docid_of_tail(position))
        next_tail = np.where(is_stored, self.tail_offsets[docid], position + 1)
        is_over: np.ndarray = np.where(has_children, ends_before_children, next_tail == self.tail_offsets[docid + 1])
        return is_over

    def rows(self, node: int) -> np.ndarray:
        """Rows (int64 [R]) of all documents below `node`, sorted by docid, then row."""
        first, last = self.docid_range(node)
        return self.row_order[int(self.docid_rows[first]) : int(self.docid_rows[last])].astype(np.int64)

    def docid_range(self, node: int) -> tuple[int, int]:
        """The range (first, last + 1) of the sorted distinct docids that begin with the prefix `node`."""
        if node >= self.num_nodes:
            docid = int(self._docid_of_tail(node - self.num_nodes))
            return docid, docid + 1
        first = int(self.first_docid[node])
        while self.first_child[node] < self.first_child[node + 1]:  # the last leaf below holds the last docid
            node = int(self.first_child[node + 1]) - 1
        return first, int(self.first_docid[node]) + 1

    def docids_below(self, node: int) -> tuple[int, int]:
        """The place of the first distinct docid below `node` in the sorted order, and how many there are below."""
        first, last = self.docid_range(node)
        return first, last - first if len(self.row_order) else 0

    def docids_of_rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The place in the sorted order (int64 [R]) of the docid of each document row.

        The first call turns `row_order` around, which takes time for every document of the trie, and keeps the result:
        four bytes per document, in this process alone.

        Raises:
            ValueError: A row is not an integer, or no document has it.
        """
        rows = np.asarray(rows)
        if rows.size == 0:
            return np.empty(0, dtype=np.int64)
        if rows.dtype.kind not in "iu":
            raise ValueError(f"rows must be integers, got {rows.dtype}")
        is_wrong = (rows < 0) | (rows >= self.num_rows)
        if is_wrong.any():
            raise ValueError(f"row {rows[is_wrong][0]} does not exist: the trie has {self.num_rows} documents")
        return self._docid_of_row[rows].astype(np.int64)

    def find(self, docid: Sequence[int]) -> int:
        """Returns the place in the sorted order of the docid with these tokens, -1 if there is none."""
        node = self.root
        for depth, token in enumerate(docid):
            begin, end = int(self.first_child[node]), int(self.first_child[node + 1])
            if begin == end:
                return int(self.first_docid[node]) if self.tail(node).tolist() == list(docid[depth:]) else -1
            tokens = self.vocabulary[self.edge_token[begin:end]]
            option = int(np.searchsorted(tokens, token))
            if option == len(tokens) or tokens[option] != token:
                return -1
            node = begin + option
        return int(self.first_docid[node]) if self.num_rows and len(self.ends(node)) else -1

    def num_free(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each docid, its end counted as one, are written before no other docid is left.

        The rest is forced: constrained decoding never asks the model for it.

        Args:
            tokens: Of the docids, one behind the other; int [T].
            offsets: Where each begins; int64 [docids + 1].

        Returns:
            int64 [docids].

        Raises:
            ValueError: The trie does not hold one of them.
        """
        codes = np.searchsorted(self.vocabulary, tokens)
        codes[np.append(self.vocabulary, -1)[codes] != tokens] = -1
        lengths, walking = np.diff(offsets), np.arange(len(offsets) - 1 if self.num_rows else 0)
        num_free, is_held = np.zeros(len(lengths), dtype=np.int64), np.zeros(len(lengths), dtype=bool)
        node, depth = np.zeros(len(walking), dtype=np.int64), 0
        while len(walking):
            place, num_left = offsets[walking] + depth, lengths[walking] - depth
            is_alone = self.first_child[node] == self.first_child[node + 1]
            num_free[walking] = np.where(is_alone, depth, depth + 1)
            is_rest = self._is_tail(node, codes, place, num_left)
            is_held[walking] = np.where(is_alone, is_rest, (num_left == 0) & self.is_end(node))
            going = np.flatnonzero(~is_alone & (num_left > 0))
            child = self._child(node[going], codes[place[going]])
            walking, node, depth = walking[going[child >= 0]], child[child >= 0], depth + 1
        if not is_held.all():
            of_docid = slice(*offsets[np.flatnonzero(~is_held)[0] :][:2])
            raise ValueError(f"the trie holds no docid with the tokens {np.asarray(tokens)[of_docid].tolist()}")
        return num_free

    def _is_tail(self, node: np.ndarray, codes: np.ndarray, begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether `lengths` (int64 [n]) vocabulary indices from `begin` on are the tail of a node's first docid, bool [n]."""
        docid = self.first_docid[node]
        tail = self.tail_offsets[docid].astype(np.int64)
        is_tail: np.ndarray = self.tail_offsets[docid + 1] - tail == lengths
        at = np.flatnonzero(is_tail)
        differs = self.tail_tokens[ranges(tail[at], lengths[at])] != codes[ranges(begin[at], lengths[at])]
        is_tail[np.repeat(at, lengths[at])[differs]] = False
        return is_tail

    def _child(self, node: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Returns the stored child of each node (int64 [n]) for a vocabulary index, -1 where there is none."""
        low, end = (self.first_child[at].astype(np.int64) for at in (node, node + 1))
        high, last = end, self.num_nodes - 1
        while (is_open := low < high).any():
            middle = (low + high) // 2
            is_before = self.edge_token[np.minimum(middle, last)] < codes
            low, high = np.where(is_open & is_before, middle + 1, low), np.where(is_open & ~is_before, middle, high)
        return np.where((low < end) & (self.edge_token[np.minimum(low, last)] == codes), low, -1)

    def docid_documents(self, docid: int) -> np.ndarray:
        """Rows (int64, ascending) of the documents that carry the docid at this place of the sorted order."""
        return self.row_order[int(self.docid_rows[docid]) : int(self.docid_rows[docid + 1])].astype(np.int64)

    def tail(self, node: int) -> np.ndarray:
        """The tokens (int32) that still follow a node with one docid below it, up to the docid's end."""
        begin, end = self._tail_range(node)
        return self.vocabulary[self.tail_tokens[begin:end]]

    def docid_tokens(self, docids: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens (int32) of the docids at some places of the sorted order (int64 [n])."""
        first_child, first_docid = np.asarray(self.first_child), np.asarray(self.first_docid)
        node = np.zeros(len(docids), dtype=np.int64)
        walking = np.arange(len(docids))
        codes: list[list[int]] = [[] for _ in docids]
        while len(walking):
            # The last child that does not begin behind the docid; before the first one, the docid ends here.
            low, high = first_child[node].astype(np.int64) - 1, first_child[node + 1].astype(np.int64)
            begin, wanted = low + 1, docids[walking]
            while (is_wide := high - low > 1).any():
                middle = (low + high) // 2
                is_before = first_docid[middle] <= wanted
                low, high = np.where(is_wide & is_before, middle, low), np.where(is_wide & ~is_before, middle, high)
            is_on = low >= begin
            node, walking = low[is_on], walking[is_on]
            for place, code in zip(walking.tolist(), self.edge_token[node].tolist(), strict=True):
                codes[place].append(code)
        tails = zip(self.tail_offsets[docids].tolist(), self.tail_offsets[docids + 1].tolist(), strict=True)
        return [
            self.vocabulary[np.concatenate([np.array(head, dtype=np.int64), self.tail_tokens[begin:end]])]
            for head, (begin, end) in zip(codes, tails, strict=True)
        ]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ARRAYS}

    @cached_property
    def _docid_of_row(self) -> np.ndarray:
        """[N] the place in the sorted order of the docid of every document row."""
        docid_of_row = np.empty(self.num_rows, dtype=self.docid_rows.dtype)
        for part in parts(self.num_docids):
            ranges = self.docid_rows[part.start : part.stop + 1]
            rows = self.row_order[ranges[0] : ranges[-1]]
            docid_of_row[rows] = np.repeat(np.arange(part.start, part.stop), np.diff(ranges))
        return docid_of_row

    def _docid_of_tail(self, position: int | np.ndarray) -> np.ndarray:
        """The docid whose tail holds the token at `position` of `tail_tokens` (-1 for negative positions)."""
        # With any other dtype, searchsorted would first convert the whole array.
        wanted = np.asarray(position, dtype=self.tail_offsets.dtype)
        return np.searchsorted(self.tail_offsets, wanted, side="right") - 1

    def _tail_range(self, node: int) -> tuple[int, int]:
        """Where in `tail_tokens` the rest of the one docid below `node` lies."""
        docid = self.docid_range(node)[0]
        begin = int(self.tail_offsets[docid]) if node < self.num_nodes else node - self.num_nodes + 1
        return begin, int(self.tail_offsets[docid + 1])
