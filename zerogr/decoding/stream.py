"""Continuous decoding: searches enter a running batch, and leave it when their policies are done.

    stream = Stream(model, eos_token_id=...)
    search = stream.enter(Search(prompt, trie, k=10, strategy="beam"))
    while stream.is_busy:
        for search, documents in stream.round(): ...

A round is one forward pass for all searches that are underway: the prompts of new ones go with the prefixes of others. Each
search has its own trie, strategy, k and seed. What it finds does not depend on its neighbours, but for the rounding of sums
whose order they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zerogr.decoding.decoder import DecodedList, Underway, checked_policy
from zerogr.decoding.language_model import Prompt, TreeModel
from zerogr.decoding.pool import OpenScorer
from zerogr.decoding.tree import ScoredTree, Trie


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What is wanted of one query; see `zerogr.decoding.decode`."""

    prompt: Prompt
    trie: Trie
    k: int
    strategy: str
    seed: int = 0
    normalise: str = "allowed"
    options: dict[str, Any] = field(default_factory=dict)
    keeps_tree: bool = False
    """Whether what is found comes with the tree of prefixes."""


class Stream:
    """Searches underway. Not thread-safe: whoever has it calls one method at a time."""

    def __init__(self, model: TreeModel, *, eos_token_id: int, most_slots: int = 2**18) -> None:
        """Takes over the model.

        Args:
            model: That scores.
            eos_token_id: Ends a docid.
            most_slots: Keys and values that the memory of the cache is kept for when no search is underway.
        """
        self._model, self._eos_token_id, self._most_slots = model, eos_token_id, most_slots
        self._scorer = OpenScorer(model)
        self._searches: dict[Search, tuple[int, Underway]] = {}
        self._empty: list[Search] = []
        """Of tries without a docid."""

    def __len__(self) -> int:
        return len(self._searches) + len(self._empty)

    @property
    def num_slots(self) -> int:
        """Tokens whose keys and values are held."""
        return self._scorer.num_slots

    def enter(self, search: Search) -> None:
        """Lets a search take part from the next round on.

        Raises:
            ValueError: As `zerogr.decoding.decode`, or the prompt is empty.
        """
        policy_of = checked_policy(
            search.trie, search.k, self._eos_token_id, search.strategy, search.normalise, search.options
        )
        if search.trie.num_docids == 0:
            self._empty.append(search)
            return
        query = self._scorer.enter(search.prompt)
        tree = ScoredTree(search.trie, self._eos_token_id, search.normalise, query)
        try:
            underway = Underway(tree, policy_of(tree, search.k, search.seed, **search.options))
        except ValueError:  # an option has a value that the policy does not take
            self._scorer.leave(query)
            raise
        self._searches[search] = (query, underway)

    def leave(self, search: Search) -> None:
        """Drops a search, if it is still underway."""
        if search in self._empty:
            self._empty.remove(search)
        if found := self._searches.pop(search, None):
            self._scorer.leave(found[0])
            self._shrink()

    def round(self) -> Iterator[tuple[Search, DecodedList]]:
        """Asks the model once for all searches; yields those that are done, and what they found.

        Raises:
            ValueError: A score is not finite, or prompt and docid are longer than the model's sliding window.
        """
        yield from [(search, DecodedList()) for search in self._empty]
        self._empty.clear()
        underway = list(self._searches.items())
        if not underway:
            return
        requests = [request for _, (_, each) in underway for request in each.requests]
        normalise = [search.normalise for search, (_, each) in underway for _ in each.requests]
        answers = iter(self._scorer.log_probs(requests, normalise))
        for search, (_, each) in underway:
            each.resume([next(answers) for _ in each.requests])
            if not each.requests:
                self.leave(search)
                documents = each.documents(search.k, search.strategy)
                documents.tree = each.tree if search.keeps_tree else None
                yield search, documents

    def _shrink(self) -> None:
        if not self._searches and self._scorer.num_slots_held > self._most_slots:
            self._scorer = OpenScorer(self._model)
