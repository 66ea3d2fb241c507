"""The report of an evaluation: what matters in a sentence, then tables, plots and the queries that were missed.

For a person; metrics.json and queries.jsonl hold the same for programs. Price: half a second for 300 queries and five systems,
and as much again for the import of matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerogr import __version__
from zerogr.evaluation.comparison import Comparison
from zerogr.evaluation.explain import MEANINGS, REMEDIES
from zerogr.evaluation.metrics import METRICS
from zerogr.evaluation.report import plots
from zerogr.evaluation.report.curves import calibration, calibration_error, depth, recall_and_precision
from zerogr.evaluation.report.missed import missed_queries
from zerogr.evaluation.report.page import (
    Block,
    Code,
    Heading,
    Inline,
    Line,
    Paragraph,
    Plot,
    Strong,
    Table,
    render_html,
    render_markdown,
)
from zerogr.evaluation.significance import compare
from zerogr.index.index import Index

ALPHA = 0.05
_SHOWN_K = (1, 2, 5, 10, 20, 50, 100)


def provenance_of(index: Index, **settings: Any) -> dict[str, Any]:
    """Returns what an evaluation was made of: the index, what decided how good it is, and the given settings."""
    manifest = index.manifest()
    config, stages = manifest["config"], manifest["stages"]
    keys = (("retriever", "model"), ("docids", "scheme"), ("queries", "num_queries_per_document"))
    return {
        "index": index.uri,
        "documents": stages["corpus"]["counts"]["rows"],
        **{f"{section}.{key}": config[section][key] for section, key in keys if key in config.get(section, {})},
        **{f"fingerprint of {name}": stages[name]["fingerprint"] for name in ("trie", "retriever")},
        **settings,
        "zerogr": __version__,
    }


def evaluation_report(
    comparison: Comparison, tables: Mapping[str, Any], *, title: str, provenance: Mapping[str, Any]
) -> tuple[str, str]:
    """Returns the report as HTML and as Markdown.

    Args:
        comparison: What came out.
        tables: Its tables, `comparison.tables`.
        title: Of the page.
        provenance: What was evaluated and how, shown at the end; its `index` goes into the commands.
    """
    blocks: list[Block] = [
        *_headline(comparison),
        *_systems(tables, comparison.collection.num_dropped_queries),
        *_differences(tables["differences"]),
        *_by_kind(tables["by_kind"]),
        *_curves(comparison),
        *_calibration(comparison),
        *_latency(comparison, tables["rows"]),
        *_errors(comparison, tables["errors"]),
        *missed_queries(comparison, str(provenance.get("index", "INDEX"))),
        Heading("How this came about"),
        Table(["what", "value"], [[key, Code(str(value))] for key, value in provenance.items()], 2, wraps=True),
    ]
    return render_html(title, blocks), render_markdown(title, blocks)


def signed(value: float) -> str:
    """Returns the value with its sign, three decimals; a difference that rounds to nothing has none."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if round(value, 3) else "0.000"


