"""Solving for the terms of new documents, and checking them; see `zerogr.editing.methods.certificate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from zerogr.decoding.language_model import Prompt, TreeModel
from zerogr.decoding.scoring import Prefix, Request
from zerogr.decoding.terms import gates
from zerogr.editing.gate import Margins, lowered, solve
from zerogr.editing.method import Setting
from zerogr.editing.sample import Known, Sample
from zerogr.llm.chat import ChatFormat

MOST_GATES = 4
"""At a choice, for several queries: the first for all of a document's, each other for those that are not won yet. Those that
are then left get a gate each."""
LEAST_MARGIN = 0.1
"""By which a gate leaves others' queries to their own tokens, in logits, whatever it costs its own."""
MOST_BELOW = 256
"""Queries of other documents that are looked at below the root, at each node."""
_AT_ONCE = 64


class Outcome(NamedTuple):
    """Whether a document got what it needs."""

    num_own: int
    num_won: int
    """Of its own queries, those that now find it by greedy decoding."""
    num_taken: int
    """Of others' queries that were looked at, those that a choice on its path has taken from their document."""

    @property
    def is_certified(self) -> bool:
        """Whether it wins all its own queries, and takes none of the others'."""
        return self.num_won == self.num_own and not self.num_taken

    @property
    def in_words(self) -> str:
        """For people."""
        return f"wins {self.num_won} of its {self.num_own} queries, takes {self.num_taken} of others"


class _Choice(NamedTuple):
    """A node on a docid's path where several tokens are allowed."""

    prefix: Prefix
    tokens: np.ndarray
    """int64 [C], ascending."""
    option: int
    """Which of them is the docid's."""
    is_new: bool
    """Whether no other document has that token here."""


@dataclass(slots=True)
class _Rivals:
    """Other documents' queries at a choice, that want another of its tokens."""

    states: torch.Tensor
    """fp32 [n, D]"""
    wanted: torch.Tensor
    """[n]: the score of the token that each wants; no new term changes it."""
    score: torch.Tensor
    """[n]: that of the choice's own, with all terms so far."""

    def room(self, margin: float) -> torch.Tensor:
        """Returns by how much that score may rise, [n]; less than 0 where it is too high already."""
        return self.wanted - margin - self.score

    def are_lost(self) -> torch.Tensor:
        """Returns whether each wants a token that scores less, bool [n]."""
        return self.wanted < self.score


class _Others:
    """The queries that a certifier knows, by place, and the docids that they are to find."""

    def __init__(self, old: Sample, chat: ChatFormat) -> None:
        self._old, self._added = old, list[Known]()
        docids, self._which = old.docids()
        tokens, offsets = chat.docids(docids)
        self._written = [tokens[offsets[i] : offsets[i + 1]].tolist() for i in range(len(docids))]

    def add(self, queries: Sequence[Known], tokens: list[int]) -> None:
        """Adds the queries of a document, given its docid."""
        self._added += queries
        self._which = np.append(self._which, np.full(len(queries), len(self._written)))
        self._written.append(tokens)

    def below(self, prefix: Prefix) -> np.ndarray:
        """Returns the places of those whose docid begins with some tokens, int64 [n]."""
        is_below = np.array([tuple(tokens[: len(prefix)]) == prefix for tokens in self._written], dtype=bool)
        return np.flatnonzero(is_below[self._which])

    def following(self, places: np.ndarray, depth: int, end: int) -> np.ndarray:
        """Returns the tokens of their docids at a depth, int64 [n]; `end` behind the last. None may be shorter."""
        tokens = [(*tokens, end)[depth] if depth <= len(tokens) else -1 for tokens in self._written]
        return np.array(tokens, dtype=np.int64)[self._which[places]]

    def taken(self, places: np.ndarray) -> list[Known]:
        """Returns some of them, those of the sample first."""
        number = len(self._old)
        return self._old.taken(places[places < number]) + [self._added[i - number] for i in places[places >= number]]


