"""A page: a list of blocks, written once and rendered twice, as one self-contained HTML file and as Markdown.

The HTML needs no network and no script, and follows the reader's light or dark mode. Every string given here is data and is
escaped by the renderer; only plots, which `zerogr.evaluation.report.plots` draws, go in as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True, slots=True)
class Strong:
    """Text that stands out."""

    text: str
    is_bad: bool = False
    """Whether what it says is bad news."""


@dataclass(frozen=True, slots=True)
class Code:
    """A name, an id or a key, as it is typed."""

    text: str


Inline = str | Strong | Code
Line = Inline | tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Heading:
    """Opens a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One or more sentences."""

    line: Line
    style: str = ""
    """`lead` = the page in one sentence; `note` = small print."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Line]]
    num_text_columns: int = 1
    """The first so many columns are text, the others numbers, which line up on the right."""
    wraps: bool = False
    """Whether cells hold sentences, which may go over several lines."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to type in a shell."""

    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One or more panels side by side with a common legend, what they show in words, and their figures."""

    panels: Sequence[str]
    """SVG."""
    finding: str
    table: Table
    legend: Sequence[tuple[str, str]] = ()
    """(the SVG of a stroke, whose it is)."""
    has_open_table: bool = False
    """Whether the table is to be seen at once; if not, it can be unfolded."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are seen when their summary is clicked."""

    summary: Line
    blocks: Sequence[Block] = field(default_factory=list)


Block = Heading | Paragraph | Table | Command | Plot | Fold


def render_html(title: str, blocks: Sequence[Block]) -> str:
    """Returns the page as an HTML document."""
    body = "\n".join(_html(block) for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_STYLE}
</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def render_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Returns the page as Markdown; the tables are those of the HTML, plots are their findings and figures."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def _parts(line: Line) -> tuple[Inline, ...]:
    return line if isinstance(line, tuple) else (line,)


def _html_line(line: Line) -> str:
    return "".join(map(_html_part, _parts(line)))


