"""The docid trie: which tokens may follow a prefix, and which documents lie below it.

The distinct docids are sorted by their tokens, so that the docids below any node are one contiguous range. Most docids
are unique after two to four tokens; from there on their nodes have one child each. So the trie is stored in two parts:

    head    every prefix shared by two or more docids, and the first prefix that a docid has for itself, numbered in
            level order. Children of a node are consecutive and sorted: `first_child[n] : first_child[n + 1]`.
    tails   the remaining tokens of every docid, ragged. Node `num_nodes + t` is the prefix that ends with tail token t:
            it is virtual, nothing is stored for it but that token.

Tokens are stored as indices into `vocabulary`, the sorted tokens that occur (two bytes each up to 65,535 of them).
The trie is read-only. Documents that leave it while one query is decoded are counted by the decoder, not here.

Cost: building sorts four tokens at a time and only what is still tied; 1M docids of 8–11 tokens take less than a second
and 35 bytes each. `children` and `ends` of one node take microseconds; `children_batch` is vectorised. A loaded trie is
a memory map that the processes of a machine share.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from zerogr.errors import UserError

FORMAT_VERSION = 1
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

Sequences = Sequence[Sequence[int]] | tuple[np.ndarray, np.ndarray]


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
        tokens, offsets = _as_ragged(sequences)
        return cls(_build_arrays(tokens, offsets))

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

        offsets = _offsets_of(num_children)
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
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        described = {}
        for name, array in self._arrays().items():
            array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            _replace(folder / f"{name}.bin", array.data)
            described[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": _checksum(array)}
        meta = {
            "format_version": FORMAT_VERSION,
            "num_rows": self.num_rows,
            "num_docids": self.num_docids,
            "num_nodes": self.num_nodes,
            "extra": self.extra if extra is None else extra,
            "arrays": described,
        }
        _replace(folder / "meta.json", (json.dumps(meta, indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: bool = False) -> DocidTrie:
        """Opens a saved trie as a memory map; nothing is read until it is used.

        Args:
            path: The local folder that `save` wrote.
            verify: Also compare every file with its checksum, which reads it whole.

        Raises:
            UserError: A file is missing, has the wrong size, format version or (with `verify`) content.
        """
        folder = Path(path)
        meta = _read_meta(folder / "meta.json")
        arrays = {}
        for name in ARRAYS:
            file, described = folder / f"{name}.bin", meta["arrays"][name]
            dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
            expected_bytes = dtype.itemsize * int(np.prod(shape))
            if not file.is_file():
                raise UserError(f"The trie file {file} is missing; build the trie again with --rebuild trie.")
            if file.stat().st_size != expected_bytes:
                raise UserError(
                    f"The trie file {file} has {file.stat().st_size} bytes where meta.json says {expected_bytes}; "
                    "copy it again or build the trie again with --rebuild trie."
                )
            # A file of no bytes cannot be mapped.
            array = np.memmap(file, dtype=dtype, mode="r", shape=shape) if expected_bytes else np.empty(shape, dtype)
            if verify and _checksum(array) != described["sha256"]:
                raise UserError(
                    f"The content of the trie file {file} does not match its checksum in meta.json; "
                    "copy it again or build the trie again with --rebuild trie."
                )
            arrays[name] = np.asarray(array)  # a plain view of the map: slicing np.memmap objects is slow
        return cls(arrays, meta["extra"])

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ARRAYS}

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


def _as_ragged(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The sequences as (tokens [T], offsets int64 [N + 1]), checked."""
    if isinstance(sequences, tuple) and len(sequences) == 2 and isinstance(sequences[0], np.ndarray):
        tokens, offsets = sequences[0], np.asarray(sequences[1], dtype=np.int64)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(tokens) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the number of tokens, {len(tokens)}")
    else:
        offsets = _offsets_of(np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)))
        flat: Iterator[int] = chain.from_iterable(sequences)
        tokens = np.fromiter(flat, dtype=np.int64, count=int(offsets[-1]))
    if len(tokens) and (tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max):
        raise ValueError(f"token ids must be in 0 … 2^31 - 1, got {tokens.min()} … {tokens.max()}")
    return tokens, offsets


