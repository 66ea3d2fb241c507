"""The reports: a person decides by them, so they must say what was measured, and documents must not get to speak in them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from jobs.parser import build_parser
from zerogr.corpus.collection import Collection, Query
from zerogr.evaluation.comparison import Comparison
from zerogr.evaluation.metrics import METRICS, evaluate_queries
from zerogr.evaluation.report.ablation import ablation_report
from zerogr.evaluation.report.curves import MAX_K, calibration, calibration_error, recall_and_precision
from zerogr.evaluation.report.missed import MAX_MISSED
from zerogr.evaluation.report.page import Code, Fold, Paragraph, Strong, Table, render_html, render_markdown
from zerogr.evaluation.report.report import evaluation_report
from zerogr.evaluation.significance import compare
from zerogr.evaluation.systems import Answers

EVIL = "<script>alert(1)</script>"
EVIL_ID = 'a"><img src="https://example.org/x">|*b*`c`'
PROVENANCE = {"index": "an index", "retriever.model": "a/b_c", "seed": 0}


class Reader(HTMLParser):
    """What a browser makes of a page: tables, text, and everything that is loaded or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.svgs = 0
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data

    @property
    def plots(self) -> list[str]:
        """The names of the panels."""
        return sorted({value for name, value in self.attributes if name == "aria-label"})