def p_text(p: float) -> str:
    """Returns a p-value that 9,999 resamples can tell."""
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seconds_text(seconds: float | None) -> str:
    """Returns whole seconds, of few seconds tenths; nothing for None."""
    return "" if seconds is None else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def best_in_bold(
    rows: Sequence[Mapping[str, Any]], key: str, is_rival: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> list[Inline]:
    """Returns the column of a metric; of the rivals' values the largest, as shown, stands out."""
    shown = [(f"{row[key]:.3f}", is_rival(row)) for row in rows]
    rivals = [value for value, rival in shown if rival]
    best = max(rivals) if len(rivals) > 1 else None
    return [Strong(value) if rival and value == best else value for value, rival in shown]


def _headline(comparison: Comparison) -> list[Block]:
    means = {row["system"]: row["ndcg@10"] for row in comparison.rows}
    ours = [answers.system for answers in comparison.answers if answers.strategy is not None]
    best = max(ours or list(means), key=lambda system: means[system])
    num_queries, shown = len(comparison.collection.qrels), f"{means[best]:.3f}"
    if "bm25" not in means or best == "bm25":
        return [Paragraph(f"{best} reaches an nDCG@10 of {shown} on {_queries(num_queries)}.", "lead")]
    values = [[each["ndcg@10"] for each in comparison.per_query[system].values()] for system in (best, "bm25")]
    found = compare(*values)
    apart = f"{abs(found.mean):.3f} {'above' if found.mean > 0 else 'below'} BM25"
    beginning = f"{best} is {apart}" if found.p < ALPHA else f"{best} and BM25 cannot be told apart"
    middle = "" if found.p < ALPHA else f"difference {signed(found.mean)}, "
    small_print = (
        f"Difference {signed(found.mean)}, 95 % interval {signed(found.low)} to {signed(found.high)}; "
        f"better on {_queries(found.wins)}, worse on {found.losses}."
    )
    if len(ours) > 1:
        small_print += (
            f" {best} is the best of {len(ours)} strategies on these very queries, which flatters it a little."
        )
    return [
        Paragraph(
            f"{beginning} at nDCG@10: {shown} against {means['bm25']:.3f} "
            f"({middle}p = {p_text(found.p)}, {_queries(num_queries)}).",
            "lead",
        ),
        Paragraph(small_print, "note"),
    ]


def _queries(number: int) -> str:
    return f"{number:,} {'query' if number == 1 else 'queries'}"


def _systems(tables: Mapping[str, Any], num_dropped: int) -> list[Block]:
    blocks: list[Block] = [Heading("Systems"), _table_of(tables["rows"])]
    note = "Best of each column in bold. Times are wall times; a strategy takes its queries in batches."
    if num_dropped:
        note += f" Left out: {_queries(num_dropped)}, none of whose relevant documents is in the index."
    blocks.append(Paragraph(note, "note"))
    return blocks


def _by_kind(by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Block]:
    blocks: list[Block] = [Heading("By kind of document")] if by_kind else []
    for kind, rows in by_kind.items():
        count = f": {_queries(rows[0]['num_queries'])} about documents of this kind"
        blocks += [Paragraph((Strong(kind), count)), _table_of(rows)]
    return blocks


def _table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns: list[Sequence[Line]] = [[row["system"] for row in rows], *(best_in_bold(rows, name) for name in METRICS)]
    columns.append(["" if row["ms_per_query"] is None else f"{row['ms_per_query']:,.1f}" for row in rows])
    columns.append([seconds_text(row["seconds_to_index"]) for row in rows])
    head = ["system", *METRICS.values(), "ms per query", "s to index"]
    return Table(head, list(zip(*columns, strict=True)))


def _differences(differences: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not differences:
        return []
    rows: list[Sequence[Line]] = []
    for row in differences:
        outcome: Line = "not told apart"
        if row["p"] < ALPHA:
            outcome = Strong("better") if row["mean"] > 0 else Strong("worse", is_bad=True)
        interval = f"{signed(row['low'])} to {signed(row['high'])}"
        rows.append(
            [row["against"], METRICS[row["metric"]], outcome, signed(row["mean"]), interval, p_text(row["p"]),
             f"{row['wins']} / {row['losses']}"]
        )  # fmt: skip
    first = differences[0]["system"]
    head = ["against", "metric", f"{first} is", "difference", "95 % interval", "p", "won / lost"]
    explained = (
        f"Two-sided paired randomisation test over the queries; {len(rows)} comparisons, p not corrected for their "
        f"number; better or worse where p < {ALPHA}. The interval is a bootstrap's."
    )
    return [Heading("How sure are the differences?"), Table(head, rows, 3), Paragraph(explained, "note")]


def _curves(comparison: Comparison) -> list[Block]:
    deepest = max(map(depth, comparison.answers))
    if deepest < 2:
        return []
    qrels = comparison.collection.qrels
    found = {each.system: recall_and_precision(qrels, each.run, max(depth(each), 1)) for each in comparison.answers}
    ticks = [k for k in _SHOWN_K if k <= deepest]
    panels = []
    finding = _recall_finding(found, 10 if deepest >= 10 else deepest, comparison.answers[0].system)
    for place, measure in enumerate(("Recall", "Precision")):
        series = [
            plots.Series(each.system, range(1, len(values) + 1), values, number, is_strong=each.strategy is not None)
            for number, each in enumerate(comparison.answers)
            for values in [found[each.system][place]]
        ]
        panels.append(
            plots.lines(
                f"curves-{place}",
                series,
                title=f"{measure} at k",
                x_label="k, documents returned (log scale)",
                y_label="share of the relevant" if place == 0 else "share of the k returned",
                x_ticks=ticks,
                is_log=True,
                y_top=1.02 if place == 0 else None,
                alt=f"{measure} at k = 1 to {deepest}. {finding}",
            )  # fmt: skip
        )
    rows: list[Sequence[Line]] = [
        [system, name, *(f"{values[k - 1]:.3f}" if k <= len(values) else "" for k in ticks)]
        for place, name in enumerate(("recall", "precision"))
        for system, both in found.items()
        for values in [both[place]]
    ]
    table = Table(["system", "measure", *(f"k = {k}" for k in ticks)], rows, 2)
    legend = [
        (plots.stroke(number, each.strategy is not None), each.system) for number, each in enumerate(comparison.answers)
    ]
    return [Heading("How far down one has to read"), Plot(panels, finding, table, legend)]


def _recall_finding(found: Mapping[str, tuple[list[float], list[float]]], k: int, first: str) -> str:
    at_k = {system: recall[k - 1] for system, (recall, _) in found.items() if len(recall) >= k}
    best = max(at_k, key=lambda system: at_k[system])
    said = f"Among the first {k} documents {best} has {at_k[best]:.0%} of the relevant ones"
    if len(at_k) > 1:
        said += ", the most"
        said += f"; {first} has {at_k[first]:.0%}" if first != best and first in at_k else ""
    short = [
        system for system, (recall, _) in found.items() if len(recall) < max(len(each) for each, _ in found.values())
    ]
    return said + "." + (f" A line that ends in a point was asked for no more: {', '.join(short)}." if short else "")


def _calibration(comparison: Comparison) -> list[Block]:
    qrels, panels, rows = comparison.collection.qrels, [], []
    findings: list[str] = []
    seen: list[list[tuple[float, int]]] = []
    for number, answers in enumerate(comparison.answers):
        bins = calibration(qrels, answers)
        shape = [(round(each.mean, 2), each.num_relevant) for each in bins]
        if not bins or shape in seen:
            continue  # the same strategy with another k has the same first hits
        seen.append(shape)
        bias, distance = calibration_error(bins)
        verdict = (
            "about right on average"
            if abs(bias) < 0.02
            else f"{'too sure' if bias > 0 else 'too modest'} by {abs(bias):.2f}"
        )
        finding = (
            f"{answers.system} is {verdict}; its probabilities are {distance:.2f} away from the truth in the mean."
        )
        findings.append(finding)
        panels.append(
            plots.calibration_panel(
                f"calibration-{number}", bins, number, title=answers.system, alt=f"Calibration. {finding}"
            )
        )
        rows += [
            [answers.system, f"{each.lowest:.3f} to {each.highest:.3f}", f"{each.mean:.3f}", f"{each.share:.3f}",
             "{:.2f} to {:.2f}".format(*each.interval), str(each.count)]
            for each in bins
        ]  # fmt: skip
    if not panels:
        return []
    head = ["system", "probabilities", "mean", "share relevant", "95 % interval", "queries"]
    explained = (
        "The probability of a first hit is that of its docid, exp(score). If it were the chance that the document is "
        "relevant, the points would lie on the diagonal. A point stands for equally many queries."
    )
    return [
        Heading("Can the probabilities be believed?"),
        Paragraph(explained),
        Plot(panels, " ".join(findings), Table(head, rows, 2)),
    ]


def _latency(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    measured: dict[str, list[tuple[int, float, Mapping[str, Any]]]] = {}
    for answers, row in zip(comparison.answers, rows, strict=True):
        if answers.strategy is not None and answers.k is not None and answers.ms_per_query is not None:
            name = re.sub(r"\+k=\d+", "", answers.system)
            measured.setdefault(name, []).append((answers.k, answers.ms_per_query, row))
    lines = {
        name: sorted(each, key=lambda it: it[0]) for name, each in measured.items() if len({k for k, *_ in each}) > 1
    }
    if not lines:
        return []
    finding = " ".join(
        f"{name} takes {' and '.join(f'{ms:,.0f} ms at k = {k}' for k, ms, _ in (points[0], points[-1]))} per query."
        for name, points in lines.items()
    )
    series = [
        plots.Series(name, [k for k, *_ in points], [ms for _, ms, _ in points], number, has_markers=True)
        for number, (name, points) in enumerate(lines.items())
    ]
    ticks = sorted({k for points in lines.values() for k, *_ in points})
    panel = plots.lines(
        "latency", series, title="Time per query", x_label="k, documents asked for", y_label="milliseconds", alt=finding,
        x_ticks=ticks, is_log=ticks[-1] > 8 * ticks[0],
    )  # fmt: skip
    table = Table(
        ["system", "k", "ms per query", "nDCG@10", "Recall@100"],
        [[row["system"], str(k), f"{ms:,.1f}", f"{row['ndcg@10']:.3f}", f"{row['recall@100']:.3f}"]
         for points in lines.values() for k, ms, row in points],
    )  # fmt: skip
    legend = [(plots.stroke(each.number), each.name) for each in series]
    return [Heading("What a longer answer costs"), Plot([panel], finding, table, legend)]


def _errors(comparison: Comparison, errors: Mapping[str, Any]) -> list[Block]:
    wrong = errors["wrong"]
    counts = sorted(((errors.get(name, 0), name) for name in MEANINGS), key=lambda each: -each[0])
    counts = [each for each in counts if each[0]]
    if not counts:
        return []
    most, name = counts[0]
    finding = (
        f"{wrong} of {_queries(errors['right'] + wrong)} have a first hit that is not relevant. Most often, {most} times "
        f"({most / wrong:.0%}), the relevant document is {name}: {MEANINGS[name]}."
    )
    panel = plots.bars(
        "errors", [(name, count, f"{count} ({count / wrong:.0%})") for count, name in counts],
        title="Why the relevant document lost", x_label="queries", alt=finding,
    )  # fmt: skip
    rows: list[Sequence[Line]] = [
        [name, MEANINGS[name], REMEDIES[name], str(count), f"{count / wrong:.0%}"] for count, name in counts
    ]
    table = Table(["class", "the relevant document", "what helps", "queries", "share"], rows, 3, wraps=True)
    system = comparison.answers[0].system
    return [Heading(f"Why {system} was wrong"), Plot([panel], finding, table, has_open_table=True)]