def _build_arrays(tokens: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of `DocidTrie` for the ragged sequences (tokens [T], offsets [N + 1])."""
    occurs = np.zeros(int(tokens.max()) + 1 if len(tokens) else 0, dtype=bool)
    occurs[tokens] = True
    vocabulary = np.flatnonzero(occurs).astype(np.int32)
    code_of_token = np.zeros(len(occurs), dtype=np.uint16 if len(vocabulary) < 2**16 else np.uint32)
    code_of_token[vocabulary] = np.arange(len(vocabulary))
    codes = code_of_token[tokens]

    order = _sort(codes, offsets)
    begin, length = offsets[order], np.diff(offsets)[order]
    lcp = _common_prefixes(codes, begin, length)

    # Documents that share a docid are neighbours now: keep the first of each.
    is_distinct = np.ones(len(order), dtype=bool)
    is_distinct[1:] = (lcp[1:] != length[1:]) | (length[1:] != length[:-1])
    docid_rows = np.append(np.flatnonzero(is_distinct), len(order))
    begin, length, lcp = begin[is_distinct], length[is_distinct], lcp[is_distinct]

    # A docid is stored in the head down to the first depth at which it is alone, or to its end.
    lcp_next = np.append(lcp[1:], -1)[: len(lcp)]
    head_depth = np.minimum(length, np.maximum(lcp, lcp_next) + 1)
    edge_token, first_child, first_docid = _build_head(codes, begin, lcp, head_depth)

    tail_offsets = _offsets_of(length - head_depth)
    in_tail = np.repeat(begin + head_depth - tail_offsets[:-1], length - head_depth) + np.arange(tail_offsets[-1])
    if len(order) == 0:  # the root's range of docids is then one docid without tokens or documents
        docid_rows = tail_offsets = np.zeros(2, dtype=np.int64)
    return {
        "vocabulary": vocabulary,
        "edge_token": edge_token,
        "first_child": _narrow(first_child),
        "first_docid": _narrow(first_docid),
        "tail_tokens": codes[in_tail],
        "tail_offsets": _narrow(tail_offsets),
        "docid_rows": _narrow(docid_rows),
        "row_order": _narrow(order),
    }


def _sort(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rows (int64 [N]) in the lexicographic order of their codes; equal sequences stay in row order.

    A radix sort from the front: as many codes as fit in 64 bits are packed into one key, and only rows that are still
    tied, where not all of them are at their end, go on to the next key.
    """
    length = np.diff(offsets)
    bits = codes.dtype.itemsize * 8
    order = np.arange(len(length))
    tied = np.arange(len(length))  # places in `order` whose rows are not yet told apart from a neighbour
    group = np.zeros(len(length), dtype=np.int64)  # ties are among places of one group
    depth = 0
    while len(tied):
        rows = order[tied]
        key = np.zeros(len(rows), dtype=np.uint64)
        for position in range(depth, depth + 64 // bits):
            has_code = position < length[rows]
            code = np.zeros(len(rows), dtype=np.uint64)  # 0 = past the end, so that a prefix comes first
            code[has_code] = codes[offsets[rows[has_code]] + position] + np.uint64(1)
            key = (key << np.uint64(bits)) | code
        by_key = np.lexsort((key, group))
        rows, key, group = rows[by_key], key[by_key], group[by_key]
        order[tied] = rows

        like_previous = np.zeros(len(rows), dtype=bool)
        like_previous[1:] = (key[1:] == key[:-1]) & (group[1:] == group[:-1])
        depth += 64 // bits
        group = np.cumsum(~like_previous) - 1
        has_more = np.zeros(len(rows), dtype=bool)  # by group; its rows that are at their end stay, to come first
        has_more[group[length[rows] > depth]] = True
        goes_on = (like_previous | np.append(like_previous[1:], False)) & has_more[group]
        group = group[goes_on]
        tied = tied[goes_on]
    return order


def _common_prefixes(codes: np.ndarray, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Length (int64 [N]) of the prefix that each sorted sequence shares with the one before it; -1 for the first."""
    lcp = np.zeros(len(begin), dtype=np.int64)
    lcp[:1] = -1
    alike = np.arange(1, len(begin))
    depth = 0
    while len(alike):
        alike = alike[(length[alike] > depth) & (length[alike - 1] > depth)]
        alike = alike[codes[begin[alike] + depth] == codes[begin[alike - 1] + depth]]
        depth += 1
        lcp[alike] = depth
    return lcp


def _build_head(
    codes: np.ndarray, begin: np.ndarray, lcp: np.ndarray, head_depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(edge_token [M], first_child [M + 1], first_docid [M]) of the stored nodes in level order.

    The docid d is the first below a node of depth l exactly if `lcp[d] < l <= head_depth[d]`, so each level is a
    selection of docids, already sorted, and the children of a node lie between its own first docid and that of the next
    node.
    """
    edge_tokens, first_children, first_docids = [np.zeros(1, codes.dtype)], [], [np.zeros(1, dtype=np.int64)]
    num_nodes = 1
    reaching = np.arange(len(begin))  # docids with head nodes at this depth or below
    depth = 0
    while len(first_docids[-1]):
        depth += 1
        reaching = reaching[head_depth[reaching] >= depth]
        level = reaching[lcp[reaching] < depth]
        first_children.append(num_nodes + np.searchsorted(level, first_docids[-1]))
        first_docids.append(level)
        edge_tokens.append(codes[begin[level] + depth - 1])
        num_nodes += len(level)
    first_children.append(np.array([num_nodes]))
    return np.concatenate(edge_tokens), np.concatenate(first_children), np.concatenate(first_docids)


def _offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where each ragged row begins, and where the last ends (int64 [len(lengths) + 1])."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _narrow(array: np.ndarray) -> np.ndarray:
    """The same non-negative integers in four bytes each where they fit."""
    return array.astype(np.int32 if array.max(initial=0) <= np.iinfo(np.int32).max else np.int64)


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _replace(file: Path, content: bytes | memoryview) -> None:
    """Writes a file whole. The old one is replaced, not overwritten: it may be memory-mapped."""
    temporary = file.with_name(file.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(file)


def _read_meta(file: Path) -> dict[str, Any]:
    """The checked content of meta.json.

    Raises:
        UserError: It is missing, unreadable, or of another format version.
    """
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The trie file {file} is missing; build the trie with `zerogr trie`.") from None
    except ValueError as error:
        raise UserError(f"The trie file {file} is not JSON ({error}); build it again with --rebuild trie.") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"The trie in {file.parent} has format version {version!r} where this program reads {FORMAT_VERSION}; "
            "build the trie again with --rebuild trie."
        )
    if set(meta.get("arrays", {})) != set(ARRAYS) or "extra" not in meta:
        raise UserError(f"The trie file {file} does not describe a trie; build it again with --rebuild trie.")
    return meta
