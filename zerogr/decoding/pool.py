"""A pool of keys and values that queries share, and a scorer whose queries come and go.

`TreeCache` gives every query of a batch a row of the same length, for as long as the batch lasts. Here slots are taken from
one pool as prefixes are evaluated, and given back when a query leaves. What prompts have in common, the task's instruction, is
in the pool once. Which slots a token sees is a list of numbers in both, so that the attention is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zerogr.decoding.language_model import Prompt, QueryState, TreeModel, text_tokens
from zerogr.decoding.scoring import Prefix, Request
from zerogr.decoding.tree_attention import Layout, NewTokens, TreeCache, layout_of

_FIRST_SLOTS = 1024


class PooledCache(TreeCache):
    """Keys and values in slots of one pool; slot 0 stays empty, for padding to read."""

    def __init__(self) -> None:
        super().__init__(1)
        self._free = np.empty(0, dtype=np.int64)
        """A stack of free slots."""
        self._slots_of: dict[int, np.ndarray] = {}
        self._shared: dict[tuple[int, ...], np.ndarray] = {}
        self._num_shared: dict[int, int] = {}

    @property
    def num_used(self) -> int:
        """Slots that hold something."""
        return self._num_slots - len(self._free)

    @torch.inference_mode()
    def open(self, query: int, beginning: tuple[int, ...], model: TreeModel) -> None:
        """Begins the slots of a query with those of what its prompt shares with others."""
        if beginning and beginning not in self._shared:
            text = model.beginning(beginning)
            slots = self._taken(len(beginning))
            for layer, parts in enumerate(text):
                like = [part.transpose(0, 1)[None] for part in parts]
                for buffer, part in zip(self._grown(layer, like), parts, strict=True):
                    buffer[0, torch.from_numpy(slots).to(part.device)] = part
            self._shared[beginning] = slots
        self._slots_of[query] = self._shared.get(beginning, np.empty(0, dtype=np.int64))
        self._num_shared[query] = len(self._slots_of[query])

    def close(self, query: int) -> None:
        """Gives the slots of a query back."""
        slots = self._slots_of.pop(query)[self._num_shared.pop(query) :]
        self._free = np.concatenate([self._free, slots])

    def place(self, new: Sequence[NewTokens], device: torch.device, dtype: torch.dtype) -> tuple[Layout, torch.Tensor]:
        """As `TreeCache.place`; the slots that are new come from the pool."""
        seen_by = []
        for part in new:
            missing = part.is_visible.shape[1] - len(self._slots_of[part.row])
            self._slots_of[part.row] = np.concatenate([self._slots_of[part.row], self._taken(missing)])
            seen_by.append(self._slots_of[part.row][: part.is_visible.shape[1]])
        self._layout, mask = layout_of(new, seen_by, device, dtype)
        return self._layout, mask

    def _taken(self, number: int) -> np.ndarray:
        if number > len(self._free):
            before = max(self._num_slots, 1)  # slot 0 is nobody's
            self._num_slots = max(2 * self._num_slots, self._num_slots + number + 1, _FIRST_SLOTS)
            self._free = np.concatenate([np.arange(before, self._num_slots)[::-1], self._free])
        taken = self._free[len(self._free) - number :][::-1].copy()
        self._free = self._free[: len(self._free) - number]
        return taken


class OpenScorer:
    """Scores prefixes of queries that come and go; each prefix once."""

    def __init__(self, model: TreeModel) -> None:
        """Holds nothing yet."""
        self._model, self._cache = model, PooledCache()
        self._states: dict[int, QueryState] = {}
        self._prompts: dict[int, Prompt] = {}
        """Of the queries whose prompts are not encoded yet."""
        self._unread: dict[int, dict[Prefix, torch.Tensor]] = {}
        """Hidden states of ancestors that nobody has asked for."""
        self._next = 0

    @property
    def num_slots(self) -> int:
        """Slots of the cache that hold something."""
        return self._cache.num_used

    @property
    def num_slots_held(self) -> int:
        """Slots that there is memory for."""
        return self._cache.get_seq_length()

    def enter(self, prompt: Prompt) -> int:
        """Returns the number of a new query; its prompt is encoded with the next requests.

        Raises:
            ValueError: The prompt has no token of its own.
        """
        shared, own = prompt
        if not len(own):
            raise ValueError("every query needs a prompt with at least one token of its own")
        query, self._next = self._next, self._next + 1
        self._cache.open(query, tuple(shared), self._model)
        self._states[query] = QueryState(query, len(shared) + len(own))
        self._prompts[query], self._unread[query] = prompt, {}
        return query

    def leave(self, query: int) -> None:
        """Forgets a query."""
        self._cache.close(query)
        del self._states[query], self._unread[query]
        self._prompts.pop(query, None)

    def log_probs(self, requests: Sequence[Request], normalise: Sequence[str]) -> list[np.ndarray]:
        """Returns the log-probabilities (float64 [C]) of each request's tokens, by the normalisation of each; one forward pass.

        Raises:
            ValueError: Prompt and docid are longer than the model's sliding window, or a score is not finite.
        """
        hidden_RD = self._hidden(requests)
        found: list[np.ndarray] = [np.empty(0)] * len(requests)
        for kind in dict.fromkeys(normalise):
            chosen = [number for number, each in enumerate(normalise) if each == kind]
            asked, hidden = [requests[number] for number in chosen], hidden_RD[chosen]
            bonus_C = self._model.terms.bonuses(asked, hidden) if len(self._model.terms) else None
            values = self._model.head_log_probs(hidden, [request.tokens for request in asked], kind, bonus_C)
            for number, value in zip(chosen, values, strict=True):
                found[number] = value
        return found

    @torch.inference_mode()
    def _hidden(self, requests: Sequence[Request]) -> torch.Tensor:
        """Returns the hidden states behind the prefixes, [R, D]."""
        wanted: dict[int, list[Prefix]] = {}
        for request in requests:
            wanted.setdefault(request.query, []).append(request.prefix)
        new: list[NewTokens] = []
        place_of: dict[tuple[int, Prefix], int] = {}
        num_tokens = 0
        for query, prefixes in wanted.items():
            state = self._states[query]
            if query in self._prompts:
                shared, own = self._prompts.pop(query)
                new.append(text_tokens(query, own, len(shared)))
                num_tokens += len(own)
                place_of[query, ()] = num_tokens - 1
            if added := state.add(prefixes, 0):
                new.append(state.new_tokens(added, self._model.max_length))
                place_of |= {(query, prefix): num_tokens + number for number, prefix in enumerate(added)}
                num_tokens += len(added)
        hidden_TD = self._model.forward(self._cache, new) if new else None
        places: list[int] = []
        known: list[torch.Tensor] = []
        for request in requests:
            place = place_of.pop((request.query, request.prefix), None)
            if place is None:
                place = num_tokens + len(known)
                known.append(self._unread[request.query].pop(request.prefix))
            places.append(place)
        parts = [] if hidden_TD is None else [hidden_TD]
        for (query, prefix), place in place_of.items():
            self._unread[query][prefix] = parts[0][place].clone()  # not the whole pass with it
        return torch.cat([*parts, *([torch.stack(known)] if known else [])])[places]
