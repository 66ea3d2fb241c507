"""Plots: panels of lines, of calibration and of bars, as SVG to stand inside an HTML page.

matplotlib lays them out. It knows no light or dark mode, so it is given placeholder colours, which become the page's own
(`--ink`, `--quiet`, `--line`, `--series-N`). Text stays text. The same figures give the same bytes: no date, ids hashed with a
fixed salt, settings of the user's own left aside. A panel takes 0.1 s, matplotlib's import 0.5 s.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from zerogr.evaluation.report.curves import Bin

SIZE = (4.4, 3.2)
"""Of a panel, inches: wide enough for two in a row, small enough that its text can be read on a telephone."""
NUM_COLOURS = 6
_INK, _QUIET, _LINE = "#010101", "#010102", "#010103"
_PAGE = {_INK: "currentColor", _QUIET: "var(--quiet)", _LINE: "var(--line)"} | {
    f"#0101a{number}": f"var(--series-{number})" for number in range(NUM_COLOURS)
}
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2), (4, 4), (1, 2))
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zerogr",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _QUIET,
    "axes.titlecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}


@dataclass(frozen=True, slots=True)
class Series:
    """A line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    number: int
    """Which of the page's strokes it has; -1 = a grey line, of nobody in the legend."""
    is_strong: bool = True
    """Thick, for what the page is about; thin for what it is held against."""
    has_markers: bool = False


def stroke(number: int, is_strong: bool = True) -> str:
    """Returns the SVG of a short piece of a series' line, for the legend."""
    dashes = " ".join(f"{length * _width(is_strong):g}" for length in _dashes(number)) or "none"
    look = f'stroke="var(--series-{number % NUM_COLOURS})" stroke-width="{_width(is_strong):g}" stroke-dasharray="{dashes}"'
    line = f'<line x1="1" y1="5" x2="33" y2="5" {look}/>'
    return f'<svg width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">{line}</svg>'


def lines(
    name: str,
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    alt: str,
    x_ticks: Sequence[float] = (),
    is_log: bool = False,
    y_top: float | None = None,
    right: tuple[str, float] | None = None,
) -> str:
    """Returns a panel of lines over a common x.

    Args:
        name: Of the panel, different from those of the page's other panels; goes into the ids of its elements.
        series: The lines. A line that ends before the others do gets a point at its end.
        title, x_label, y_label: What is written at the panel.
        alt: What it shows, for those who do not see it.
        x_ticks: Where the x axis has its figures; () = matplotlib's choice.
        is_log: Whether the x axis is logarithmic.
        y_top: Upper end of the y axis, which begins at 0; None = as the data ask.
        right: (label, factor) of a second scale on the right, that of the left times the factor.
    """

    def draw(axes: Any) -> None:
        last = max(max(each.x) for each in series)
        for each in series:
            style: dict[str, Any] = {"color": _colour(each.number), "linewidth": _width(each.is_strong)}
            [line] = axes.plot(each.x, each.y, **style, zorder=3 if each.is_strong else 2.5)
            if dashes := _dashes(each.number):
                line.set_dashes(dashes)
            if each.has_markers:
                axes.plot(each.x, each.y, "o", color=_colour(each.number), markersize=5, zorder=4)
            elif each.x[-1] < last:
                axes.plot(each.x[-1:], each.y[-1:], "o", color=_colour(each.number), markersize=5, zorder=4)
        if is_log:
            axes.set_xscale("log")
        if x_ticks:
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
            axes.minorticks_off()
        axes.set_ylim(0, y_top or 1.08 * max(max(each.y) for each in series) or 1)
        if right is not None:
            label, factor = right
            second = axes.secondary_yaxis("right", functions=(lambda y: y * factor, lambda y: y / factor))
            second.set_ylabel(label)
            second.spines["right"].set_visible(True)

    return _panel(name, draw, title=title, x_label=x_label, y_label=y_label, alt=alt)


def calibration_panel(name: str, bins: Sequence[Bin], number: int, *, title: str, alt: str) -> str:
    """Returns a panel of predicted probabilities against shares, with 95 % intervals, beside the diagonal."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, dashes=(3, 3))
        x, y = [each.mean for each in bins], [each.share for each in bins]
        axes.vlines(x, *zip(*(each.interval for each in bins), strict=True), color=_colour(number), linewidth=1.2)
        axes.plot(x, y, "o-", color=_colour(number), linewidth=1.2, markersize=5.5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        # Whatever lies above the diagonal was more often right than it claimed.
        for (left, top), text in (((0.03, 0.97), "too modest"), ((0.97, 0.03), "too sure")):
            axes.text(
                left, top, text, color=_QUIET, fontsize=9, ha="left" if left < 0.5 else "right",
                va="top" if top > 0.5 else "bottom",
            )  # fmt: skip

    counts = sorted({each.count for each in bins})
    per_bin = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    x_label = f"probability of the first hit ({per_bin} queries a point)"
    return _panel(name, draw, title=title, x_label=x_label, y_label="share relevant", alt=alt)


def bars(name: str, values: Sequence[tuple[str, float, str]], *, title: str, x_label: str, alt: str) -> str:
    """Returns a panel of horizontal bars, the first at the top; each a (name, value, label at its end)."""

    def draw(axes: Any) -> None:
        places = list(range(len(values)))[::-1]
        axes.barh(places, [value for _, value, _ in values], height=0.62, color=_colour(0))
        axes.set_yticks(places, [each for each, _, _ in values], color=_INK)
        most = max(value for _, value, _ in values)
        for place, (_, value, label) in zip(places, values, strict=True):
            axes.text(value + 0.02 * most, place, label, va="center", color=_INK)
        axes.set_xlim(0, 1.3 * most)  # room for the labels
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    height = 1.1 + 0.36 * len(values)
    return _panel(name, draw, title=title, x_label=x_label, y_label="", alt=alt, size=(SIZE[0], height))


def _dashes(number: int) -> tuple[float, ...]:
    return () if number < 0 else _DASHES[number % len(_DASHES)]


def _colour(number: int) -> str:
    return f"#0101a{number % NUM_COLOURS}"


def _width(is_strong: bool) -> float:
    return 2.2 if is_strong else 1.4


def _panel(
    name: str, draw: Any, *, title: str, x_label: str, y_label: str, alt: str, size: tuple[float, float] = SIZE
) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    return _inline(written.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """Returns matplotlib's file as an element of a page: no prologue, no links, ids of its own, the page's colours and size."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{escape(alt)}">', svg, count=1)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for placeholder, colour in _PAGE.items():
        svg = svg.replace(placeholder, colour)
    return svg
