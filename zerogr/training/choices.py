"""What the trie leaves a choice about: the tokens that may stand in each place of a docid.

Constrained decoding asks the model for one token of several, and never for a token that is the only one. Training asks the
same: the softmax of its loss is over the allowed tokens, and a docid ends, for the model, where no other docid is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zerogr.errors import UserError
from zerogr.trie import DocidTrie


class Choices:
    """A trie of docids, and the token that ends a docid."""

    def __init__(self, trie: DocidTrie, end_token_id: int) -> None:
        self._trie, self._end = trie, end_token_id

    def open_part(self, docid: Sequence[int]) -> list[int]:
        """Returns the tokens of a docid up to the last that is a choice, the end token where that is one; at least one.

        Raises:
            UserError: The docid is not in the trie.
        """
        try:
            num_free = self._trie.num_free(docid)
        except ValueError:
            raise UserError(
                f"a docid is not in the trie as the retriever's tokenizer writes it (tokens {list(docid)}); "
                "build the trie again with --rebuild trie"
            ) from None
        return [*docid, self._end][: max(num_free, 1)]  # the only docid of all is learnt by its first token

    def along(self, paths: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the tokens of some docids are chosen, and among what.

        Args:
            paths: Tokens of docids from the first on, the end token after whole ones.

        Returns:
            int64 [tokens of all paths], the number of the node that each is chosen at, and int64 [2, A], the pairs
            (node's number, token) that are allowed. Nodes are numbered from 0 as they are met.

        Raises:
            ValueError: The trie does not allow a path.
        """
        met: dict[int, _Node] = {}
        places: list[int] = []
        for path in paths:
            at = self._trie.root
            for token in path:
                node = met.get(at)
                if node is None:
                    node = met[at] = _Node(len(met), *self._trie.children(at), len(self._trie.ends(at)) > 0)
                places.append(node.number)
                child = int(np.searchsorted(node.tokens, token))
                if child < len(node.tokens) and int(node.tokens[child]) == token:
                    at = int(node.children[child])
                elif token != self._end or not node.is_end:
                    raise ValueError(f"the trie holds no docid that begins with the tokens {list(path)}")
        allowed = [np.append(node.tokens, self._end) if node.is_end else node.tokens for node in met.values()]
        owners = np.repeat(np.arange(len(allowed)), [len(tokens) for tokens in allowed])
        pairs = np.stack([owners, np.concatenate([np.empty(0, np.int64), *allowed])])
        return np.array(places, dtype=np.int64), pairs.astype(np.int64)


class _Node(NamedTuple):
    number: int
    tokens: np.ndarray
    children: np.ndarray
    is_end: bool
    """Whether a docid ends here."""
