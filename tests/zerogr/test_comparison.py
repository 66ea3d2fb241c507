"""What stands around the table of systems: significance, fusion, baselines, names of strategies, causes of losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zerogr.corpus.collection import Collection, Query
from zerogr.decoding.trace import Step
from zerogr.errors import UserError
from zerogr.evaluation.baselines.fusion import fuse
from zerogr.evaluation.baselines.systems import Documents, run_baseline
from zerogr.evaluation.comparison import Comparison
from zerogr.evaluation.explain import Support, classify
from zerogr.evaluation.metrics import METRICS, evaluate_queries
from zerogr.evaluation.runs import read_runs
from zerogr.evaluation.significance import compare
from zerogr.evaluation.systems import Answers, StrategySpec
from zerogr.ranking.ranker import Part
from zerogr.search.answer import Traced


class TestSignificance:
    """A p-value that is too small sells noise as progress."""

    def test_few_queries_are_counted_exactly(self) -> None:
        # Of the 2^5 sign patterns of (1, 1, 1, 1, -1) those with |sum| >= 3: all but 20.
        found = compare([1, 1, 1, 1, 0], [0, 0, 0, 0, 1])
        assert found.p == pytest.approx(12 / 32)
        assert (found.mean, found.wins, found.losses) == (pytest.approx(0.6), 4, 1)
        assert found.low <= 0.6 <= found.high

    def test_many_queries(self) -> None:
        random = np.random.default_rng(0)
        base = random.random(400)
        noise = random.normal(scale=0.1, size=400)
        assert compare(base + noise, base).p > 0.01
        better = compare(base + 0.05 + noise, base)
        assert better.p < 0.001 and better.low > 0
        assert compare(base, base + 0.05 + noise).mean == pytest.approx(-better.mean)

    def test_is_a_fair_test(self) -> None:
        """Of two equal systems p is below .1 one time in ten."""
        random = np.random.default_rng(1)
        num_small = sum(compare(*random.random((2, 40))).p < 0.1 for _ in range(100))
        assert 3 <= num_small <= 20  # binomial(100, .1): outside with probability .002

    def test_equal_systems_and_single_queries(self) -> None:
        assert compare([0.5, 1], [0.5, 1]).p == 1
        assert compare([1], [0]).p == 1

    def test_the_same_seed_gives_the_same_figures(self) -> None:
        random = np.random.default_rng(2)
        first, second = random.random((2, 100))
        assert compare(first, second) == compare(first, second)

    @pytest.mark.parametrize(("first", "second"), [([], []), ([1, 2], [1])])
    def test_other_queries_are_refused(self, first: list[float], second: list[float]) -> None:
        with pytest.raises(ValueError, match="needs the same queries"):
            compare(first, second)


class TestFusion:
    def test_by_hand(self) -> None:
        # a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/62, d: 1/63
        fused = fuse([{"q": ["a", "b", "d"]}, {"q": ["b", "c", "a"]}], k=3)
        assert fused == {"q": ["b", "a", "c"]}

    def test_equal_sums_keep_the_order_of_the_runs(self) -> None:
        assert fuse([{"q": ["a"]}, {"q": ["b"], "other": ["c"]}], k=9) == {"q": ["a", "b"], "other": ["c"]}


class TestStrategySpec:
    def test_options(self) -> None:
        spec = StrategySpec.parse("reverse_annealing:max_temperature=0.5,k=20,without_replacement=exact")
        assert spec == StrategySpec(
            "reverse_annealing", {"max_temperature": 0.5, "k": 20, "without_replacement": "exact"}
        )
        assert spec.system == "zerogr-reverse_annealing+max_temperature=0.5+k=20+without_replacement=exact"
        assert spec.text == "reverse_annealing:max_temperature=0.5,k=20,without_replacement=exact"
        assert StrategySpec.parse("beam").system == "zerogr-beam"
        assert StrategySpec.parse("beam").text == "beam"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("bean", "'bean' is no strategy: unknown strategy 'bean'; did you mean 'beam'"),
            ("beam:width=3", "unknown option of beam 'width'; did you mean 'beam_width'"),
            ("beam:beam_width", "OPTION=VALUE, separated by commas, not 'beam_width'"),
            ("beam:k=0", "k must be a whole number of at least 1, not 0"),
            ("beam:num_leaves=half", "num_leaves must be a whole number of at least 1, not 'half'"),
            ("greedy:num_leaves=0", "num_leaves must be a whole number of at least 1, not 0"),
            ("beam:normalise=all", "normalise must be allowed or vocabulary, not 'all'"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            StrategySpec.parse(text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("beam:beam_width=99", "beam_width must be at least k = 100, got 99"),
            ("beam:beam_width=wide", "the strategy beam\\+beam_width=wide cannot run"),
            ("nucleus:top_p=0", "top_p must be"),
            ("reverse_annealing:without_replacement=no", "without_replacement"),
        ],
    )
    def test_values_it_does_not_take(self, text: str, message: str) -> None:
        spec = StrategySpec.parse(text)
        with pytest.raises(UserError, match=message):
            spec.check(100)

    @pytest.mark.parametrize("text", ["beam:beam_width=99,k=9", "best_first", "stochastic_beam", "nucleus:top_p=1"])
    def test_values_it_takes(self, text: str) -> None:
        StrategySpec.parse(text).check(100)


DOCUMENTS = Documents(
    ["car", "cat", "sea"],
    ["automobile engines and their repair", "a small feline that purrs", "waves on the ocean"],
    [["how to mend a vehicle"], [], []],
)
QUERIES = Collection(
    {name: Query(name, text) for name, text in {"1": "mend my vehicle", "2": "kitten", "3": "ocean"}.items()},
    {"1": {"car": 1}, "2": {"cat": 1}, "3": {"sea": 1}},
)


class TestBaselines:
    def test_pseudo_queries_lend_a_document_their_words(self) -> None:
        assert run_baseline("bm25", DOCUMENTS, QUERIES, 10, []).run == {"1": [], "2": [], "3": ["sea"]}
        assert run_baseline("doc2query", DOCUMENTS, QUERIES, 10, []).run == {"1": ["car"], "2": [], "3": ["sea"]}

    def test_dense_knows_words_that_the_document_lacks(self) -> None:
        answers = run_baseline("minilm", DOCUMENTS, QUERIES, 2, [])
        assert {query: found[0] for query, found in answers.run.items()} == {"1": "car", "2": "cat", "3": "sea"}
        assert all(len(found) == 2 for found in answers.run.values())
        assert answers.seconds_to_index is not None and answers.seconds_to_index >= 0

    def test_fusion_takes_the_first_strategy_and_words(self) -> None:
        ours = Answers("zerogr-beam", {"1": ["cat"], "2": ["cat"], "3": ["car"]}, "beam", 2.0, 60.0)
        other = Answers("zerogr-greedy", {"1": ["sea"], "2": ["sea"], "3": ["sea"]}, "greedy", 1.0, 60.0)
        fused = run_baseline("rrf", DOCUMENTS, QUERIES, 10, [ours, other])
        assert fused.run == {"1": ["cat"], "2": ["cat"], "3": ["car", "sea"]}
        assert fused.seconds_to_index is not None and fused.seconds_to_index >= 60

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(UserError, match="name a strategy as well"):
            run_baseline("rrf", DOCUMENTS, QUERIES, 10, [])
        bare = Documents(DOCUMENTS.doc_ids, DOCUMENTS.texts, [[], [], []])
        with pytest.raises(UserError, match="num_queries_per_document is 0"):
            run_baseline("doc2query", bare, QUERIES, 10, [])


class TestForeignRuns:
    def test_are_systems_of_the_table(self, tmp_path: Path) -> None:
        (tmp_path / "bge.run").write_text("1 Q0 car 1 9.5 x\n3 Q0 cat 1 2 x\n")
        [answers] = read_runs([str(tmp_path / "bge.run")])
        assert answers == Answers("bge", {"1": ["car"], "3": ["cat"]})

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no run file '.*absent\.run'"):
            read_runs([str(tmp_path / "absent.run")])
        for name, content, message in (
            ("bm25.run", "", "has the name of another system, 'bm25'"),
            ("a b.run", "", "the system name 'a b'"),
            ("latin.run", "1 Q0 é 1 1 x\n", "can't decode"),
            ("short.run", "1 Q0 a\n", r"short\.run:1 must hold six columns"),
        ):
            (tmp_path / name).write_text(content, encoding="latin-1")
            with pytest.raises(UserError, match=message):
                read_runs([str(tmp_path / name)])


class TestComparison:
    def test_tables_and_queries(self) -> None:
        ours = Answers("ours", {"1": ["car"], "2": ["sea", "cat"], "3": ["sea"]}, "beam", 5.0, 9.0)
        theirs = Answers("theirs", {"3": ["sea"]})
        per_query = {each.system: evaluate_queries(QUERIES.qrels, each.run) for each in (ours, theirs)}
        kinds = {"1": "text", "2": "table", "3": "text"}
        lost = {"verdict": "late", "doc_id": "cat", "first": "sea", "lost_at": 1}
        errors = {"right": 2, "wrong": 1, "late": 1, "queries": {"2": lost}}
        comparison = Comparison(QUERIES, [ours, theirs], per_query, kinds, errors)
        assert [(row["system"], row["acc@1"], row["ms_per_query"]) for row in comparison.rows] == [
            ("ours", 0.6667, 5.0), ("theirs", 0.3333, None),
        ]  # fmt: skip
        assert {kind: [row["mrr@10"] for row in rows] for kind, rows in comparison.by_kind.items()} == {
            "table": [0.5, 0], "text": [1, 0.5],
        }  # fmt: skip
        assert [(row["against"], row["metric"], row["mean"], row["wins"]) for row in comparison.differences] == [
            ("theirs", "acc@1", 0.3333, 1), ("theirs", "ndcg@10", 0.5436, 2), ("theirs", "recall@100", 0.6667, 2),
        ]  # fmt: skip
        comparison.tested = ["mrr@3"]
        assert [(row["metric"], row["mean"]) for row in comparison.differences] == [("mrr@3", 0.5)]
        query = comparison.queries[1]
        assert query["relevant"] == {"cat": 1} and query["error"] == lost
        assert query["systems"]["ours"]["first_relevant_rank"] == 2
        assert query["systems"]["theirs"] == {**dict.fromkeys(METRICS, 0.0), "first_relevant_rank": None, "top": []}

    def test_one_kind_needs_no_tables_of_its_own(self) -> None:
        per_query = {"x": evaluate_queries(QUERIES.qrels, {})}
        kinds = dict.fromkeys(QUERIES.qrels, "text")
        comparison = Comparison(QUERIES, [Answers("x", {})], per_query, kinds, {"right": 0, "wrong": 0, "queries": {}})
        assert comparison.by_kind == {} and comparison.differences == []


class TestClassOfALoss:
    """The classes decide where effort goes, so each is made on purpose here."""

    @staticmethod
    def traced(doc_id: str, docid: str, *log_probs: float) -> Traced:
        steps = [Step(0, log_prob, 1, 2, 0, 0.0) for log_prob in log_probs]
        return Traced(doc_id, docid, sum(log_probs), [], steps)

    def test_each(self) -> None:
        first = self.traced("x", "wing lift flow", -0.5, -0.5)
        good, poor = [Support("asked like this", 0.6)], [Support("asked otherwise", 0.3)]
        for docid, log_probs, support, expected in (
            ("wing lift flow", (-0.5, -0.5), good, (None, "collided")),
            ("heat bath", (-0.2, -0.3), good, (None, "search")),
            ("lift wing drag", (-0.4, -9.0), poor, (1, "ambiguous")),
            ("heat bath", (-0.4, -9.0), poor, (1, "unsupported")),
            ("heat bath", (-0.4, -9.0), [], (1, "unsupported")),
            ("heat bath", (-1.1, 0.0), good, (0, "first_token")),
            ("heat bath", (-0.4, -0.7), good, (1, "late")),
        ):
            assert classify("", self.traced("y", docid, *log_probs), first, support) == expected
        assert classify("", first, first, good) == (None, "first")

    def test_each_where_words_are_written(self) -> None:
        def traced(doc_id: str, docid: str, *scores: float) -> Traced:
            parts = [Part("terms", word, 0.1, score) for word, score in zip(docid.split(), scores, strict=True)]
            return Traced(doc_id, docid, sum(scores), parts)

        query, first = "Does a wing lift?", traced("x", "wing lift flow", 2.0, 1.0, 0.5)
        good, poor = [Support("asked like this", 0.6)], [Support("asked otherwise", 0.3)]
        for docid, scores, support, expected in (
            ("wing lift flow", (2.0, 1.0, 0.5), good, "collided"),
            ("heat bath", (2.0, 2.0), good, "search"),
            ("lift wings wing drag", (0.1, 0.1, 0.1, 0.1), poor, "ambiguous"),
            ("heat bath", (0.1, 0.1), poor, "unsupported"),
            ("heat bath wings", (0.1, 0.1, 2.0), good, "lacks_terms"),
            ("lifting bath wings", (0.1, 0.1, 2.0), good, "outweighed"),
        ):
            assert classify(query, traced("y", docid, *scores), first, support) == (None, expected)
        assert classify(query, first, first, good) == (None, "first")
