"""The page of the dynamic study: one table, and plots of what is found while the corpus grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerogr.evaluation.report import plots
from zerogr.evaluation.report.page import Block, Heading, Paragraph, Plot, Table, render_html, render_markdown
from zerogr.study.dynamic import Judged

Row = Mapping[str, Any]
_COLUMNS: tuple[tuple[str, Callable[[Row], Any]], ...] = (
    ("old hits@1", lambda row: row["old_after"].get("hits@1")),
    ("old hits@10", lambda row: row["old_after"].get("hits@10")),
    ("old hits@100", lambda row: row["old_after"].get("hits@100")),
    ("old MRR@10", lambda row: row["old_after"].get("mrr@10")),
    ("F_n", lambda row: row["forgetting@10"]),
    ("new hits@1", lambda row: row["new_last"].get("hits@1")),
    ("new hits@10", lambda row: row["new_last"].get("hits@10")),
    ("new hits@100", lambda row: row["new_last"].get("hits@100")),
    ("new MRR@10", lambda row: row["new_last"].get("mrr@10")),
    ("GA_n", lambda row: row["generalisation@10"]),
)


def study_page(
    rows: Sequence[Row], layers: Mapping[str, Any], *, parts: Sequence[int], judged: Sequence[Judged]
) -> tuple[str, str]:
    """Returns the page as HTML and as Markdown.

    Args:
        rows: As `zerogr.study.dynamic.summary` makes them.
        layers: Index -> (layer -> share still found while it is patched, share without).
        parts: Documents of D0, D1, ...
        judged: The queries of each.
    """
    title = "A corpus that grows"
    num_new = sum(len(part.queries) for part in judged[1:])
    lead = (
        f"{parts[0]:,} documents are learnt; then {', '.join(f'{size:,}' for size in parts[1:])} come, one increment after the "
        f"other. {len(judged[0].queries):,} queries ask for the first documents, {num_new:,} for the new ones."
    )
    note = (
        "F_n is by how much fewer of the old queries find a relevant document among the first ten, GA_n the share of each "
        "increment's queries that do, both means over the increments. Old and new hits are those after the last."
    )
    blocks: list[Block] = [
        Paragraph(lead, "lead"),
        _table(rows),
        Paragraph(note, "note"),
        Heading("While it grows"),
        _growth(rows, "initial", "Old queries", "old"),
        _growth(rows, "new", "Queries of each increment", "new"),
        Heading("What it costs"),
        _seconds(rows),
    ]
    if layers:
        blocks += [Heading("Which layers matter"), _patched(layers)]
    return render_html(title, blocks), render_markdown(title, blocks)


def _table(rows: Sequence[Row]) -> Table:
    head = ["system", *(name for name, _ in _COLUMNS), "s per document"]
    cells = [
        [
            row["system"],
            *(_number(value(row)) for _, value in _COLUMNS),
            "" if row["seconds_per_document"] is None else f"{row['seconds_per_document']:.2f}",
        ]
        for row in rows
    ]
    return Table(head, cells)


def _growth(rows: Sequence[Row], key: str, title: str, name: str) -> Plot:
    series, cells = [], []
    for number, row in enumerate(rows):
        points = [(i, step[key]["hits@10"]) for i, step in enumerate(row["steps"]) if step[key]]
        if points:
            x, y = zip(*points, strict=True)
            series.append(plots.Series(row["system"], x, y, number, has_markers=True))
            cells.append([row["system"], *(f"{value:.3f}" for value in y)])
    longest = max((len(each) for each in cells), default=1)
    first = 0 if key == "initial" else 1
    head = ["system", *(f"D{first + i}" for i in range(longest - 1))]
    panel = plots.lines(
        name,
        series,
        title=title,
        x_label="increments so far",
        y_label="hits@10",
        alt=f"hits@10 of {title.lower()} after each increment, a line per system",
        x_ticks=list(range(first, first + longest - 1)),
        y_top=1.0,
    )
    legend = [(plots.stroke(each.number), each.name) for each in series]
    best = max(cells, key=lambda row: row[-1], default=["", ""])
    table = Table(head, [row + [""] * (longest - len(row)) for row in cells])
    return Plot([panel], f"After the last increment {best[0]} finds most: {best[-1]}.", table, legend)


def _seconds(rows: Sequence[Row]) -> Plot:
    timed = [(row["system"], row["seconds_per_document"]) for row in rows if row["seconds_per_document"]]
    panel = plots.bars(
        "seconds",
        [(name, seconds, f"{seconds:.2f} s") for name, seconds in timed],
        title="Seconds per new document",
        x_label="seconds",
        alt="seconds per new document, a bar per system",
    )
    least = min(timed, key=lambda each: each[1])
    table = Table(["system", "s per document"], [[name, f"{seconds:.3f}"] for name, seconds in timed])
    return Plot([panel], f"{least[0]} takes least time: {least[1]:.2f} s a document.", table)


def _patched(layers: Mapping[str, Any]) -> Plot:
    series, cells = [], []
    for number, (name, (patched, whole)) in enumerate(layers.items()):
        x = sorted(patched)
        series.append(plots.Series(name, x, [patched[layer] for layer in x], number, has_markers=True))
        worst = sorted(x, key=lambda layer: patched[layer])[:5]
        cells.append([name, f"{whole:.3f}", ", ".join(map(str, sorted(worst)))])
    panel = plots.lines(
        "layers",
        series,
        title="One layer's MLP replaced by its mean",
        x_label="layer",
        y_label="share of old queries still right",
        alt="share of old pseudo-queries that still find their document first, by the layer that is patched",
    )
    legend = [(plots.stroke(each.number), each.name) for each in series]
    finding = "; ".join(f"{row[0]}: layers {row[2]} cost most" for row in cells) + "."
    return Plot([panel], finding, Table(["index", "unpatched", "the five that cost most"], cells, 3), legend)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