def _html_part(part: Inline) -> str:
    match part:
        case Strong(text, is_bad):
            return f'<strong class="bad">{escape(text)}</strong>' if is_bad else f"<strong>{escape(text)}</strong>"
        case Code(text):
            return f"<code>{escape(text)}</code>"
        case _:
            return escape(part).replace("+", "+<wbr>")  # where a long name of a system or a variant may be broken


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(line, style):
            return f'<p class="{style}">{_html_line(line)}</p>' if style else f"<p>{_html_line(line)}</p>"
        case Table():
            return _html_table(block)
        case Command(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Plot(panels, finding, table, legend, has_open_table):
            keys = "".join(f"<li>{stroke}<span>{escape(name)}</span></li>" for stroke, name in legend)
            shown = f'<ul class="legend">{keys}</ul>' if keys else ""
            figures = _html_table(table)
            if not has_open_table:
                figures = f'<details class="figures"><summary>The figures of this plot</summary>\n{figures}\n</details>'
            return (
                f'<figure>\n<div class="panels">{"".join(panels)}</div>\n{shown}<figcaption>{escape(finding)}</figcaption>\n'
                f"{figures}\n</figure>"
            )
        case Fold(summary, blocks):
            inside = "\n".join(_html(each) for each in blocks)
            return f'<details class="fold"><summary dir="auto">{_html_line(summary)}</summary>\n{inside}\n</details>'


def _html_table(table: Table) -> str:
    def row(cells: Sequence[Line], tag: str) -> str:
        classes = ["" if place < table.num_text_columns else ' class="number"' for place in range(len(cells))]
        return "<tr>" + "".join(
            f"<{tag}{kind}>{_html_line(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True)
        ) + "</tr>"  # fmt: skip

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="{"table wraps" if table.wraps else "table"}" tabindex="0" role="group"><table>\n'
        f"<thead>{row(table.head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


# Between letters `_` is only a letter; `://` would make a link.
_SPECIAL = re.compile(r"[\\`*{}\[\]<>|~$&]|(?<!\w)_|_(?!\w)|:(?=//)")
_OPENING = re.compile(r"^(?:#|[+-](?=\s|$|-)|=|\d+(?=[.)](?:\s|$)))")


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    escaped = _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
    # At the beginning of a line these open a heading or a list.
    return _OPENING.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", escaped)


def _code(text: str, is_in_table: bool) -> str:
    """Returns a code span; its fence is longer than any run of backticks inside."""
    inside = " ".join(text.split())
    inside = inside.replace("|", "\\|") if is_in_table else inside
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", inside)), default=0))
    pad = " " if "`" in inside else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def _markdown_line(line: Line, is_in_table: bool = False) -> str:
    shown = []
    for part in _parts(line):
        if isinstance(part, str):
            # The blanks at its ends separate it from its neighbours.
            blanks = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
            shown.append(f"{' ' if blanks[0] else ''}{_plain(part)}{' ' if blanks[1] and part.strip() else ''}")
        else:
            shown.append(f"**{_plain(part.text)}**" if isinstance(part, Strong) else _code(part.text, is_in_table))
    return "".join(shown)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Paragraph(line, style):
            return f"**{_plain(line)}**" if style == "lead" and isinstance(line, str) else _markdown_line(line)
        case Table():
            return _markdown_table(block)
        case Command(text):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Plot(_, finding, table):
            return f"{_plain(finding)}\n\n{_markdown_table(table)}"
        case Fold(summary, blocks):
            return "\n\n".join([f"### {_markdown_line(summary)}", *(_markdown(each) for each in blocks)])


def _markdown_table(table: Table) -> str:
    def row(cells: Sequence[Line]) -> str:
        return f"| {' | '.join(_markdown_line(cell, is_in_table=True) for cell in cells)} |"

    numbers = len(table.head) - table.num_text_columns
    rule = ["---"] * table.num_text_columns + ["---:"] * numbers
    return "\n".join([row(table.head), f"| {' | '.join(rule)} |", *map(row, table.rows)])


_STYLE = """\
:root {
  color-scheme: light dark;
  --paper: light-dark(#faf9f6, #16181c);
  --card: light-dark(#ffffff, #1e2126);
  --ink: light-dark(#1c1e21, #e8e6e1);
  --quiet: light-dark(#5c6167, #a2a7ae);
  --line: light-dark(#dedbd3, #353a42);
  --accent: light-dark(#0b5c55, #62c9bb);
  --fault: light-dark(#9c2222, #ff9c94);
  --series-0: light-dark(#0b7269, #62c9bb);
  --series-1: light-dark(#b4501a, #f2a36f);
  --series-2: light-dark(#2b5fb8, #8fb6f7);
  --series-3: light-dark(#963a86, #e39ad4);
  --series-4: light-dark(#6f6a00, #cdc95f);
  --series-5: light-dark(#4b5563, #b6bcc6);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.35rem; letter-spacing: -.01em; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.lead { font-size: 1.25rem; line-height: 1.4; margin: .75rem 0 1rem; }
.note, figcaption { color: var(--quiet); font-size: .9rem; }
code { font: .875em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .75rem; margin: .6rem 0; }
pre code { white-space: pre-wrap; }
.table { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: baseline; white-space: nowrap; padding: .35rem .8rem .35rem 0; }
tr { border-bottom: 1px solid var(--line); }
.wraps td { white-space: normal; min-width: 4.5rem; }
th { color: var(--quiet); font-weight: 500; }
.number { text-align: right; }
td strong { color: var(--accent); }
td .bad { color: var(--fault); }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8.5rem; }
figure { margin: .75rem 0 1.5rem; padding: 1rem; background: var(--card); }
figure { border: 1px solid var(--line); border-radius: .5rem; }
figcaption { margin-top: .5rem; max-width: 46rem; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.panels svg { width: 100%; max-width: 30rem; height: auto; }
.panels text { font-family: system-ui, sans-serif !important; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; margin: .5rem 0; padding: 0; }
.legend { font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; }
.legend svg { flex: none; }
summary { cursor: pointer; width: fit-content; overflow-wrap: anywhere; }
.figures summary { color: var(--quiet); font-size: .85rem; margin-top: .5rem; }
.fold { border-bottom: 1px solid var(--line); padding: .5rem 0; }
.fold[open] { padding-bottom: 1rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print { .fold, figure { break-inside: avoid; } }"""
