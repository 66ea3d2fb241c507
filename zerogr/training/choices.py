"""What the trie leaves a choice about: the tokens that may stand in each place of a docid.

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
        numbers: dict[int, int] = {}
        places: list[int] = []
        allowed: list[np.ndarray] = []
        for path in paths:
            node = self._trie.root
            for token in path:
                tokens, nodes = self._trie.children(node)
                is_end = len(self._trie.ends(node)) > 0
                if node not in numbers:
                    numbers[node] = len(numbers)
                    allowed.append(np.append(tokens, self._end) if is_end else tokens)
                places.append(numbers[node])
                at = int(np.searchsorted(tokens, token))
                if at < len(tokens) and int(tokens[at]) == token:
                    node = int(nodes[at])
                elif token != self._end or not is_end:
                    raise ValueError(f"the trie holds no docid that begins with the tokens {list(path)}")
        owners = np.repeat(np.arange(len(allowed)), [len(tokens) for tokens in allowed])
        pairs = np.stack([owners, np.concatenate([np.empty(0, np.int64), *allowed])])
        return np.array(places, dtype=np.int64), pairs.astype(np.int64)
