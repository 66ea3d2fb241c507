"""Decoding: from a language model, a trie and a strategy to a ranked list of documents per query."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from zerogr.decoding.scoring import NORMALISATIONS, CallableScorer, Request, Scorer, Scores
from zerogr.decoding.strategies import STRATEGIES, Outcome, Policy
from zerogr.decoding.tree import Node, ScoredTree, Trie

logger = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """One retrieved document."""

    row: int
    """The document's row in the input of `DocidTrie.build`."""
    tokens: tuple[int, ...]
    """Its docid, without the end token."""
    score: float
    """Natural-log probability of the docid and its end at temperature 1."""


class DecodedList(list[Decoded]):
    """The retrieved documents, best first, and what they cost."""

    bound_hit: bool = False
    """True if a bound on the work ended an exact search early: the documents are good, but maybe not the best."""
    num_scored: int = 0
    """Prefixes the model has scored."""
    num_rounds: int = 0
    """Calls of the model."""
    tree: ScoredTree | None = None
    """The prefixes that were visited, where they are kept (`zerogr.decoding.stream`)."""


def decode(
    scores: Scores,
    trie: Trie,
    k: int,
    *,
    eos_token_id: int,
    strategy: str,
    seed: int = 0,
    normalise: str = "allowed",
    **options: Any,
) -> DecodedList:
    """The k distinct documents that a strategy finds for one query, best first, or all of them when there are fewer.

    Args:
        scores: The language model: prefixes -> float array [len(prefixes), V] of unnormalised log-probabilities of the
            next token. Never asked twice for the same prefix.
        trie: The docids, built without an end token; `trie.filter(allow=..., deny=...)` for some of the documents.
        k: The number of documents. Documents that share a docid come out together, in row order, and are cut at k.
        eos_token_id: Ends a docid; allowed exactly where some docid ends.
        strategy: A key of `STRATEGIES`. Sampling strategies return documents in the order of the draws.
        seed: The same seed gives the same answer, given the same scores.
        normalise: `allowed` is the softmax over the tokens the trie allows, `vocabulary` over all V, then masked.
            Sampling always chooses among the allowed tokens; there it only decides about the returned scores.
        options: The strategy's own, see `zerogr.decoding.strategies`.

    Returns:
        A list of `Decoded` that also tells what it cost and whether a bound was hit.

    Raises:
        ValueError: An unknown strategy, option or normalisation, a value outside its limits, k < 1, or a docid that
            contains the end token.
    """
    [decoded] = decode_batch(
        CallableScorer(scores),
        trie,
        k,
        eos_token_id=eos_token_id,
        strategy=strategy,
        seed=seed,
        normalise=normalise,
        **options,
    )
    return decoded


def decode_batch(
    scorer: Scorer,
    trie: Trie,
    k: int,
    *,
    eos_token_id: int,
    strategy: str,
    seed: int = 0,
    normalise: str = "allowed",
    **options: Any,
) -> list[DecodedList]:
    """What `decode` finds for each query of a batch; every round asks the model once, for all queries.

    Args:
        scorer: The language model with the batch's prompts.
        trie, k, eos_token_id, strategy, seed, normalise, options: As in `decode`, for every query.

    Raises:
        ValueError: As in `decode`.
    """
    policy_of = checked_policy(trie, k, eos_token_id, strategy, normalise, options)
    if trie.num_docids == 0:
        return [DecodedList() for _ in range(scorer.num_queries)]

    searches = []
    for query in range(scorer.num_queries):
        tree = ScoredTree(trie, eos_token_id, normalise, query)
        searches.append(Underway(tree, policy_of(tree, k, seed, **options)))
    while underway := [search for search in searches if search.requests]:
        answers = scorer.log_probs([request for search in underway for request in search.requests], normalise)
        begin = 0
        for search in underway:
            end = begin + len(search.requests)
            search.resume(answers[begin:end])
            begin = end
    return [search.documents(k, strategy) for search in searches]


def checked_policy(
    trie: Trie, k: int, eos_token_id: int, strategy: str, normalise: str, options: Iterable[str]
) -> Callable[..., Policy]:
    """Returns the policy of a strategy, if all that is wanted of it makes sense.

    Raises:
        ValueError: As in `decode`, but for the values of options, which the policy checks itself.
    """
    found = policy(strategy, options)
    if normalise not in NORMALISATIONS:
        raise ValueError(_unknown("normalisation", normalise, NORMALISATIONS))
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if np.isin(eos_token_id, trie.vocabulary):
        raise ValueError(f"the end token {eos_token_id} occurs inside a docid; build the trie without end tokens")
    return found


def policy(strategy: str, options: Iterable[str] = ()) -> Callable[..., Policy]:
    """Returns the policy of a strategy that knows the options.

    Raises:
        ValueError: An unknown strategy, or one that has no such option.
    """
    found = STRATEGIES.get(strategy)
    if found is None:
        raise ValueError(_unknown("strategy", strategy, STRATEGIES))
    parameters = inspect.signature(found).parameters.values()
    known_options = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known_options:
            raise ValueError(_unknown(f"option of {strategy}", option, known_options))
    return found


class Underway:
    """One query's policy on its way, stopped where it needs the model."""

    def __init__(self, tree: ScoredTree, policy: Policy):
        self.tree = tree
        self.requests: list[Request] = []
        """What it waits for; empty once it is done."""
        self.outcome: Outcome | None = None
        self._policy = policy
        self._waiting: list[Node] = []
        self._advance()

    def resume(self, log_probs: list[np.ndarray]) -> None:
        """Goes on with the answers to `requests` until it needs the model again."""
        self.tree.accept(self._waiting, log_probs)
        self._advance()

    def _advance(self) -> None:
        self.requests = []
        while not self.requests:
            try:
                ask = next(self._policy)
            except StopIteration as finished:
                self.outcome = finished.value
                return
            self._waiting, self.requests = self.tree.requests(ask)

    def documents(self, k: int, strategy: str) -> DecodedList:
        """The documents of the leaves that the policy has found."""
        assert self.outcome is not None, "the search is not done"
        decoded = DecodedList()
        for leaf in self.outcome.leaves:
            tokens = (leaf.path + leaf.tail)[:-1]
            decoded += [Decoded(row, tokens, leaf.total) for row in self.tree.rows(leaf).tolist()]
        del decoded[k:]
        decoded.bound_hit = self.outcome.bound_hit
        decoded.num_scored, decoded.num_rounds = self.tree.num_scored, self.tree.num_rounds
        if decoded.bound_hit:
            logger.warning(
                "%s reached its bound after %d scored prefixes: the ranking may be inexact",
                strategy,
                decoded.num_scored,
            )
        return decoded


def _unknown(kind: str, value: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {value!r}{hint} Known: {', '.join(known) or 'none'}."
