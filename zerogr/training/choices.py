"""What the trie leaves a choice about: the tokens that may stand at each position of a docid.

Constrained decoding asks the model for one token of several, and never for a token that is the only one. Training asks the
same: the softmax of its loss is over the allowed tokens, and a docid ends, for the model, where no other docid is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.errors import UserError
from zerogr.trie import DocidTrie


class Choices:
    """A trie of docids, and the token that ends a docid."""

    def __init__(self, trie: DocidTrie, end_token_id: int) -> None:
        self._trie, self._end = trie, end_token_id

    def open_part(self, docid: Sequence[int]) -> list[int]:
        """Returns the open part of one docid; see `open_parts`."""
        return self.open_parts(np.array(docid, dtype=np.int64), np.array([0, len(docid)]))[0]

    def open_parts(self, tokens: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
        """Returns the tokens of each docid up to the last that is a choice, the end token where that is one; at least one.

        Args:
            tokens: Of docids without end tokens; int [T].
            offsets: Where each docid begins; int64 [docids + 1].

        Raises:
            UserError: A docid is not in the trie.
        """
        try:
            num_free = self._trie.num_free(tokens, offsets)
        except ValueError as error:
            raise UserError(
                f"a docid is not as the retriever's tokenizer writes it: {error}; build the trie again with --rebuild trie"
            ) from None
        num_open = np.maximum(num_free, 1)  # the only docid of all is learnt by its first token
        flat, bounds = tokens.tolist(), offsets.tolist()
        return [
            [*flat[begin:end], self._end][:number]
            for begin, end, number in zip(bounds, bounds[1:], num_open.tolist(), strict=False)
        ]

    def along(self, tokens: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the tokens of some docids are chosen, and among what.

        Args:
            tokens: Of docids from the first on, the end token after whole ones; int64 [T].
            offsets: Where each docid begins; int64 [docids + 1].

        Returns:
            int64 [T], the number of the node that each is chosen at, and int64 [2, A], the pairs (node's number, token) that
            are allowed. Nodes are numbered from 0, by their depth.

        Raises:
            ValueError: The trie does not allow a path.
        """
        lengths = np.diff(offsets)
        number = np.empty(len(tokens), dtype=np.int64)
        at = np.full(len(lengths), self._trie.root, dtype=np.int64)
        owners, allowed, num_nodes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        going = np.flatnonzero(lengths)
        for depth in range(lengths.max(initial=0)):
            going = going[lengths[going] > depth]
            nodes, of_path = np.unique(at[going], return_inverse=True)
            wanted = tokens[offsets[going] + depth]
            number[offsets[going] + depth] = num_nodes + of_path
            children_tokens, children, child_offsets = self._trie.children_batch(nodes)
            owner = np.repeat(np.arange(len(nodes)), np.diff(child_offsets))
            is_end = self._trie.is_end(nodes)
            keys = (owner << 32) + children_tokens  # ascending
            child = np.searchsorted(keys, (of_path << 32) + wanted)
            is_child = np.append(keys, -1)[child] == (of_path << 32) + wanted
            is_wrong = ~is_child & ((wanted != self._end) | ~is_end[of_path])
            if is_wrong.any():
                path = tokens[slice(*offsets[going[is_wrong][0] :][:2])].tolist()
                raise ValueError(f"the trie holds no docid that begins with the tokens {path}")
            at[going[is_child]] = children[child[is_child]]
            owners += [num_nodes + owner, num_nodes + np.flatnonzero(is_end)]
            allowed += [children_tokens, np.full(int(is_end.sum()), self._end)]
            num_nodes += len(nodes)
        return number, np.stack([np.concatenate(owners), np.concatenate(allowed)]).astype(np.int64)
