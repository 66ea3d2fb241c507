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
from typing import Any

import numpy as np

from zerogr.store.arrays import load_arrays, save_arrays
from zerogr.trie.build import Sequences, as_ragged, build_arrays
from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.nodes import ARRAYS, StoredTrie


class DocidTrie(StoredTrie):
    """A read-only trie over the token sequences of docids. Make one with `build` or `load`."""

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
        return FilteredTrie(self, allow=allow, deny=deny)

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
        arrays, meta = load_arrays(path, ARRAYS, "trie", stage="trie", verify=verify)
        return cls(arrays, meta["extra"])