class Certifier:
    """Adds documents one by one; each sees those before it."""

    def __init__(self, setting: Setting, old: Sample, margins: Margins) -> None:
        """Reads a sample of old queries."""
        self.terms = setting.terms
        self._setting, self._margins = setting, margins
        self._model = TreeModel(setting.model)
        self._head = setting.model.get_output_embeddings()
        self._others = _Others(old, setting.chat)
        unknown = setting.states.missing(old.keys)
        setting.states.put(old.keys[unknown], self._states(old.taken(unknown), ()))
        self.states = setting.states.only(old.keys)
        """Of all queries that it knows, before the first token."""
        self._at_root = self.states.of(old.keys) if len(old) else self._states([], ())

    def add(self, queries: Sequence[Known]) -> Outcome:
        """Solves for the terms of a document, given by its pseudo-queries."""
        tokens = self._setting.chat.docid(queries[0].docid)
        path = self._path(tokens)
        states = self._states_along(queries, [choice.prefix for choice in path])
        won = torch.ones(len(queries), dtype=torch.bool)
        taken = 0
        for choice, own in zip(path, states, strict=True):
            rivals = self._rivals(choice)
            was_wrong = rivals.are_lost()
            self._solve(choice, own, rivals)
            won &= self._scores(choice, own).argmax(-1) == choice.option
            is_wrong = rivals.are_lost()
            taken += int((is_wrong if choice.is_new else is_wrong & ~was_wrong).sum())
        self._others.add(queries, tokens)
        if path and not path[0].prefix:
            keys = np.array([known.key for known in queries])
            unknown = self.states.missing(keys)
            self.states.put(keys[unknown], states[0][torch.from_numpy(unknown)])
            self._at_root = torch.cat([self._at_root, states[0]])
        return Outcome(len(queries), int(won.sum()), taken)

    def _solve(self, choice: _Choice, own: torch.Tensor, rivals: _Rivals) -> None:
        """Puts the terms of a choice's token: none where none is needed, another for the queries that the first cannot win."""
        token, margins = int(choice.tokens[choice.option]), self._margins

        def put(term: torch.Tensor) -> None:
            self.terms.put(choice.prefix, token, term)
            rivals.score += gates(term[None], rivals.states)[:, 0]

        cost = max(-float(rivals.room(margins.rival).min()), 0.0) if choice.is_new and len(rivals.score) else 0.0
        if cost:
            put(torch.tensor([0.0] * (own.shape[1] + 1) + [cost]))

        def gate(asked: torch.Tensor) -> bool:
            """Puts a gate for some of the own queries, if it wins any; returns whether it does."""
            bar = self._bar(choice, own)[asked]
            found = solve(own[asked], bar, rivals.states, rivals.room(margins.rival).clamp(min=0), margins)
            found = lowered(found, rivals.states, rivals.room(LEAST_MARGIN).clamp(min=0))
            term = torch.cat([found, torch.zeros(1)])
            wins = bool((gates(term[None], own[asked])[:, 0] >= bar - margins.own).any())
            if wins:
                put(term)
            return wins

        lost = self._bar(choice, own) > 0
        for _ in range(MOST_GATES):
            if not bool(lost.any()) or not gate(lost):
                break
            lost = self._bar(choice, own) > margins.own
        for number in torch.nonzero(lost)[:, 0].tolist():
            if float(self._bar(choice, own)[number]) > margins.own:  # the gate of one before may have won it too
                gate(torch.tensor([number]))

    def _bar(self, choice: _Choice, own: torch.Tensor) -> torch.Tensor:
        """Returns what the score of a choice's token lacks for each of its own queries, [n]; the margin is part of it."""
        others = self._scores(choice, own)
        score = others[:, choice.option].clone()
        others[:, choice.option] = -torch.inf
        return others.max(-1).values + self._margins.own - score

    def _scores(self, choice: _Choice, states: torch.Tensor) -> torch.Tensor:
        """Returns the logits (fp32 [n, C]) of a choice's tokens for hidden states [n, D], terms included."""
        weight, bias = self._head_of(choice.tokens)
        logits = torch.nn.functional.linear(states.float(), weight, bias)
        bonus = self.terms.bonus(choice.prefix, choice.tokens, states)
        return logits if bonus is None else logits + bonus

    def _score_of_each(self, prefix: Prefix, tokens: np.ndarray, states: torch.Tensor) -> torch.Tensor:
        """Returns the logit (fp32 [n]) of one token (int64 [n]) for each of some hidden states [n, D], terms included.

        Of thousands of queries each wants one token; what a choice's other tokens score for them is not computed.
        """
        weight, bias = self._head_of(tokens)
        logits = (states.float() * weight).sum(-1)
        logits = logits if bias is None else logits + bias
        return logits + self.terms.bonus_of_each(prefix, tokens, states)

    @torch.no_grad()
    def _head_of(self, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the output head's rows of tokens (fp32 [n, D]) and their biases."""
        rows = torch.from_numpy(tokens).to(self._head.weight.device)
        bias = getattr(self._head, "bias", None)
        return self._head.weight[rows].float().cpu(), None if bias is None else bias[rows].float().cpu()

    def _rivals(self, choice: _Choice) -> _Rivals:
        """Returns the queries that a choice must not take."""
        depth = len(choice.prefix)
        chosen = self._others.below(choice.prefix)
        if depth:
            chosen = chosen[:MOST_BELOW]
            states = self._states(self._others.taken(chosen), choice.prefix)
        else:
            states = self._at_root
        following = self._others.following(chosen, depth, self._setting.chat.end_token_id)
        is_known = np.isin(following, choice.tokens)
        is_rival = is_known & (following != choice.tokens[choice.option])
        states, wanted = states[torch.from_numpy(is_rival)], following[is_rival]
        own = choice._replace(tokens=choice.tokens[[choice.option]])
        return _Rivals(
            states, self._score_of_each(choice.prefix, wanted, states), self._scores(own, states)[:, 0].clone()
        )

    def _path(self, tokens: list[int]) -> list[_Choice]:
        """Returns the choices on the way to a docid."""
        trie, end = self._setting.trie, self._setting.chat.end_token_id
        node, found, oldest = trie.root, [], []
        for depth, token in enumerate([*tokens, end]):
            allowed, nodes = trie.children(node)
            ends, options = trie.ends(node), allowed.astype(np.int64)
            if len(ends):
                options = np.sort(np.append(options, end))
            below = ends
            if token != end:
                node = int(nodes[np.searchsorted(allowed, token)])
                below = trie.rows(node)
            found.append((tuple(tokens[:depth]), options, int(np.searchsorted(options, token))))
            oldest.append(int(below.min()))
        newest = int(below[-1])  # a document's row is greater than those of all that were there before
        return [
            _Choice(*choice, is_new=row >= newest)
            for choice, row in zip(found, oldest, strict=True)
            if len(choice[1]) > 1
        ]

    def _states(self, queries: Sequence[Known], prefix: Prefix) -> torch.Tensor:
        """Returns the hidden states of queries behind a prefix, fp32 [n, D]."""
        width = self._setting.model.config.hidden_size
        parts = [torch.empty(0, width)]
        for begin in range(0, len(queries), _AT_ONCE):
            [states] = self._states_along(queries[begin : begin + _AT_ONCE], [prefix])
            parts.append(states)
        return torch.cat(parts)

    def _states_along(self, queries: Sequence[Known], prefixes: Sequence[Prefix]) -> list[torch.Tensor]:
        """Returns the hidden states of queries behind each prefix, fp32 [n, D] each."""
        if not queries or not prefixes:
            return [torch.empty(0, self._setting.model.config.hidden_size) for _ in prefixes]
        scorer = self._model.start([self._prompt(known) for known in queries])
        nothing = np.empty(0, dtype=np.int64)
        requests = [Request(query, prefix, nothing) for prefix in prefixes for query in range(len(queries))]
        hidden = scorer.hidden(requests).float().cpu()
        return list(torch.split(hidden, len(queries)))

    def _prompt(self, known: Known) -> Prompt:
        chat = self._setting.chat
        return chat.prefix(known.example.instruction), chat.query(known.example.query)
