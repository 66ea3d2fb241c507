"""What was missed: the queries that a system did not answer at the first place, with all that is known about each of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from zerogr.evaluation.comparison import FIRST, Comparison
from zerogr.evaluation.explain import MEANINGS
from zerogr.evaluation.report.page import Block, Code, Command, Fold, Heading, Inline, Line, Paragraph, Strong, Table
from zerogr.evaluation.systems import StrategySpec

MAX_MISSED = 50
"""Queries in the page; all are in queries.jsonl."""
MAX_RELEVANT = 10
"""Relevant documents that are named of a missed query."""
NAMED_RELEVANT = 3
"""Relevant documents whose beginning is shown."""
_NOT_FOUND = 10**9


def missed_queries(comparison: Comparison, index: str) -> list[Block]:
    """Returns a section of the report: the missed queries of the first system, the worst first, each to be unfolded.

    Args:
        comparison: What came out.
        index: Of the commands that explain a miss.
    """
    first, others = comparison.answers[0], comparison.answers[1:]
    queries = {query["query_id"]: query for query in comparison.queries}
    missed = [query for query in queries.values() if query["systems"][first.system]["first_relevant_rank"] != 1]
    if not missed:
        return []

    def how_bad(query: Mapping[str, Any]) -> tuple[float, float]:
        ranks = {system: each["first_relevant_rank"] or _NOT_FOUND for system, each in query["systems"].items()}
        return -ranks[first.system], min((ranks[each.system] for each in others), default=0)

    shown = sorted(missed, key=how_bad)[:MAX_MISSED]
    num_left = len(missed) - len(shown)
    explained = (
        f"{len(missed)} of {len(queries)} queries have no relevant document at the first place of {first.system}. First come "
        "those where it did not find one at all, and of those the ones that another system has nearest to the top."
    )
    explained += f" {num_left} more are in queries.jsonl." if num_left else ""
    return [
        Heading("What was missed"),
        Paragraph(explained),
        *(_missed_query(comparison, query, index) for query in shown),
    ]


def _missed_query(comparison: Comparison, query: Mapping[str, Any], index: str) -> Fold:
    first, relevant, error = comparison.answers[0], query["relevant"], query["error"]
    rank = query["systems"][first.system]["first_relevant_rank"]
    blocks: list[Block] = [Paragraph(_documents("Relevant: ", list(relevant)))]
    if error:
        lost = "" if error["lost_at"] is None else f"; the relevant one had lost with token {error['lost_at'] + 1}"
        blocks.append(
            Paragraph(
                (Strong(error["verdict"]), f": {MEANINGS[error['verdict']]}. The relevant ", Code(error["doc_id"]),
                 " has the docid ", Code(error["docid"]), ", the first hit ", Code(error["first"]),
                 " has ", Code(error["first_docid"]), f"{lost}.")
            )
        )  # fmt: skip
    rows: list[Sequence[Line]] = []
    named = dict.fromkeys(list(relevant)[:NAMED_RELEVANT])
    for system, found in query["systems"].items():
        named |= dict.fromkeys(found["top"][:FIRST])
        hits = [Strong(doc_id) if doc_id in relevant else doc_id for doc_id in found["top"][:FIRST]]
        hits += [""] * (FIRST - len(hits))
        rows.append([system, *hits, str(found["first_relevant_rank"] or "not found"), f"{found['ndcg@10']:.3f}"])
    places = [f"hit {place}" for place in range(1, FIRST + 1)]
    blocks.append(Table(["system", *places, "first relevant at", "nDCG@10"], rows, 1 + FIRST))
    openings = [[Strong(d) if d in relevant else d, comparison.openings[d]] for d in named if d in comparison.openings]
    if openings:
        blocks.append(Table(["document", "begins"], openings, 2, wraps=True))
    blocks.append(Command(explain_command(comparison, query, index)))
    return Fold((query["query"], f" (first relevant at {rank})" if rank else " (not found)"), blocks)


def _documents(before: str, doc_ids: Sequence[str]) -> tuple[Inline, ...]:
    shown: list[Inline] = [before]
    for place, doc_id in enumerate(doc_ids[:MAX_RELEVANT]):
        shown += [", ", Code(doc_id)] if place else [Code(doc_id)]
    more = len(doc_ids) - MAX_RELEVANT
    return (*shown, f" and {more} more." if more > 0 else ".")


def explain_command(comparison: Comparison, query: Mapping[str, Any], index: str) -> str:
    """Returns what to type to see where a query's relevant document was lost."""
    first = comparison.answers[0]
    wanted = query["error"]["doc_id"] if query["error"] else next(iter(query["relevant"]))
    instruction = comparison.collection.queries[query["query_id"]].instruction
    # With `=`, a text that begins with a dash is no option; `--` does the same for the query.
    words = ["zerogr", "explain", f"--doc={wanted}"]
    words += [f"--instruction={instruction}"] if instruction else []
    if first.strategy:
        options = {key: value for key, value in first.options.items() if key != "k"}
        words.append(f"--strategy={StrategySpec(first.strategy, options).text}")
    words += [f"-k{first.k}"] if first.k is not None else []
    return shlex.join([*words, "--", index, query["query"]])
