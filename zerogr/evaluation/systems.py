"""Systems: what is compared. A decoding strategy with its options, written as one word, and the answers of any system.

    beam                                    as the index decodes by itself
    beam:beam_width=200                     options of the strategy, see `zerogr.decoding.strategies`
    reverse_annealing:max_temperature=1,k=20,normalise=vocabulary

`k`, `normalise`, `rerank` (by the score that the loss ranknet teaches), `ranking` (one part of a mix) and, where terms are
generated, `num_leaves` are options of every strategy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from zerogr.decoding import NORMALISATIONS, decode
from zerogr.decoding.decoder import policy
from zerogr.errors import UserError
from zerogr.evaluation.metrics import Run
from zerogr.trie import DocidTrie

_OF_SEARCH = ("ranking", "num_leaves", "rerank")
"""Options of a search that decoding does not see."""
_OF_EVERY_STRATEGY = ("k", "normalise", *_OF_SEARCH)


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """A decoding strategy with its options."""

    strategy: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> StrategySpec:
        """Returns what `text` says.

        Raises:
            UserError: An unknown strategy or option, or an option without a value.
        """
        strategy, _, rest = text.partition(":")
        options = {}
        for part in rest.split(",") if rest else []:
            match = re.fullmatch(r"([a-z_]+)=([A-Za-z0-9_.+-]+)", part)
            if match is None:
                raise UserError(
                    f"'{text}' is no strategy: after the colon stand OPTION=VALUE, separated by commas, not '{part}'"
                )
            options[match[1]] = yaml.safe_load(match[2])
        try:
            policy(strategy, [option for option in options if option not in _OF_EVERY_STRATEGY])
        except ValueError as error:
            raise UserError(f"'{text}' is no strategy: {error}") from None
        k, normalise = options.get("k", 1), options.get("normalise", NORMALISATIONS[0])
        for name, number in (("k", k), ("num_leaves", options.get("num_leaves", 1))):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"'{text}' is no strategy: {name} must be a whole number of at least 1, not {number!r}")
        if normalise not in NORMALISATIONS:
            raise UserError(
                f"'{text}' is no strategy: normalise must be {' or '.join(NORMALISATIONS)}, not {normalise!r}"
            )
        if not isinstance(options.get("rerank", True), bool):
            raise UserError(f"'{text}' is no strategy: rerank must be true or false, not {options['rerank']!r}")
        return cls(strategy, options)

    def check(self, k: int) -> None:
        """Raises UserError for an option whose value the strategy does not take; `k` is what is asked for without one."""
        options = {
            "k": k,
            **{name: value for name, value in self.options.items() if name not in _OF_SEARCH},
        }
        smallest = DocidTrie.build([[0], [1]])
        try:
            decode(
                lambda prefixes: np.zeros((len(prefixes), 3)),
                smallest,
                eos_token_id=2,
                strategy=self.strategy,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"the strategy {self.system.removeprefix('zerogr-')} cannot run: {error}") from None

    @property
    def text(self) -> str:
        """What `parse` reads it from."""
        return ":".join(
            filter(None, [self.strategy, ",".join(f"{key}={value}" for key, value in self.options.items())])
        )

    @property
    def system(self) -> str:
        """A name for tables and files, such as `zerogr-beam+beam_width=200`."""
        return "+".join([f"zerogr-{self.strategy}", *(f"{key}={value}" for key, value in self.options.items())])


@dataclass(frozen=True, slots=True)
class Answers:
    """What a system found for the judged queries, and what that cost."""

    system: str
    run: Run
    strategy: str | None = None
    """Of a generative system; its options are in `options`."""
    ms_per_query: float | None = None
    """None where only a run file is known."""
    seconds_to_index: float | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    """Query id -> score of every document of the run; of a generative system."""
    k: int | None = None
    """Documents asked for per query; None where only a run file is known."""
    options: dict[str, Any] = field(default_factory=dict)
    has_log_probs: bool = True
    """Whether the scores, where there are any, are natural-log probabilities."""

    def without_the_query(self, k: int | None) -> Answers:
        """Returns the answers without the document that has the query's own id, at most k of each."""
        kept = {
            query_id: [i for i, doc_id in enumerate(found) if doc_id != query_id][:k]
            for query_id, found in self.run.items()
        }
        run = {query_id: [self.run[query_id][i] for i in places] for query_id, places in kept.items()}
        scores = {query_id: [scores[i] for i in kept[query_id]] for query_id, scores in self.scores.items()}
        return replace(self, run=run, scores=scores, k=k)
