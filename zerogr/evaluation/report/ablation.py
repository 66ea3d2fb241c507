"""The report of an ablation: which change was worth it, in a sentence, a table and plots.

A plot is shown where the rows have it: at least two values of its setting, in variants that are else alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from zerogr.evaluation.metrics import METRICS
from zerogr.evaluation.report import plots
from zerogr.evaluation.report.page import Block, Heading, Line, Paragraph, Plot, Table, render_html, render_markdown
from zerogr.evaluation.report.report import ALPHA, best_in_bold, p_text, seconds_text, signed

Row = Mapping[str, Any]
MEASURED = ("acc@1", "ndcg@10", "recall@100")
P_OF = "p of "


class Curve(NamedTuple):
    """A setting that has a plot of quality and cost."""

    heading: str
    label: str
    """Of its axis."""
    scale: int = 1
    """What its values are multiplied by, to be what the label says."""
    note: str = ""
    """Follows the finding."""


CURVES = {
    "queries.num_queries_per_document": Curve("How many pseudo-queries", "pseudo-queries per document"),
    "queries.num_spans_per_document": Curve("How many spans", "spans per document"),
    "training.judged_share": Curve(
        "How many judged queries",
        "per cent of the judged queries",
        100,
        " 0 per cent is zero-shot: pseudo-queries and spans alone.",
    ),
}
"""By their keys."""
MAX_WORDS = "docids.max_words"


def ablation_report(rows: Sequence[Row], *, title: str, price_per_hour: float | None = None) -> tuple[str, str]:
    """Returns the report as HTML and as Markdown.

    Args:
        rows: One per variant and system, as `zerogr.evaluation.ablation.results_of` makes them, the base's first.
        title: Of the page.
        price_per_hour: US dollars per hour of the machine; None = no dollars.
    """
    told = [row for row in rows if row["variant"] == rows[0]["variant"] or not _is_untouched(row, rows)]
    blocks: list[Block] = [
        *_headline(rows),
        *_variants(told, len(rows) - len(told), price_per_hour),
        *chain.from_iterable(
            _by_number(each, key, price_per_hour) for key in CURVES for each in _groups(_in_units(rows, key), key)
        ),
        *chain.from_iterable(_by_docid_length(each) for each in _groups(rows, MAX_WORDS, {"docids.min_words"})),
    ]
    return render_html(title, blocks), render_markdown(title, blocks)


def _in_units(rows: Sequence[Row], key: str) -> list[Row]:
    """Returns the rows with the values of a curve's setting as its label says."""
    scale = CURVES[key].scale
    return [row if row.get(key) is None else {**row, key: round(row[key] * scale, 6)} for row in rows]


