"""A docid trie in which only some documents exist: the documents of one user, or all but the outdated ones.

The view answers as if the trie had been built from the allowed documents alone, with their rows unchanged. Nothing of
the trie is copied. Its distinct docids are sorted and those below a node are one contiguous range, so a sorted list of
docid places is enough to count the allowed docids below any node, by two binary searches. The list holds the shorter
side:

    allow           the docids that keep a document; those of a node are the list's entries in the node's range
    deny alone      the docids that lose all their documents; those of a node are its range less the list's entries

Cost, for sets of S rows: S log S time to make and about 12 bytes per row to keep, whatever the size of the trie; the first
filter of a trie also pays for `DocidTrie.docids_of_rows`. Reading a node takes microseconds more than in the trie itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.trie.nodes import StoredTrie

Rows = Sequence[int] | np.ndarray


class FilteredTrie:
    """A read-only view of a trie. Make one with `DocidTrie.filter`; nodes and docid places are those of that trie."""

    def __init__(self, trie: StoredTrie, *, allow: Rows | None, deny: Rows | None):
        """Restricts `trie` to the rows of `allow` (None = all) without those of `deny`.

        Raises:
            ValueError: A row is not an integer, or no document has it.
        """
        self._trie = trie
        denied, docids_of_denied = _distinct(trie, () if deny is None else deny)
        self._lists_allowed = allow is not None
        """Whether `_rows` and `_docids` are what may be found; otherwise they are what may not."""
        if allow is not None:
            allowed, docids_of_allowed = _distinct(trie, allow)
            is_kept = ~_is_in(allowed, denied)
            rows, docids = allowed[is_kept], np.unique(docids_of_allowed[is_kept])
        else:
            rows = denied
            docids, num_denied = np.unique(docids_of_denied, return_counts=True)
            docids = docids[num_denied == trie.docid_rows[docids + 1] - trie.docid_rows[docids]]
        # Four bytes each where the trie takes four; searchsorted would convert a list of any other type than its needles.
        self._rows = rows.astype(trie.row_order.dtype)
        self._docids = docids.astype(trie.docid_rows.dtype)
        # Deny alone: how many allowed docids come before each listed one.
        self._num_before_listed = self._docids - np.arange(len(docids), dtype=self._docids.dtype)

    @property
    def whole(self) -> StoredTrie:
        """The trie that this is a view of."""
        return self._trie

    @property
    def root(self) -> int:
        """The node of the empty prefix, there even if no document is."""
        return self._trie.root

    @property
    def vocabulary(self) -> np.ndarray:
        """The tokens (int32, sorted) of the whole trie, whether or not an allowed docid has them."""
        return self._trie.vocabulary

    @property
    def num_docids(self) -> int:
        """The number of distinct docids that have an allowed document."""
        return len(self._docids) if self._lists_allowed else self._trie.num_docids - len(self._docids)

    @property
    def denied(self) -> np.ndarray:
        """The rows (int64, ascending) that may not be found."""
        rows = self._rows.astype(np.int64)
        return np.setdiff1d(np.arange(self._trie.num_rows), rows) if self._lists_allowed else rows

    def filter(self, *, allow: Rows | None = None, deny: Rows | None = None) -> FilteredTrie:
        """A view with fewer documents: `allow` and `deny` as in `DocidTrie.filter`, of those that this view has.

        Raises:
            ValueError: A row is not an integer, or no document of the trie has it.
        """
        if self._lists_allowed:
            allowed = self._rows if allow is None else np.intersect1d(self._rows, _distinct(self._trie, allow)[0])
            return FilteredTrie(self._trie, allow=allowed, deny=deny)
        denied, _ = _distinct(self._trie, () if deny is None else deny)
        return FilteredTrie(self._trie, allow=allow, deny=np.concatenate([self._rows, denied]))

    def children(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (int32 [C], ascending) that may follow `node`, and the nodes (int64 [C]) they lead to."""
        tokens, nodes = self._trie.children(node)
        if len(nodes) == 0:
            return tokens, nodes
        first, num_docids = self._trie.docids_below(node)
        boundaries = np.empty(len(nodes) + 1, dtype=self._docids.dtype)
        # A child inside a tail is the only one and has its parent's docid.
        boundaries[:-1] = self._trie.first_docid[nodes] if nodes[0] < self._trie.num_nodes else first
        boundaries[-1] = first + num_docids
        is_kept = np.diff(self._num_allowed_before(boundaries)) > 0
        return tokens[is_kept], nodes[is_kept]

    def ends(self, node: int) -> np.ndarray:
        """Rows (int64 [E], ascending) of the allowed documents whose docid ends exactly at `node`."""
        return self._allowed_of(self._trie.ends(node))

    def docids_below(self, node: int) -> tuple[int, int]:
        """The place of the first allowed docid below `node` in the trie's sorted order, and how many there are below.

        Where none is, the place is that of the first docid of the trie below the node.
        """
        first, num_docids = self._trie.docids_below(node)
        boundaries = np.array([first, first + num_docids], dtype=self._docids.dtype)
        num_before, num_until = self._num_allowed_before(boundaries).tolist()
        return first if num_before == num_until else self._place(num_before), num_until - num_before

    def docid_documents(self, docid: int) -> np.ndarray:
        """Rows (int64, ascending) of the allowed documents that carry the docid at this place of the sorted order."""
        return self._allowed_of(self._trie.docid_documents(docid))

    def tail(self, node: int) -> np.ndarray:
        """The tokens (int32) that still follow a node with one allowed docid below it, up to the docid's end.

        Below the node the trie may still branch, to docids that are not allowed.
        """
        trie = self._trie
        if node >= trie.num_nodes:
            return trie.tail(node)
        docid = np.asarray(self.docids_below(node)[0], dtype=trie.first_docid.dtype)
        codes = []
        while (begin := int(trie.first_child[node])) < (end := int(trie.first_child[node + 1])):
            option = int(np.searchsorted(trie.first_docid[begin:end], docid, side="right")) - 1
            if option < 0:  # it sorts before the docids of all children: it ends here
                break
            node = begin + option
            codes.append(trie.edge_token[node])
        rest = trie.tail_tokens[int(trie.tail_offsets[docid]) : int(trie.tail_offsets[docid + 1])]
        return trie.vocabulary[np.concatenate([np.array(codes, dtype=rest.dtype), rest])]

    def _num_allowed_before(self, docids: np.ndarray) -> np.ndarray:
        """How many allowed docids come before each place of the sorted order (both of the dtype of `_docids`)."""
        num_listed = np.searchsorted(self._docids, docids)
        return num_listed if self._lists_allowed else docids - num_listed

    def _place(self, num_before: int) -> int:
        """The place in the trie's sorted order of the allowed docid that has `num_before` allowed ones before it."""
        if self._lists_allowed:
            return int(self._docids[num_before])
        wanted = np.asarray(num_before, dtype=self._num_before_listed.dtype)
        return num_before + int(np.searchsorted(self._num_before_listed, wanted, side="right"))

    def _allowed_of(self, rows: np.ndarray) -> np.ndarray:
        """The rows (int64, ascending) that may be found."""
        if len(rows) == 0:
            return rows
        return rows[_is_in(rows.astype(self._rows.dtype), self._rows) == self._lists_allowed]


def _distinct(trie: StoredTrie, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(the rows ascending, each once; the place of each row's docid), both int64 [S]."""
    docids = trie.docids_of_rows(rows)
    distinct, first = np.unique(np.asarray(rows, dtype=np.int64), return_index=True)
    return distinct, docids[first]


def _is_in(values: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Whether each value (bool [n]) is in the sorted list `listed` of the same dtype."""
    return np.searchsorted(listed, values, side="right") > np.searchsorted(listed, values, side="left")
