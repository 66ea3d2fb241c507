"""Terms of single choices: vectors that are added to the output head where one docid's token is chosen, and nowhere else.

    logit(token | query, prefix) += vector · hidden state behind the prefix

A document that was added to an index without training gets such vectors along its docid (`zerogr.editing.methods.certificate`).
The model's own weights stay as they are, and so does every choice that has no term.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from zerogr.decoding.scoring import Prefix, Request
from zerogr.ragged import offsets_of
from zerogr.store.arrays import load_arrays, save_arrays

_ARRAYS = ("prefix_tokens", "prefix_offsets", "tokens", "vectors")


class Terms:
    """Vectors (float32 [D]) by prefix and token."""

    def __init__(self) -> None:
        self._vectors: dict[Prefix, dict[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._vectors.values()))

    def get(self, prefix: Prefix, token: int) -> torch.Tensor | None:
        """Returns the vector of a choice; None if it has none."""
        return self._vectors.get(prefix, {}).get(token)

    def put(self, prefix: Prefix, token: int, vector: torch.Tensor) -> None:
        """Sets the vector of a choice."""
        self._vectors.setdefault(prefix, {})[token] = vector

    def bonus(self, prefix: Prefix, tokens: np.ndarray, hidden: torch.Tensor) -> torch.Tensor | None:
        """Returns what is added to the logits of some tokens (int [C]) behind a prefix, for hidden states [..., D].

        float32 [..., C]; None if nothing is.
        """
        of_prefix = self._vectors.get(prefix)
        if of_prefix is None:
            return None
        added = hidden.new_zeros(*hidden.shape[:-1], len(tokens), dtype=torch.float32)
        for column, token in enumerate(tokens.tolist()):
            if token in of_prefix:
                added[..., column] = hidden.float() @ of_prefix[token].to(hidden.device)
        return added

    def bonuses(self, requests: Sequence[Request], hidden_RD: torch.Tensor) -> torch.Tensor | None:
        """Returns the same of many requests, one behind the other, float32 [sum of C]; None if nothing is added anywhere."""
        if not any(request.prefix in self._vectors for request in requests):
            return None
        parts = []
        for request, hidden in zip(requests, hidden_RD, strict=True):
            added = self.bonus(request.prefix, np.asarray(request.tokens), hidden)
            parts.append(hidden.new_zeros(len(request.tokens), dtype=torch.float32) if added is None else added)
        return torch.cat(parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vectors into a local folder."""
        entries = [(prefix, token) for prefix, of_prefix in self._vectors.items() for token in of_prefix]
        offsets = offsets_of(len(prefix) for prefix, _ in entries)
        flat = [token for prefix, _ in entries for token in prefix]
        vectors = [self._vectors[prefix][token].cpu().numpy() for prefix, token in entries]
        arrays = {
            "prefix_tokens": np.array(flat, dtype=np.int64),
            "prefix_offsets": offsets,
            "tokens": np.array([token for _, token in entries], dtype=np.int64),
            "vectors": np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
        }
        save_arrays(path, arrays, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Terms:
        """Reads what `save` wrote. Raises UserError if a file is missing or not what was written."""
        arrays, _ = load_arrays(path, _ARRAYS, "list of terms")
        terms, offsets = cls(), arrays["prefix_offsets"].tolist()
        vectors = torch.from_numpy(np.array(arrays["vectors"]))
        for number, token in enumerate(arrays["tokens"].tolist()):
            prefix = tuple(arrays["prefix_tokens"][offsets[number] : offsets[number + 1]].tolist())
            terms.put(prefix, token, vectors[number])
        return terms