def _is_untouched(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row is that of a baseline for which the variant is the same as the base."""
    base = next((each for each in rows if each["system"] == row["system"]), row)
    return row["strategy"] is None and all(row[name] == base[name] for name in MEASURED)


def _headline(rows: Sequence[Row]) -> list[Block]:
    base = rows[0]
    variants = [row for row in rows if row["variant"] != base["variant"] and row["strategy"] is not None]
    if not variants:
        return [
            Paragraph(f"{base['system']} reaches an nDCG@10 of {base['ndcg@10']:.3f}; no variant is done yet.", "lead")
        ]
    best = max(variants, key=lambda row: row["ndcg@10 - base"])
    gain, p = best["ndcg@10 - base"], best["p of ndcg@10"]
    queries = f"{best['num_queries']:,} queries"
    if gain > 0 and p < ALPHA:
        said = (
            f"{best['variant']} helps most: nDCG@10 of {best['system']} rises by {gain:.3f} to {best['ndcg@10']:.3f} "
            f"(p = {p_text(p)}, {queries})."
        )
    else:
        said = (
            f"No variant is shown to be better than {base['variant']}: the best, {best['variant']}, differs by {signed(gain)} "
            f"at nDCG@10 of {best['system']} (p = {p_text(p)}, {queries})."
        )
    worse = sum(row["ndcg@10 - base"] < 0 and row["p of ndcg@10"] < ALPHA for row in variants)
    note = (
        f"Best of {len(variants)} comparisons with {base['variant']}, {worse} of which are worse at p < {ALPHA}; p is not "
        "corrected for their number."
    )
    return [Paragraph(said, "lead"), Paragraph(note, "note")]


def _variants(rows: Sequence[Row], num_left_out: int, price_per_hour: float | None) -> list[Block]:
    columns: list[Sequence[Line]] = [[row["variant"] for row in rows], [row["system"] for row in rows]]
    tested = (key.removeprefix(P_OF) for key in rows[0] if key.startswith(P_OF))
    shown = list(dict.fromkeys((*MEASURED, *tested)))
    columns += [best_in_bold(rows, name, lambda row: row["strategy"] is not None) for name in shown]
    is_base = [row["variant"] == rows[0]["variant"] for row in rows]
    for key, form in (("ndcg@10 - base", signed), ("p of ndcg@10", p_text)):
        columns.append(["" if base else form(row[key]) for base, row in zip(is_base, rows, strict=True)])
    seconds = [row["seconds_to_index"] for row in rows]
    columns.append([seconds_text(each) for each in seconds])
    head = ["variant", "system", *(METRICS[name] for name in shown), "vs base", "p", "s to index"]
    if price_per_hour is not None:
        head.append("US dollars")
        columns.append(["" if each is None else f"{each * price_per_hour / 3600:,.2f}" for each in seconds])
    note = (
        "The index's own best in bold; the difference to base and its p are those of nDCG@10. A stage that variants share is "
        "counted with the time it took the first of them."
    )
    if num_left_out:
        note += " A baseline that a variant leaves as it was is shown with the base alone."
    if price_per_hour is not None:
        note += f" Dollars at {price_per_hour:g} an hour."
    return [Heading("Variants"), Table(head, list(zip(*columns, strict=True)), 2), Paragraph(note, "note")]


class _Group(NamedTuple):
    """Variants that differ in one setting."""

    rows: list[Row]
    """By its value."""
    own: list[Row]
    """Those of the system that the report is about."""
    title: str
    """Ends a heading: what else these variants have in common."""
    name: str
    """For the ids of plots."""


def _groups(rows: Sequence[Row], key: str, also: Collection[str] = ()) -> list[_Group]:
    """Returns the variants that differ in nothing but `key`, and `also` with it, group by group; two values are a group."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        changes = json.loads(row["changes"]).items()
        rest = ", ".join(f"{name}={value}" for name, value in changes if name not in {key, *also})
        alike.setdefault(rest, []).append(row)
    groups: list[_Group] = []
    for rest, found in alike.items():
        known = sorted((row for row in found if row.get(key) is not None), key=lambda row: row[key])
        if len({row[key] for row in known}) > 1:
            own = [row for row in known if row["system"] == rows[0]["system"]]
            groups.append(_Group(known, own, f", {rest}" if rest else "", f"{key}-{len(groups)}"))
    return groups


def _quality_series(rows: Sequence[Row], key: str) -> list[plots.Series]:
    systems = dict.fromkeys(row["system"] for row in rows)
    return [
        plots.Series(
            system, [row[key] for row in own], [row["ndcg@10"] for row in own], number,
            is_strong=own[0]["strategy"] is not None, has_markers=True,
        )
        for number, system in enumerate(systems)
        for own in [[row for row in rows if row["system"] == system]]
    ]  # fmt: skip


def _ticks(values: Sequence[float]) -> tuple[list[float], bool]:
    """Returns (the values, each once, whether they are better shown on a logarithmic axis)."""
    ticks = sorted(set(values))
    return ticks, ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]


def _legend(series: Sequence[plots.Series]) -> list[tuple[str, str]]:
    return [(plots.stroke(each.number, each.is_strong), each.name) for each in series]


