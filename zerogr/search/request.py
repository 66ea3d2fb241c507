"""A request that is answered beside others (`zerogr.search.answering`): what it wants, what was found, what it has cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zerogr.decoding.decoder import DecodedList
from zerogr.ranking.ranker import Leaves, Part, Ranking
from zerogr.search.planning import Plan
from zerogr.search.record import Record
from zerogr.search.writer import Prompt


class Cost(NamedTuple):
    """What a query has cost."""

    num_together: int
    """Queries that were decoded together when it was done."""
    num_rounds: int | None = None
    """Calls of the model that it took part in; this and what follows is None where array programs decode."""
    num_prefixes: int | None = None
    """That the model has scored for it."""


class Work(NamedTuple):
    """What a request has cost."""

    queue_s: float
    """Until it was taken up."""
    prompt_s: float
    """Its plan, and the tokens of its prompts."""
    decoding_s: float
    """All rounds until its last query was done, and ranking."""
    costs: list[Cost]
    """Of its queries, in the order in which they were done."""


@dataclass(eq=False)
class Request:
    """Queries that are answered together."""

    queries: Sequence[str]
    how: dict[str, Any]
    """Of the plan."""
    instruction: str | None
    deadline: float
    """By `time.monotonic`."""
    found: Future[list[Ranking]] = field(default_factory=Future)
    asked_at: float = field(default_factory=time.monotonic)
    taken_at: float = 0.0
    """When its plan was made."""
    begun_at: float = 0.0
    """When its first query was decoded."""
    found_at: float = 0.0
    """When its last query was ranked."""
    costs: list[Cost] = field(default_factory=list)
    plan: Plan | None = None
    prompts: list[Prompt] = field(default_factory=list)
    num_entered: int = 0
    leaves: dict[int, Leaves] = field(default_factory=dict)
    """What was written, by the number of the query."""
    is_dropped: bool = False
    is_recorded: bool = False
    """Whether it is kept how its documents were found."""
    decoded: dict[int, DecodedList] = field(default_factory=dict)
    """What was written, with the trees, where it is recorded."""
    records: list[tuple[Record | None, list[list[Part]] | None]] = field(default_factory=list)
    """Of each query, where it is recorded: the tree or the parts."""

    @property
    def work(self) -> Work:
        """What it has cost; once `found` is done."""
        return Work(
            self.taken_at - self.asked_at, self.begun_at - self.taken_at, self.found_at - self.begun_at, self.costs
        )

    def drop(self) -> None:
        """Says that nobody waits for the answer any more."""
        self.is_dropped = True
