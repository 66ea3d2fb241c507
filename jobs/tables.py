"""What the commands print for people: tables on standard output, a line per row, columns that line up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from math import exp
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerogr.evaluation.explain import Explanation
    from zerogr.index.index import StageRecord
    from zerogr.ranking.ranker import Part
    from zerogr.retriever import Retriever
    from zerogr.search.answer import Hit, Traced

MOST_PARTS = 16
"""Of a document, in an explanation."""
ALWAYS_SHOWN = ("mrr@10", "map")
"""Metrics of the table, whatever is tested."""
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of what follows."""


def print_stages(uri: str, records: dict[str, StageRecord]) -> None:
    """Prints where the index is and what its stages did."""
    from zerogr.progress import duration

    print(uri)
    for stage, record in records.items():
        print(f"  {stage:<10}  {duration(record.seconds):>7}  {record.files:>5} files  {summary(record.counts)}")


def print_leftovers(found: dict[str, Any]) -> None:
    """Prints what was deleted of an index, or would be."""
    print(found["index"])
    rows = found["leftovers"]
    kinds, places = (max((len(row[key]) for row in rows), default=0) for key in ("kind", "place"))
    for row in rows:
        print(
            f"  {row['kind']:<{kinds}}  {row['place']:<{places}}  {row['files']:>7,} files  {row['bytes']:>15,} bytes"
        )
    said = "would delete" if found["dry_run"] else "deleted"
    print(f"{said} {found['files']:,} files, {found['bytes']:,} bytes" if rows else "there is nothing to delete")