def _quality(rows: Sequence[Row]) -> str:
    first, last = rows[0], rows[-1]
    return f"nDCG@10 of {first['system']} goes from {first['ndcg@10']:.3f} to {last['ndcg@10']:.3f}"


def _by_number(group: _Group, key: str, price_per_hour: float | None) -> list[Block]:
    varied, own = group.rows, group.own
    heading, label, _, note = CURVES[key]
    finding = (
        f"From {own[0][key]:g} to {own[-1][key]:g} {label} "
        f"{_quality(own)}, and the seconds to index from "
        f"{own[0]['seconds_to_index']:,.0f} to {own[-1]['seconds_to_index']:,.0f}.{note}"
    )
    ticks, is_log = _ticks([row[key] for row in varied])
    series = _quality_series(varied, key)
    systems = [each.name for each in series]
    common: dict[str, Any] = {
        "x_label": label,
        "x_ticks": ticks,
        "is_log": is_log,
        "alt": finding,
    }
    cost = plots.Series(
        "index", [row[key] for row in own], [row["seconds_to_index"] for row in own], -1, has_markers=True
    )
    panels = [
        plots.lines(f"{group.name}-quality", series, title="Quality", y_label="nDCG@10", **common),
        plots.lines(
            f"{group.name}-cost", [cost], title="Cost of the index", y_label="seconds",
            right=None if price_per_hour is None else ("US dollars", price_per_hour / 3600), **common,
        ),
    ]  # fmt: skip
    dollars = [] if price_per_hour is None else ["US dollars"]
    by_system = sorted(varied, key=lambda row: systems.index(row["system"]))
    table_rows: list[Sequence[Line]] = [
        [row["system"], f"{row[key]:g}", f"{row['ndcg@10']:.3f}", seconds_text(row["seconds_to_index"]),
         *(_number((row["seconds_to_index"] or 0) * (price_per_hour or 0) / 3600, ",.2f") for _ in dollars)]
        for row in by_system
    ]  # fmt: skip
    table = Table(["system", label, "nDCG@10", "s to index", *dollars], table_rows)
    return [Heading(f"{heading}{group.title}"), Plot(panels, finding, table, _legend(series))]


def _by_docid_length(group: _Group) -> list[Block]:
    varied, own = group.rows, group.own
    series = _quality_series(varied, MAX_WORDS)
    systems = [each.name for each in series]
    ticks, is_log = _ticks([row[MAX_WORDS] for row in varied])
    has_collisions = all(row.get("docids_collisions") is not None for row in own)
    finding = f"From {own[0][MAX_WORDS]} to {own[-1][MAX_WORDS]} words at most {_quality(own)}"
    if has_collisions:
        finding += (
            f", and the number of collisions from {own[0]['docids_collisions']:,} to {own[-1]['docids_collisions']:,}"
        )
    common: dict[str, Any] = {
        "x_label": "words of a docid, at most", "x_ticks": ticks, "is_log": is_log, "alt": f"{finding}.",
    }  # fmt: skip
    panels = [plots.lines(f"{group.name}-quality", series, title="Quality", y_label="nDCG@10", **common)]
    if has_collisions:
        collisions = [row["docids_collisions"] for row in own]
        line = plots.Series("docids", [row[MAX_WORDS] for row in own], collisions, -1, has_markers=True)
        panels.append(
            plots.lines(
                f"{group.name}-collisions", [line], title="Collisions before resolution", y_label="documents",
                **common,
            )
        )  # fmt: skip
    by_system = sorted(varied, key=lambda row: systems.index(row["system"]))
    table_rows: list[Sequence[Line]] = [
        [row["system"], str(row[MAX_WORDS]), f"{row['ndcg@10']:.3f}", _number(row.get("docids_words_per_docid"), ".2f"),
         _number(row.get("docids_collisions"), ",d")]
        for row in by_system
    ]  # fmt: skip
    table = Table(["system", "most words", "nDCG@10", "words per docid", "collisions"], table_rows)
    return [Heading(f"How long the docids{group.title}"), Plot(panels, f"{finding}.", table, _legend(series))]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
