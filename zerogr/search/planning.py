"""What is decided of a search before a query is read: who writes, who ranks, how, and what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from zerogr.ranking.ranker import Leaves, Ranker, Ranking, num_leaves_of, ranker_within
from zerogr.search.answer import Documents
from zerogr.search.contents import SNIPPET_CHARACTERS, Contents
from zerogr.search.reranking import reranked
from zerogr.search.views import Views
from zerogr.search.writer import Prompt, Writer, settings_of
from zerogr.trie.conditions import Conditions


class Plan(NamedTuple):
    """A search of any queries."""

    writer: Writer
    """Of the documents that may be found."""
    ranker: Ranker
    k: int
    num_leaves: int
    """To be written."""
    options: dict[str, Any]
    """Of `zerogr.decoding.decode`, strategy and seed among them."""
    rerank: bool
    wanted: Contents
    """Of the documents that are found."""

    def rankings(
        self, documents: Documents, queries: Sequence[str], prompts: Sequence[Prompt], leaves: Sequence[Leaves]
    ) -> list[Ranking]:
        """Returns the documents of each query by what was written for it. Raises UserError if they cannot be re-ranked."""
        found = [self.ranker.rank(query, written, self.k) for query, written in zip(queries, leaves, strict=True)]
        return reranked(self.writer, documents, prompts, found) if self.rerank else found


def plan_of(
    views: Views,
    decoding: dict[str, Any],
    *,
    k: int | None = None,
    strategy: str | None = None,
    ranking: str | None = None,
    num_leaves: int | None = None,
    rerank: bool = False,
    seed: int = 0,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    filter: Conditions | None = None,
    fields: Sequence[str] = (),
    snippet_characters: int = SNIPPET_CHARACTERS,
    **options: Any,
) -> Plan:
    """Returns the plan of a search; the arguments are those of `zerogr.retriever.Retriever.search` and `restricted`.

    Args:
        views: Of the index.
        decoding: Its defaults.

    Raises:
        UserError: `ranking`, `num_leaves`, `filter` or `fields` is nothing that the index has.
    """
    wanted, (writer, ranker) = Contents.of(fields, snippet_characters), views.of(allow, deny, filter)
    strategy, k, ranker = strategy or decoding["strategy"], k or decoding["k"], ranker_within(ranker, ranking)
    options = {**settings_of(decoding, strategy), **options, "strategy": strategy, "seed": seed}
    leaves = num_leaves_of(ranker, k, num_leaves, options.get("beam_width"))
    return Plan(writer, ranker, k, leaves, options, rerank, wanted)
