"""What the decoder asks of a language model: log-probabilities of the allowed tokens after prefixes of docids.

A `Scorer` answers for a batch of queries at once. `zerogr.decoding.language_model` has the one for Hugging Face models;
`CallableScorer` makes one of any function that gives scores over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Prefix = tuple[int, ...]

Scores = Callable[[list[Prefix]], np.ndarray]
"""prefixes -> float array [len(prefixes), V], unnormalised log-probabilities of the next token, for one query."""

NORMALISATIONS = ("allowed", "vocabulary")
"""`allowed`: softmax over the tokens that the trie allows; `vocabulary`: over all V, then masked."""


class Request(NamedTuple):
    """One prefix, and the tokens whose log-probabilities are wanted."""

    query: int
    """Place of the query in the batch."""
    prefix: Prefix
    tokens: np.ndarray
    """int [C], at least one: all that may follow the prefix, or under `vocabulary` any of them."""


class Scorer(Protocol):
    """The language model for a batch of queries."""

    num_queries: int

    def log_probs(self, requests: Sequence[Request], normalise: str) -> list[np.ndarray]:
        """Returns the log-probabilities (float64 [C]) of each request's tokens."""


class CallableScorer:
    """A scorer for one query from a function over prefixes, such as a table of probabilities."""

    num_queries = 1

    def __init__(self, scores: Scores):
        self._scores = scores

    def log_probs(self, requests: Sequence[Request], normalise: str) -> list[np.ndarray]:
        """Returns the log-probabilities (float64 [C]) of each request's tokens, in one call of the function."""
        prefixes = list(dict.fromkeys(request.prefix for request in requests))
        logits_of = dict(zip(prefixes, np.asarray(self._scores(prefixes)), strict=True))
        values = [logits_of[request.prefix][request.tokens] for request in requests]
        if normalise == "allowed":
            return split_log_softmax(np.concatenate(values), [len(value) for value in values])
        log_sums = {prefix: _log_sum_exp(logits) for prefix, logits in logits_of.items()}
        return [
            checked(value.astype(np.float64) - log_sums[request.prefix])
            for value, request in zip(values, requests, strict=True)
        ]


def split_log_softmax(logits: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """The log-softmax (float64) of each of the consecutive pieces of `logits`, which are `lengths` long, at least 1."""
    ends = np.cumsum(lengths)
    begins = ends - np.array(lengths)
    logits = logits.astype(np.float64)
    logits -= np.repeat(np.maximum.reduceat(logits, begins), lengths)
    logits -= np.repeat(np.log(np.add.reduceat(np.exp(logits), begins)), lengths)
    return np.split(checked(logits), ends[:-1])


def checked(log_probs: np.ndarray) -> np.ndarray:
    """The log-probabilities, all of which are finite.

    Raises:
        ValueError: One is not: the model is broken, or forbids a token that the trie allows.
    """
    if not np.isfinite(log_probs).all():
        raise ValueError(f"scores must be finite for allowed tokens, got log-probabilities {log_probs}")
    return log_probs


def _log_sum_exp(values: np.ndarray) -> float:
    values = values.astype(np.float64)
    highest = float(values.max())
    return highest + float(np.log(np.exp(values - highest).sum()))