def print_comparison(rows: list[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Prints a table of systems, the given metrics first."""
    from zerogr.evaluation.metrics import METRICS

    width = max(28, *(len(row["system"]) + 2 for row in rows))
    columns = list(dict.fromkeys((*metrics, *ALWAYS_SHOWN)))
    names = "".join(f"{METRICS[metric]:>12}" for metric in columns)
    print(f"{'system':<{width}}{'queries':>8}{names}{'ms/query':>12}")
    for row in rows:
        ms = "" if row["ms_per_query"] is None else f"{row['ms_per_query']:.1f}"
        values = "".join(f"{row[metric]:>12.3f}" for metric in columns)
        print(f"{row['system']:<{width}}{row['num_queries']:>8}{values}{ms:>12}")


def print_differences(differences: list[dict[str, Any]]) -> None:
    """Prints how the first system differs from the others, and how surely."""
    if not differences:
        return
    print(
        f"\n{differences[0]['system']} against         difference  95 % interval    p (paired randomisation)  wins/losses"
    )
    width = max(len(row["against"]) for row in differences)
    for row in differences:
        print(
            f"  {row['against']:<{width}}  {row['metric']:<10}  {row['mean']:+.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]"
            f"  p = {row['p']:.4f}  {row['wins']}/{row['losses']}"
        )


def print_ablation(rows: list[dict[str, Any]]) -> None:
    """Prints the variants of an ablation: what moved nDCG@10 against the base, and how surely."""
    width = max(len(row["variant"]) for row in rows)
    system_width = max(len(row["system"]) for row in rows)
    print(
        f"{'variant':<{width}}  {'system':<{system_width}}{'Acc@1':>8}{'nDCG@10':>9}{'Recall@100':>12}"
        f"{'- base':>9}{'p':>8}{'index s':>9}"
    )
    for row in rows:
        print(
            f"{row['variant']:<{width}}  {row['system']:<{system_width}}{row['acc@1']:>8.3f}{row['ndcg@10']:>9.3f}"
            f"{row['recall@100']:>12.3f}{row['ndcg@10 - base']:>+9.3f}{row['p of ndcg@10']:>8.3f}"
            f"{row['seconds_to_index'] or 0:>9.0f}"
        )


def print_errors(errors: dict[str, Any]) -> None:
    """Prints why first hits were wrong, by class."""
    if not errors["wrong"]:
        return
    from zerogr.evaluation.explain import MEANINGS

    classes = {name: count for name, count in errors.items() if name not in ("right", "wrong", "queries") and count}
    print(
        f"\n{errors['wrong']} of {errors['right'] + errors['wrong']} first hits are not relevant; the relevant one lost:"
    )
    for name, count in sorted(classes.items(), key=lambda item: -item[1]):
        print(f"  {count:>5}  {name:<12} {MEANINGS[name]}")


def print_hits(hits: list[Hit]) -> None:
    """Prints an answer: a line per hit, and below it, a line each, what it says of its document."""
    width = max((len(hit.doc_id) for hit in hits), default=0)
    for hit in hits:
        print(f"{hit.rank:3}  {hit.score:8.3f}  {_harmless(hit.doc_id):<{width}}  {_harmless(hit.docid)}")
        metadata = json.dumps(hit.metadata, ensure_ascii=False) if hit.metadata else None
        for said in filter(None, (hit.title, hit.text, hit.kind, metadata)):
            print(f"     {_harmless(' '.join(said.split()))}")


def _harmless(text: str) -> str:
    """Returns a text without the characters that a terminal obeys."""
    return _OBEYED.sub("\ufffd", text)


def print_explanation(explanation: Explanation, retriever: Retriever) -> None:
    """Prints a document's docid token by token, or its score part by part, beside the first hit's."""
    from zerogr.evaluation.explain import MEANINGS

    wanted, first = explanation.wanted, explanation.first
    place = f"rank {explanation.rank}" if explanation.rank else f"not among {explanation.num_hits} hits"
    print(f"{wanted.doc_id}  {wanted.docid}\n  score {wanted.score:.3f}, {place}")
    if explanation.verdict == "first":
        print("  It is the first hit.")
    else:
        print(f"first hit: {first.doc_id}  {first.docid}\n  score {first.score:.3f}")
        print(f"{explanation.verdict}: {MEANINGS[explanation.verdict]}")
    if wanted.steps:
        _print_path(wanted, explanation.lost_at, retriever)
    else:
        _print_parts([wanted] if explanation.verdict == "first" else [wanted, first])
    for name, traced, support in (
        ("its", wanted, explanation.support),
        *([] if explanation.verdict == "first" else [("the first hit's", first, explanation.first_support)]),
    ):
        print(f"\n{name} pseudo-queries nearest to the query (share of its words), {traced.doc_id}:")
        for each in support:
            print(f"  {each.share:4.0%}  {each.text}")


def _print_path(traced: Traced, lost_at: int | None, retriever: Retriever) -> None:
    print(f"\n  {'token':<16}{'p':>8}{'sum of log p':>14}{'rank':>6}{'of':>7}  likelier")
    score = 0.0
    for number, step in enumerate(traced.steps):
        score += step.log_prob
        best = "" if step.rank == 1 else f"{retriever.writer.token_text(step.best)!r} {exp(step.best_log_prob):.3f}"
        mark = "   <- lost here" if number == lost_at else ""
        print(
            f"  {retriever.writer.token_text(step.token)!r:<16}{exp(step.log_prob):>8.3f}{score:>14.3f}"
            f"{step.rank:>6}{step.num_allowed:>7}  {best}{mark}"
        )


def _print_parts(traced: list[Traced]) -> None:
    """Prints side by side what adds most to each document's score."""
    print("\n" + "".join(f"  {'part':<24}{'by':<10}{'p':>8}{'adds':>8}" for _ in traced))
    for row in zip_longest(*(each.parts[:MOST_PARTS] for each in traced)):
        print("".join(map(_part_cells, row)).rstrip())


def _part_cells(part: Part | None) -> str:
    if part is None:
        return " " * 52
    probability = "" if part.probability is None else f"{part.probability:.3f}"
    return f"  {part.text:<24}{part.ranker:<10}{probability:>8}{part.score:>8.3f}"


def summary(counts: dict[str, Any]) -> str:
    """Returns the counts that are not zero, on one line: a number, the numbers of rounds, or numbers by name."""
    return ", ".join(
        f"{key.replace('_', ' ')} {shown}" for key, value in counts.items() if (shown := _shown(value)) is not None
    )


def _shown(value: Any) -> str | None:
    match value:
        case int() | float():
            return f"{value:,}" if value else None
        case list() if any(value) and all(isinstance(number, int) for number in value):
            return " → ".join(f"{number:,}" for number in value)
        case dict() if value and all(isinstance(number, int) for number in value.values()):
            return f"({summary(value)})"
        case str():
            return value
        case _:
            return None
