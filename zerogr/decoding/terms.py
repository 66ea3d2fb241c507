"""Terms of single choices: what is added to the output head where one docid's token is chosen, and nowhere else.

    logit(token | query, prefix) += max(0, v · hidden state behind the prefix + b) - c

A document that was added to an index without training gets such terms along its docid (`zerogr.editing.methods.certificate`).
The model's own weights stay as they are, and so does every choice that has no term. A term is a gate: for queries on its far
side it is exactly -c, so that many of them do not add up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from zerogr.decoding.scoring import Prefix, Request
from zerogr.ragged import offsets_of, ranges
from zerogr.store.arrays import load_arrays, save_arrays

_ARRAYS = ("prefix_tokens", "prefix_offsets", "tokens", "terms")
_PAIRS = 16_384
"""Of a hidden state and a term, that are computed at once."""


def gates(terms: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Returns what each of some terms (float32 [T, D + 2]) adds for hidden states [..., D]: float32 [..., T]."""
    return (hidden.float() @ terms[:, :-2].T + terms[:, -2]).clamp(min=0) - terms[:, -1]


class _Terms:
    """Those behind one prefix."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.rows: list[torch.Tensor] = []
        self.stacked: torch.Tensor | None = None

    def matrix(self, device: torch.device) -> torch.Tensor:
        """Returns all of them, float32 [number, D + 2]."""
        if self.stacked is None or self.stacked.device != device:
            self.stacked = torch.stack(self.rows).to(device)
        return self.stacked


class Terms:
    """Terms (float32 [D + 2]: v, b, c) by prefix and token; a choice may have several, which are added."""

    def __init__(self) -> None:
        self._of: dict[Prefix, _Terms] = {}

    def __len__(self) -> int:
        return sum(len(of_prefix.tokens) for of_prefix in self._of.values())

    def put(self, prefix: Prefix, token: int, term: torch.Tensor) -> None:
        """Adds one to a choice."""
        of_prefix = self._of.setdefault(prefix, _Terms())
        of_prefix.tokens.append(token)
        of_prefix.rows.append(term)
        of_prefix.stacked = None

    def bonus(self, prefix: Prefix, tokens: np.ndarray, hidden: torch.Tensor) -> torch.Tensor | None:
        """Returns what is added to the logits of some tokens (int [C], ascending) behind a prefix.

        For hidden states [..., D]: float32 [..., C]; None if nothing is.
        """
        of_prefix = self._of.get(prefix)
        if of_prefix is None:
            return None
        added = hidden.new_zeros(*hidden.shape[:-1], len(tokens), dtype=torch.float32)
        columns = np.minimum(np.searchsorted(tokens, of_prefix.tokens), len(tokens) - 1)
        wanted = np.flatnonzero(tokens[columns] == of_prefix.tokens)
        if len(wanted):
            rows = of_prefix.matrix(hidden.device)[torch.from_numpy(wanted).to(hidden.device)]
            added.index_add_(-1, torch.from_numpy(columns[wanted]).to(hidden.device), gates(rows, hidden))
        return added

    def bonus_of_each(self, prefix: Prefix, tokens: np.ndarray, hidden: torch.Tensor) -> torch.Tensor:
        """Returns what is added to the logit of one token (int [n]) for each of some hidden states [n, D]: float32 [n]."""
        added = hidden.new_zeros(len(hidden), dtype=torch.float32)
        of_prefix = self._of.get(prefix)
        if of_prefix is None:
            return added
        own = np.array(of_prefix.tokens)
        order = np.argsort(own, kind="stable")
        first, last = (np.searchsorted(own[order], tokens, side) for side in ("left", "right"))
        state_of = torch.from_numpy(np.repeat(np.arange(len(tokens)), last - first)).to(hidden.device)
        term_of = torch.from_numpy(order[ranges(first, last - first)]).to(hidden.device)
        matrix = of_prefix.matrix(hidden.device)
        for states, terms in zip(torch.split(state_of, _PAIRS), torch.split(term_of, _PAIRS), strict=True):
            rows = matrix[terms]
            is_open = ((hidden[states].float() * rows[:, :-2]).sum(-1) + rows[:, -2]).clamp(min=0)
            added.index_add_(0, states, is_open - rows[:, -1])
        return added

    def bonuses(self, requests: Sequence[Request], hidden_RD: torch.Tensor) -> torch.Tensor | None:
        """Returns the same of many requests, one behind the other, float32 [sum of C]; None if nothing is added anywhere."""
        alike: dict[tuple[Prefix, bytes], list[int]] = {}
        for number, request in enumerate(requests):
            if request.prefix in self._of:  # at the root all queries have the same choice
                alike.setdefault((request.prefix, np.asarray(request.tokens).tobytes()), []).append(number)
        if not alike:
            return None
        parts = [hidden_RD.new_zeros(len(request.tokens), dtype=torch.float32) for request in requests]
        for (prefix, _), numbers in alike.items():
            added = self.bonus(prefix, np.asarray(requests[numbers[0]].tokens), hidden_RD[numbers])
            assert added is not None
            for number, row in zip(numbers, added, strict=True):
                parts[number] = row
        return torch.cat(parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them into a local folder."""
        entries = [(prefix, token) for prefix, of_prefix in self._of.items() for token in of_prefix.tokens]
        offsets = offsets_of(len(prefix) for prefix, _ in entries)
        flat = [token for prefix, _ in entries for token in prefix]
        rows = [row.cpu().numpy() for of_prefix in self._of.values() for row in of_prefix.rows]
        arrays = {
            "prefix_tokens": np.array(flat, dtype=np.int64),
            "prefix_offsets": offsets,
            "tokens": np.array([token for _, token in entries], dtype=np.int64),
            "terms": np.stack(rows) if rows else np.empty((0, 0), np.float32),
        }
        save_arrays(path, arrays, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Terms:
        """Reads what `save` wrote. Raises UserError if a file is missing or not what was written."""
        arrays, _ = load_arrays(path, _ARRAYS, "list of terms", stage="trie")
        terms, offsets = cls(), arrays["prefix_offsets"].tolist()
        rows = torch.from_numpy(np.array(arrays["terms"]))
        for number, token in enumerate(arrays["tokens"].tolist()):
            prefix = tuple(arrays["prefix_tokens"][offsets[number] : offsets[number + 1]].tolist())
            terms.put(prefix, token, rows[number])
        return terms