def tables_of_markdown(text: str) -> list[list[list[str]]]:
    """Returns the cells of all tables, as a reader sees them."""
    found: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        if lines:
            found.append([[shown(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines])
            del found[-1][1]  # the rule
    return found


def shown(cell: str) -> str:
    cell = cell.strip()
    code = re.fullmatch(r"(`+) ?(.*?) ?\1", cell)
    if code:
        return code[2].replace("\\|", "|")
    strong = re.fullmatch(r"\*\*(.*)\*\*", cell)
    return re.sub(r"\\([^a-z0-9\s])", r"\1", strong[1] if strong else cell)


def comparison(num_queries: int = 40, *, scores: bool = True, kinds: Sequence[str] = ("text",)) -> Comparison:
    """Two strategies that differ in k, BM25 and a run file; ours is right on three queries of four, BM25 on every second."""
    names = [str(number) for number in range(num_queries)]
    texts = {name: EVIL if name == "3" else f"what about {name}? $x_1$" for name in names}
    qrels = {name: {EVIL_ID if name == "3" else f"d{name}": 1} for name in names}
    collection = Collection({name: Query(name, text) for name, text in texts.items()}, qrels)

    def run(is_right: Any, length: int) -> dict[str, list[str]]:
        others = [f"x{number}" for number in range(length)]
        return {
            name: [*qrels[name], *others[1:]] if is_right(int(name)) else [*others[: length // 2], *qrels[name]]
            for name in names
        }

    def ours(k: int) -> dict[str, list[str]]:
        return run(lambda number: number % 4 != 3, k)

    probabilities = {name: [-0.1 - int(name) / num_queries, -3.0] for name in names} if scores else {}
    answers = [
        Answers("zerogr-beam+k=20", ours(20), "beam", 150.0, 700.0, probabilities, 20, {"k": 20, "beam_width": 30}),
        Answers(
            "zerogr-beam+k=10", ours(10), "beam", 80.0, 700.0, probabilities, 10
        ),  # its misses are nearer to the top
        Answers("bm25", run(lambda number: number % 2 == 0, 30), None, 0.1, 0.2, k=30),
        Answers("other", {name: ["x1"] for name in names}),
    ]
    per_query = {each.system: evaluate_queries(qrels, each.run) for each in answers}
    lost = {
        name: {
            "verdict": "late", "doc_id": next(iter(qrels[name])), "docid": f"a {EVIL}", "first": "x0", "first_docid": "b",
            "lost_at": 1,
        }
        for name in names if int(name) % 4 == 3
    }  # fmt: skip
    errors = {"right": num_queries - len(lost), "wrong": len(lost), "late": len(lost), "queries": lost}
    kind_of = {name: kinds[int(name) % len(kinds)] for name in names}
    openings = {"d7": "How it begins", EVIL_ID: EVIL}
    return Comparison(collection, answers, per_query, kind_of, errors, openings)


def report(of: Comparison) -> tuple[str, str]:
    return evaluation_report(of, of.tables, title="Evaluation on <x>", provenance=PROVENANCE)


@pytest.fixture(scope="module")
def full() -> tuple[Comparison, str, str]:
    """A comparison that has everything, and its report."""
    of = comparison(kinds=("text", "code"))
    return of, *report(of)


class TestEvaluationReport:
    def test_the_figures_are_those_given(self, full: tuple[Comparison, str, str]) -> None:
        of, html, markdown = full
        systems, differences, *_ = Reader(html).tables
        assert [row[: 1 + len(METRICS)] for row in systems[1:]] == [
            [row["system"], *(f"{row[metric]:.3f}" for metric in METRICS)] for row in of.rows
        ]
        assert [row[-2:] for row in systems[1:]] == [["150.0", "700"], ["80.0", "700"], ["0.1", "0.2"], ["", ""]]
        given = [(row["against"], row["wins"], row["losses"], row["mean"]) for row in of.differences]
        assert len(differences) == 1 + len(given) == 10
        for (against, wins, losses, mean), row in zip(given, differences[1:], strict=True):
            assert (row[0], row[-1]) == (against, f"{wins} / {losses}")
            assert float(row[3].replace("\N{MINUS SIGN}", "-")) == pytest.approx(mean, abs=5e-4)
        by_kind = [table for table in Reader(html).tables if table[0] == systems[0]][1:]
        assert [[row[2] for row in table[1:]] for table in by_kind] == [
            [f"{row['ndcg@10']:.3f}" for row in rows] for rows in of.by_kind.values()
        ]
        assert [each for each in tables_of_markdown(markdown) if each[0] == systems[0]] == [systems, *by_kind]

    def test_the_headline_holds_the_best_of_ours_against_bm25(self, full: tuple[Comparison, str, str]) -> None:
        of, html, _ = full
        ndcg = {row["system"]: row["ndcg@10"] for row in of.rows}
        values = [
            [each["ndcg@10"] for each in of.per_query[system].values()] for system in ("zerogr-beam+k=10", "bm25")
        ]
        found = compare(*values)
        assert ndcg["zerogr-beam+k=10"] > ndcg["zerogr-beam+k=20"] and found.p < 0.001
        assert (
            f"zerogr-beam+k=10 is {found.mean:.3f} above BM25 at nDCG@10: {ndcg['zerogr-beam+k=10']:.3f} against "
            f"{ndcg['bm25']:.3f} (p = {found.p:.4f}, 40 queries)."
        ) in Reader(html).text

    def test_a_difference_that_may_be_luck_is_not_sold_as_one(self) -> None:
        html, _ = report(comparison(8))
        assert "zerogr-beam+k=10 and BM25 cannot be told apart at nDCG@10" in Reader(html).text

    def test_without_bm25_nothing_is_claimed(self) -> None:
        of = comparison()
        of.answers = of.answers[:1]
        html, _ = report(of)
        assert f"zerogr-beam+k=20 reaches an nDCG@10 of {of.rows[0]['ndcg@10']:.3f} on 40 queries." in Reader(html).text

    def test_both_formats_have_the_same_tables(self, full: tuple[Comparison, str, str]) -> None:
        _, html, markdown = full
        tables = Reader(html).tables
        assert len(tables) > 10
        assert [[[" ".join(cell.split()) for cell in row] for row in table] for table in tables] == tables_of_markdown(
            markdown
        )

    def test_what_documents_and_queries_hold_is_text(self, full: tuple[Comparison, str, str]) -> None:
        _, html, markdown = full
        page = Reader(html)
        assert not {"script", "img", "iframe", "object", "base"} & set(page.tags)
        assert EVIL in page.text and EVIL_ID in page.text
        assert EVIL not in html and EVIL_ID not in html
        unfenced = re.sub(r"^(`{3,})\n.*?\n\1$|(`+).*?\2", "", markdown, flags=re.MULTILINE | re.DOTALL)
        assert re.search(r"\\<script\\>", unfenced) and not re.search(r"(?<!\\)<", unfenced)

    def test_needs_no_network(self, full: tuple[Comparison, str, str]) -> None:
        _, html, _ = full
        links = [value for name, value in Reader(html).attributes if name.endswith(("src", "href"))]
        assert links and all(value.startswith(("#", "data:,")) for value in links)
        assert not re.search(r"url\((?!#)|@import", html)
        assert "http" not in html.replace("https://example.org", "")

    def test_ids_are_different(self, full: tuple[Comparison, str, str]) -> None:
        """What one panel clips or repeats must not be another's."""
        _, html, _ = full
        ids = [value for name, value in Reader(html).attributes if name == "id"]
        assert ids and len(ids) == len(set(ids))
        used = {value[1:] for name, value in Reader(html).attributes if name.endswith("href") and value[0] == "#"}
        used |= set(re.findall(r"url\(#([^)]*)\)", html))
        assert used <= set(ids)

    def test_the_same_figures_give_the_same_bytes(self, full: tuple[Comparison, str, str]) -> None:
        import matplotlib

        with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
            assert report(full[0]) == full[1:]
            assert matplotlib.rcParams["font.size"] == 30

    def test_plots_only_where_there_is_something_to_plot(self, full: tuple[Comparison, str, str]) -> None:
        sections = (
            "How far down",
            "Can the probabilities",
            "What a longer answer",
            "Why zerogr",
            "What was missed",
            "By kind",
        )
        assert all(section in full[1] and section in full[2] for section in sections)
        bare = comparison(scores=False)
        bare.answers = bare.answers[:1]
        bare.errors = {"right": 40, "wrong": 0, "queries": {}}
        bare.answers[0].run.update({name: list(bare.collection.qrels[name]) for name in bare.collection.qrels})
        bare.per_query["zerogr-beam+k=20"] = evaluate_queries(bare.collection.qrels, bare.answers[0].run)
        html, markdown = report(bare)
        assert [section for section in sections if section in html or section in markdown] == ["How far down"]

    def test_every_panel_says_what_it_shows(self, full: tuple[Comparison, str, str]) -> None:
        html = full[1]
        labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', html)
        assert len(labels) == html.count("<svg ") - html.count('aria-hidden="true"') == 5
        assert any("late" in label for label in labels) and any("80 ms at k = 10" in label for label in labels)

    def test_the_worst_come_first_and_not_all(self) -> None:
        of = comparison(4 * (MAX_MISSED + 5))
        of.answers[0].run["7"] = ["x1"]  # not found at all
        html, _ = report(of)
        summaries = re.findall(r'<summary dir="auto">(.*?)</summary>', html)
        assert len(summaries) == MAX_MISSED and "5 more are in queries.jsonl." in html
        assert summaries[0] == "what about 7? $x_1$ (not found)" and summaries[1].endswith("(first relevant at 11)")

    def test_a_missed_query_shows_how_its_documents_begin(self, full: tuple[Comparison, str, str]) -> None:
        begins = [table[1:] for table in Reader(full[1]).tables if table[0] == ["document", "begins"]]
        assert begins == [[[EVIL_ID, EVIL]], [["d7", "How it begins"]]]

    def test_the_commands_can_be_typed(self, full: tuple[Comparison, str, str]) -> None:
        of = full[0]
        commands = re.findall(r"```\n(zerogr .*?)\n```", full[2])
        assert len(commands) == 10
        options = build_parser().parse_args(shlex.split(commands[0])[1:])
        assert (options.command, options.index, options.query) == ("explain", "an index", EVIL)
        assert (options.doc, options.strategy, options.k) == (EVIL_ID, "beam:beam_width=30", 20)
        of.collection.queries["3"] = Query("3", "--json", "- find it")
        again = re.findall(r"```\n(zerogr .*?)\n```", report(of)[1])[0]
        of.collection.queries["3"] = Query("3", EVIL)
        options = build_parser().parse_args(shlex.split(again)[1:])
        assert (options.query, options.instruction, options.json) == ("--json", "- find it", False)


class TestCurves:
    def test_agree_with_the_measures(self) -> None:
        of = comparison()
        for answers, row in zip(of.answers, of.rows, strict=True):
            recall, precision = recall_and_precision(of.collection.qrels, answers.run, MAX_K)
            assert recall[99] == pytest.approx(row["recall@100"], abs=1e-4)
            assert precision[0] == pytest.approx(row["acc@1"], abs=1e-4)
            assert precision[19] == pytest.approx(row["p@20"], abs=1e-4)

    def test_by_hand(self) -> None:
        qrels = {"1": {"a": 1, "b": 2, "c": 0}, "2": {"d": 1}}
        recall, precision = recall_and_precision(qrels, {"1": ["a", "c", "b"], "3": ["d"]}, 3)
        assert recall == pytest.approx([0.25, 0.25, 0.5]) and precision == pytest.approx([0.5, 0.25, 1 / 3])

    def test_calibration_by_hand(self) -> None:
        names = [str(number) for number in range(30)]
        scores = {name: [-3.0 if int(name) < 15 else -0.1] for name in names}
        run = {name: ["right" if int(name) % 3 == 0 else "wrong"] for name in names}
        bins = calibration(dict.fromkeys(names, {"right": 1}), Answers("x", run, "beam", scores=scores))
        assert [(each.count, each.num_relevant) for each in bins] == [(15, 5), (15, 5)]
        assert [each.mean for each in bins] == pytest.approx([0.0498, 0.9048], abs=1e-4)
        # Wilson's interval of 5 of 15, from tables.
        assert bins[0].interval == pytest.approx((0.1518, 0.5829), abs=1e-4)
        bias, distance = calibration_error(bins)
        assert bias == pytest.approx((0.0498 + 0.9048) / 2 - 1 / 3, abs=1e-4)
        assert distance == pytest.approx((1 / 3 - 0.0498 + 0.9048 - 1 / 3) / 2, abs=1e-4)

    def test_a_share_of_none_or_all_stays_a_share(self) -> None:
        names = [str(number) for number in range(15)]
        for found in ("right", "wrong"):
            answers = Answers("x", {name: [found] for name in names}, "beam", scores={name: [0.0] for name in names})
            [only] = calibration(dict.fromkeys(names, {"right": 1}), answers)
            low, high = only.interval
            assert 0 <= low <= only.share <= high <= 1


class TestPage:
    def test_markdown_shows_data_as_it_is(self) -> None:
        for text in ("# a", "1. b", "- c", "*d* _e_ f_g", "|", "a\nb", "[x](https://y.z)", "`", "<b>", "\\", "=="):
            written = render_markdown("t", [Paragraph(text)]).split("\n\n", 1)[1].rstrip("\n")
            assert "\n" not in written
            assert re.sub(r"\\([^a-z0-9\s])", r"\1", written) == " ".join(text.split())
            assert not re.match(r"[#=-]|\d+\.", written) and not re.search(r"(?<!\\)(?:[<`|*\[]|://)", written)

    def test_code_outlives_backticks_and_columns(self) -> None:
        written = render_markdown("t", [Table(["x"], [[Code("a``b|c")]]), Paragraph(("so ", Code("a|b"), " it is"))])
        assert "| ``` a``b\\|c ``` |" in written and "so `a|b` it is" in written

    def test_folds_and_strong(self) -> None:
        blocks = [Fold(("q<", Strong("s")), [Paragraph("inside", "note")])]
        assert '<summary dir="auto">q&lt;<strong>s</strong></summary>\n<p class="note">inside</p>' in render_html(
            "t", blocks
        )
        assert render_markdown("t", blocks) == "# t\n\n### q\\<**s**\n\ninside\n"


def variant(name: str, changes: dict[str, Any], *, ndcg: float, p: float, **values: Any) -> list[dict[str, Any]]:
    """Returns the rows of a variant: of a strategy and of BM25, to which all variants are the same."""
    row = {
        "variant": name, "changes": json.dumps(changes), "system": "zerogr-beam", "strategy": "beam", "num_queries": 225,
        "acc@1": ndcg + 0.1, "ndcg@10": ndcg, "recall@100": 2 * ndcg, "seconds_to_index": 1800.0,
        "ndcg@10 - base": round(ndcg - 0.3, 4), "p of ndcg@10": p, "queries.num_queries_per_document": 8,
        "docids.max_words": 8, "docids_collisions": 31, "docids_words_per_docid": 6.4, **values,
    }  # fmt: skip
    same = {"acc@1": 0.68, "ndcg@10": 0.4, "recall@100": 0.73, "ndcg@10 - base": 0.0, "p of ndcg@10": 1.0}
    return [row, {**row, "system": "bm25", "strategy": None, "seconds_to_index": 0.3, **same}]


BASE = variant("base", {}, ndcg=0.3, p=1.0)
B = "queries.num_queries_per_document"
MORE = variant(f"{B}=16", {B: 16}, ndcg=0.345, p=0.004, **{B: 16, "seconds_to_index": 3600.0})
SHORT = variant(
    "docids.min_words=2+docids.max_words=4", {"docids.min_words": 2, "docids.max_words": 4}, ndcg=0.25, p=0.01,
    **{"docids.max_words": 4, "docids_collisions": 240},
)  # fmt: skip
RANDOM = variant("docids.scheme=random", {"docids.scheme": "random"}, ndcg=0.31, p=0.4, docids_collisions=0)


class TestAblationReport:
    def test_the_figures_are_those_given(self) -> None:
        html, markdown = ablation_report([*BASE, *MORE, *SHORT], title="Ablation", price_per_hour=2.5)
        page = Reader(html)
        assert page.tables[0] == [
            ["variant", "system", "Acc@1", "nDCG@10", "Recall@100", "vs base", "p", "s to index", "US dollars"],
            ["base", "zerogr-beam", "0.400", "0.300", "0.600", "", "", "1,800", "1.25"],
            ["base", "bm25", "0.680", "0.400", "0.730", "", "", "0.3", "0.00"],
            [f"{B}=16", "zerogr-beam", "0.445", "0.345", "0.690", "+0.045", "0.004", "3,600", "2.50"],
            [SHORT[0]["variant"], "zerogr-beam", "0.350", "0.250", "0.500", "−0.050", "0.010", "1,800", "1.25"],
        ]
        assert page.tables == tables_of_markdown(markdown)
        assert (
            f"{B}=16 helps most: nDCG@10 of zerogr-beam rises by 0.045 to 0.345 (p = 0.004, 225 queries)." in page.text
        )
        assert page.tables[1][1:] == [
            ["zerogr-beam", "8", "0.300", "1,800", "1.25"], ["zerogr-beam", "16", "0.345", "3,600", "2.50"],
            ["bm25", "8", "0.400", "0.3", "0.00"], ["bm25", "16", "0.400", "0.3", "0.00"],
        ]  # fmt: skip
        assert [row[-1] for row in page.tables[2][1:3]] == ["240", "31"]

    @pytest.mark.parametrize(
        ("rows", "titles"),
        [
            (BASE, []),
            ([*BASE, *RANDOM], []),
            ([*BASE, *MORE], ["Quality", "Cost of the index"]),
            ([*BASE, *SHORT, *RANDOM], ["Quality", "Collisions before resolution"]),
            ([*BASE, *({**row, "docids_collisions": None} for row in SHORT)], ["Quality"]),
            ([{**row, "docids.max_words": None, B: None} for row in (*BASE, *MORE, *SHORT)], []),
        ],
    )  # fmt: skip
    def test_plots_only_where_the_rows_have_them(self, rows: list[dict[str, Any]], titles: list[str]) -> None:
        html, _ = ablation_report(rows, title="Ablation")
        assert [
            title for title in ("Quality", "Cost of the index", "Collisions before resolution") if f">{title}<" in html
        ] == titles
        assert html.count('role="img"') == len(titles) and "US dollars" not in html

    def test_variants_that_share_another_change_have_plots_of_their_own(self) -> None:
        spans = {"queries.num_spans_per_document": 0}
        few, many = (
            variant(f"spans=0+B={number}", {**spans, B: number}, ndcg=ndcg, p=0.01, **{B: number})
            for number, ndcg in ((1, 0.1), (4, 0.2))
        )
        page = Reader(ablation_report([*BASE, *MORE, *many, *few, *RANDOM], title="Ablation")[0])
        assert [row[1:3] for row in page.tables[1][1:3]] == [["8", "0.300"], ["16", "0.345"]]
        assert [row[1:3] for row in page.tables[2][1:3]] == [["1", "0.100"], ["4", "0.200"]]
        assert "How many pseudo-queries, queries.num_spans_per_document=0" in page.text

    def test_spans_have_a_plot_as_well(self) -> None:
        key = "queries.num_spans_per_document"
        more = variant(f"{key}=24", {key: 24}, ndcg=0.4, p=0.01, **{key: 24})
        page = Reader(ablation_report([*({**row, key: 12} for row in BASE), *more], title="Ablation")[0])
        assert "From 12 to 24 spans per document nDCG@10 of zerogr-beam goes from 0.300 to 0.400" in page.text
        assert [row[1:3] for row in page.tables[1][:3]] == [
            ["spans per document", "nDCG@10"],
            ["12", "0.300"],
            ["24", "0.400"],
        ]

    def test_judged_queries_have_a_curve_in_per_cent(self) -> None:
        key = "training.judged_share"
        few, none = (
            variant(f"{key}={share}", {key: share}, ndcg=ndcg, p=0.01, **{key: share})
            for share, ndcg in ((0.05, 0.2), (0, 0.1))
        )
        page = Reader(ablation_report([*({**row, key: 1.0} for row in BASE), *few, *none], title="Ablation")[0])
        assert (
            "From 0 to 100 per cent of the judged queries nDCG@10 of zerogr-beam goes from 0.100 to 0.300" in page.text
        )
        assert "0 per cent is zero-shot: pseudo-queries and spans alone." in page.text
        assert [row[1:3] for row in page.tables[1][:4]] == [
            ["per cent of the judged queries", "nDCG@10"],
            ["0", "0.100"],
            ["5", "0.200"],
            ["100", "0.300"],
        ]

    def test_what_is_tested_is_shown(self) -> None:
        rows = [{**row, "p of err@20": 1.0, "err@20 - base": 0.0, "err@20": 0.125} for row in BASE]
        table = Reader(ablation_report(rows, title="Ablation")[0]).tables[0]
        assert table[0][2:6] == ["Acc@1", "nDCG@10", "Recall@100", "ERR@20"]
        assert [row[5] for row in table[1:]] == ["0.125", "0.125"]

    def test_luck_is_not_called_help(self) -> None:
        html, _ = ablation_report([*BASE, *RANDOM, *SHORT], title="Ablation")
        assert (
            "No variant is shown to be better than base: the best, docids.scheme=random, differs by +0.010"
            in Reader(html).text
        )

    def test_the_first_variant_alone(self) -> None:
        assert "no variant is done yet" in ablation_report(BASE, title="Ablation")[1]

    def test_the_same_rows_give_the_same_bytes_and_need_no_network(self) -> None:
        rows = [*BASE, *MORE, *SHORT]
        html, markdown = ablation_report(rows, title="Ablation", price_per_hour=1)
        assert (html, markdown) == ablation_report(rows, title="Ablation", price_per_hour=1)
        assert "http" not in html and "US dollars" in html
