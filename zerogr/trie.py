"""The docid trie: which tokens may follow a prefix, and which documents lie below it.

The distinct docids are sorted by their tokens, so that the docids below any node are one contiguous range. Most docids
are unique after two to four tokens; from there on their nodes have one child each. So the trie is stored in two parts:

    head    every prefix shared by two or more docids, and the first prefix that a docid has for itself, numbered in
            level order. Children of a node are consecutive and sorted: `first_child[n] : first_child[n + 1]`.
    tails   the remaining tokens of every docid, ragged. Node `num_nodes + t` is the prefix that ends with tail token t:
            it is virtual, nothing is stored for it but that token.

A document may have several docids, the forms of one (`zerogr.docids.forms`). Of those below a prefix that is the document's
alone the trie keeps one.

Tokens are stored as indices into `vocabulary`, the sorted tokens that occur (two bytes each up to 65,535 of them).
The trie is read-only. Documents that leave it while one query is decoded are counted by the decoder, not here; those
that one user may not find are left out by a view of it, see `filter`.

Cost: building sorts four tokens at a time and only what is still tied; 1M docids of 8–11 tokens take less than a second
and 38 bytes each, and up to 100 bytes each while they are built. `children` and `ends` of one node take microseconds;
`children_batch` is vectorised. A loaded trie is a memory map that the processes of a machine share.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerogr.errors import UserError
from zerogr.trie_build import Sequences, as_ragged, build_arrays, offsets_of

if TYPE_CHECKING:
    from zerogr.filtered_trie import FilteredTrie

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


class DocidTrie:
    """A read-only trie over the token sequences of docids. Make one with `build` or `load`."""

    root: int = 0
    """The node of the empty prefix. Nodes are ints; ids from `num_nodes` on are virtual nodes inside a tail."""

    def __init__(self, arrays: dict[str, np.ndarray], extra: dict[str, Any] | None = None):
        """Wraps the arrays named in `ARRAYS`; D is the number of distinct docids, M of stored nodes, N of documents, each as
        often as it has docids."""
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
    def build(cls, sequences: Sequences, rows: Sequence[int] | np.ndarray | None = None) -> DocidTrie:
        """Builds the trie of unsorted docids, given without an end token. Row i of the input is document row i.

        Args:
            sequences: Token ids per docid as lists, or `(tokens int32 [T], offsets int64 [S + 1])`. Docids may
                repeat, be prefixes of each other, or be empty.
            rows: Where documents have several docids, each other than the rest: the document row of every docid, from 0
                without a gap, never falling.

        Raises:
            ValueError: A token id is negative, the offsets do not describe the tokens, or `rows` are not as described.
        """
        tokens, offsets = as_ragged(sequences)
        if rows is None:
            return cls(build_arrays(tokens, offsets))
        rows = np.asarray(rows)
        if len(rows) != len(offsets) - 1:
            raise ValueError(f"rows must name a document for each of {len(offsets) - 1} docids, got {len(rows)}")
        if len(rows) and (rows[0] != 0 or not np.isin(np.diff(rows), (0, 1)).all()):
            raise ValueError("rows must begin with 0 and stay or rise by 1 from docid to docid")
        return cls(build_arrays(tokens, offsets, rows))

    @property
    def num_nodes(self) -> int:
        """The number of stored nodes, the root included."""
        return len(self.first_docid)

    @property
    def num_docids(self) -> int:
        """The number of distinct docids."""
        return len(self.tail_offsets) - 1 if len(self.row_order) else 0

    @cached_property
    def num_rows(self) -> int:
        """The number of documents; more than `num_docids` where documents share a docid. The first look reads all rows."""
        return int(self.row_order.max(initial=-1)) + 1

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
        """The places in the sorted order (int64) of the docids of each document row, row by row; as a rule it has one.

        The first call turns `row_order` around, which takes time for every document of the trie, and keeps the result:
        twelve bytes per document with one docid, in this process alone.

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
        docids, offsets = self._docids_by_row
        begin, count = offsets[rows], offsets[rows + 1] - offsets[rows]
        return docids[np.repeat(begin - offsets_of(count)[:-1], count) + np.arange(count.sum())].astype(np.int64)

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

        The rest is forced: constrained decoding never asks the model for it, and of a document with several docids the trie may
        hold it in another order.

        Raises:
            ValueError: The trie does not hold the docid.
        """
        node = self.root
        for depth, token in enumerate(docid):
            if self.docids_below(node)[1] == 1 and sorted(self.tail(node).tolist()) == sorted(docid[depth:]):
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

    @cached_property
    def _docids_by_row(self) -> tuple[np.ndarray, np.ndarray]:
        """(the places [N] in the sorted order of all docids, document row by document row; where each row's begin, and the
        last's end)."""
        docids = np.repeat(np.arange(self.num_docids, dtype=self.docid_rows.dtype), np.diff(self.docid_rows))
        by_row = np.argsort(self.row_order, kind="stable")
        return docids[by_row], offsets_of(np.bincount(self.row_order, minlength=self.num_rows))

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
