"""The docid trie: which tokens may follow a prefix, and which documents lie below it.

The distinct docids are sorted by their tokens, so that the docids below any node are one contiguous range. Most docids
are unique after two to four tokens; from there on their nodes have one child each. So the trie is stored in two parts:

    head    every prefix shared by two or more docids, and the first prefix that a docid has for itself, numbered in
            level order. Children of a node are consecutive and sorted: `first_child[n] : first_child[n + 1]`.
    tails   the remaining tokens of every docid, ragged. Node `num_nodes + t` is the prefix that ends with tail token t:
            it is virtual, nothing is stored for it but that token.

Tokens are stored as indices into `vocabulary`, the sorted tokens that occur (two bytes each up to 65,535 of them).
The trie is read-only. Documents that leave it while one query is decoded are counted by the decoder, not here; those
that one user may not find are left out by a view of it, see `filter`.

Cost: building sorts four tokens at a time and only what is still tied; 1M docids of 8–11 tokens take less than a second
and 38 bytes each, and up to 100 bytes each while they are built. `children` and `ends` of one node take microseconds;
`children_batch` is vectorised. A loaded trie is a memory map that the processes of a machine share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zerogr.array_files import load_arrays, save_arrays
from zerogr.trie_build import Sequences, as_ragged, build_arrays, offsets_of, parts

if TYPE_CHECKING:
    from zerogr.filtered_trie import FilteredTrie

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


class DocidTrie:
    """A read-only trie over the token sequences of docids. Make one with `build` or `load`."""

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

    @classmethod
    def build(cls, sequences: Sequences) -> DocidTrie:
        """Builds the trie of unsorted docids, given without an end token. Row i of the input is document row i.

        Args:
            sequences: Token ids per document as lists, or `(tokens int32 [T], offsets int64 [N + 1])`. Docids may
                repeat, be prefixes of each other, or be empty.

        Raises:
            ValueError: A token id is negative, or the offsets do not describe the tokens.
        """
        tokens, offsets = as_ragged(sequences)
        return cls(build_arrays(tokens, offsets))

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

    def filter(
        self, *, allow: Sequence[int] | np.ndarray | None = None, deny: Sequence[int] | np.ndarray | None = None
    ) -> FilteredTrie:
        """A view of this trie in which only some documents exist, for the documents of one user or for outdated ones.

        Args:
            allow: Rows that may be found, in any order; None = all.
            deny: Rows that may not be found, even if they are in `allow`.

        Raises:
            ValueError: A row is not an integer, or no document has it.
        """
        from zerogr.filtered_trie import FilteredTrie  # it imports this module

        return FilteredTrie(self, allow=allow, deny=deny)

    def num_free(self, docid: Sequence[int]) -> int:
        """Returns how many tokens of a docid, its end counted as one, are written before no other docid is left.

        The rest is forced: constrained decoding never asks the model for it.

        Raises:
            ValueError: The trie does not hold the docid.
        """
        node = self.root
        for depth, token in enumerate(docid):
            if self.docids_below(node)[1] == 1 and self.tail(node).tolist() == list(docid[depth:]):
                return depth
            tokens, nodes = self.children(node)
            at = int(np.searchsorted(tokens, token))
            if at == len(tokens) or tokens[at] != token:
                break
            node = int(nodes[at])
        else:
            if len(self.ends(node)):
                return len(docid) + (self.docids_below(node)[1] > 1)
        raise ValueError(f"the trie holds no docid with the tokens {list(docid)}")

    def docid_documents(self, docid: int) -> np.ndarray:
        """Rows (int64, ascending) of the documents that carry the docid at this place of the sorted order."""
        return self.row_order[int(self.docid_rows[docid]) : int(self.docid_rows[docid + 1])].astype(np.int64)

    def tail(self, node: int) -> np.ndarray:
        """The tokens (int32) that still follow a node with one docid below it, up to the docid's end."""
        begin, end = self._tail_range(node)
        return self.vocabulary[self.tail_tokens[begin:end]]

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Writes one little-endian file per array and, last, meta.json into the local folder `path`.

        Args:
            path: Made if it does not exist.
            extra: JSON values to find again as `extra` of the loaded trie; None keeps those of this one.
        """
        counted = {"num_rows": self.num_rows, "num_docids": self.num_docids, "num_nodes": self.num_nodes}
        save_arrays(path, self._arrays(), {**counted, "extra": self.extra if extra is None else extra})

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: bool = False) -> DocidTrie:
        """Opens a saved trie as a memory map; nothing is read until it is used.

        Args:
            path: The local folder that `save` wrote.
            verify: Also compare every file with its checksum, which reads it whole.

        Raises:
            UserError: A file is missing, has the wrong size, format version or (with `verify`) content.
        """
        arrays, meta = load_arrays(path, ARRAYS, "trie", verify=verify)
        return cls(arrays, meta["extra"])

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
