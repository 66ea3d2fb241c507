"""A docid trie that has grown: the trie that an index began with and that of the documents added since, read as one.

Nothing is rebuilt and nothing of either trie is copied. A node of the whole is a pair of nodes, one of each part, kept in one
integer; its children are those of both, merged by their tokens. The rows of the addition come behind those of the base. A
docid that both parts hold is one docid: how many such there are below a node is known from the addition alone.

Both parts may be views (`zerogr.trie.filtered`), so documents are taken out of the whole by taking them out of the parts.

Cost: a node takes two look-ups and one merge of their children. What walks all docids, such as a device's tensors and the
training's choices, wants one trie: `merged` builds it in memory.
"""

from __future__ import annotations

import numpy as np

from zerogr.trie.filtered import FilteredTrie, Rows
from zerogr.trie.nodes import StoredTrie
from zerogr.trie.trie import DocidTrie

Part = DocidTrie | FilteredTrie
_NO_TOKENS, _NO_NODES = np.empty(0, np.int32), np.empty(0, np.int64)


class GrownTrie:
    """Two tries read as one; answers as if it had been built from the documents of both."""

    def __init__(self, base: Part, addition: Part, in_base: np.ndarray) -> None:
        """Puts two parts together.

        Args:
            base: Its rows stay as they are.
            addition: Its row i becomes row i + base.num_rows.
            in_base: int64 [docids of the whole addition]: the docid of the base that is the same, -1 = none
                (`zerogr.trie.nodes.StoredTrie.find`).
        """
        self._base, self._addition, self._in_base = base, addition, in_base
        whole, added = whole_of(base), whole_of(addition)
        self._num_base_rows, self._num_base_docids = whole.num_rows, whole.num_docids
        self.num_rows = whole.num_rows + added.num_rows
        """Documents of both parts, those that may not be found included."""
        self._stride = whole.num_nodes + len(whole.tail_tokens) + 1
        self.root = self._join(whole.root, added.root)
        self.vocabulary = np.union1d(whole.vocabulary, added.vocabulary)
        """The tokens (int32, sorted) of both."""
        places = np.flatnonzero(in_base >= 0)
        self._twin = dict(zip(in_base[places].tolist(), places.tolist(), strict=True))
        """Docid of the base -> the same docid of the addition."""
        is_live = [
            len(base.docid_documents(int(in_base[place]))) > 0 and len(addition.docid_documents(int(place))) > 0
            for place in places
        ]
        self._shared = places[np.array(is_live, dtype=bool)]
        """Docids of the addition, ascending, that may be found in both parts."""

    @property
    def num_docids(self) -> int:
        """The number of distinct docids that have a document which may be found."""
        return self._base.num_docids + self._addition.num_docids - len(self._shared)

    def filter(self, *, allow: Rows | None = None, deny: Rows | None = None) -> GrownTrie:
        """A view in which only some documents exist, as `DocidTrie.filter`.

        Raises:
            ValueError: A row is not an integer, or no document has it.
        """
        allows, denies = self._by_part(allow), self._by_part(deny)
        base = self._base.filter(allow=allows[0], deny=denies[0])
        return GrownTrie(base, self._addition.filter(allow=allows[1], deny=denies[1]), self._in_base)

    def children(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (int32 [C], ascending) that may follow `node`, and the nodes (int64 [C]) they lead to."""
        of_base, of_addition = self._parts(node)
        tokens, nodes = self._base.children(of_base) if of_base >= 0 else (_NO_TOKENS, _NO_NODES)
        added_tokens, added = self._addition.children(of_addition) if of_addition >= 0 else (_NO_TOKENS, _NO_NODES)
        if not len(added):
            return tokens, nodes + 1
        if not len(nodes):
            return added_tokens, (added + 1) * self._stride
        merged = np.union1d(tokens, added_tokens)
        joined = np.zeros(len(merged), dtype=np.int64)
        joined[np.searchsorted(merged, tokens)] = nodes + 1
        joined[np.searchsorted(merged, added_tokens)] += (added + 1) * self._stride
        return merged, joined

    def ends(self, node: int) -> np.ndarray:
        """Rows (int64 [E], ascending) of the documents whose docid ends exactly at `node`."""
        of_base, of_addition = self._parts(node)
        ending = self._base.ends(of_base) if of_base >= 0 else _NO_NODES
        added = self._addition.ends(of_addition) if of_addition >= 0 else _NO_NODES
        return np.concatenate([ending, added + self._num_base_rows])

    def docids_below(self, node: int) -> tuple[int, int]:
        """The first docid below `node`, which is the one that ends there if one does, and how many there are below."""
        of_base, of_addition = self._parts(node)
        first, num_docids = self._base.docids_below(of_base) if of_base >= 0 else (0, 0)
        if of_addition < 0:
            return first, num_docids
        first_added, num_added = self._addition.docids_below(of_addition)
        is_in_base = num_docids > 0 and not (
            num_added and len(self._addition.ends(of_addition)) and not len(self._base.ends(of_base))
        )
        num_shared = 0
        if len(self._shared):
            begin, end = whole_of(self._addition).docid_range(of_addition)
            num_shared = int(np.searchsorted(self._shared, end) - np.searchsorted(self._shared, begin))
        place = first if is_in_base else self._num_base_docids + first_added
        return place, num_docids + num_added - num_shared

    def docid_documents(self, docid: int) -> np.ndarray:
        """Rows (int64, ascending) of the documents that carry a docid, as `docids_below` has it."""
        in_base, added = docid, self._twin.get(docid, -1)
        if docid >= self._num_base_docids:
            added = docid - self._num_base_docids
            in_base = int(self._in_base[added])
        rows = self._base.docid_documents(in_base) if in_base >= 0 else _NO_NODES
        more = self._addition.docid_documents(added) if added >= 0 else _NO_NODES
        return np.concatenate([rows, more + self._num_base_rows])

    def tail(self, node: int) -> np.ndarray:
        """The tokens (int32) that still follow a node with one docid below it, up to the docid's end."""
        of_base, of_addition = self._parts(node)
        if of_base >= 0 and self._base.docids_below(of_base)[1]:
            return self._base.tail(of_base)
        return self._addition.tail(of_addition)

    @property
    def denied(self) -> np.ndarray:
        """The rows (int64, ascending) that may not be found."""
        base, added = (
            part.denied if isinstance(part, FilteredTrie) else _NO_NODES for part in (self._base, self._addition)
        )
        return np.concatenate([base, added + self._num_base_rows])

    def merged(self) -> Part:
        """Returns one trie with the same rows, and the same documents to be found, built anew in memory."""
        sequences: list[np.ndarray] = [_NO_TOKENS] * self.num_rows
        begin = 0
        for part in (self._base, self._addition):
            whole = whole_of(part)
            for docid, tokens in enumerate(whole.docid_tokens(np.arange(whole.num_docids))):
                for row in whole.docid_documents(docid).tolist():
                    sequences[begin + row] = tokens
            begin += whole.num_rows
        trie = DocidTrie.build([tokens.tolist() for tokens in sequences])
        trie.extra = whole_of(self._base).extra
        denied = self.denied
        return trie.filter(deny=denied) if len(denied) else trie

    def _by_part(self, rows: Rows | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns the rows of the base and those of the addition, each as its part counts them."""
        if rows is None:
            return None, None
        chosen = np.asarray(rows)
        if chosen.size == 0:
            return _NO_NODES, _NO_NODES
        if chosen.dtype.kind not in "iu":
            raise ValueError(f"rows must be integers, got {chosen.dtype}")
        is_added = chosen >= self._num_base_rows
        return chosen[~is_added].astype(np.int64), chosen[is_added].astype(np.int64) - self._num_base_rows

    def _join(self, of_base: int, of_addition: int) -> int:
        return of_base + 1 + (of_addition + 1) * self._stride

    def _parts(self, node: int) -> tuple[int, int]:
        """Returns the node of each part; -1 where that has none."""
        of_addition, of_base = divmod(int(node), self._stride)
        return of_base - 1, of_addition - 1


def whole_of(part: Part) -> StoredTrie:
    """Returns the trie that a part is, or is a view of."""
    return part.whole if isinstance(part, FilteredTrie) else part


def same_docids(base: StoredTrie, addition: StoredTrie) -> np.ndarray:
    """Returns for each docid of `addition` the same one of `base`, -1 = none; int64 [docids]."""
    tokens = addition.docid_tokens(np.arange(addition.num_docids))
    return np.array([base.find(docid.tolist()) for docid in tokens], dtype=np.int64)
