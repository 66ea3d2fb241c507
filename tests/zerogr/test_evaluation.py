"""Collections, metrics, run files and the BM25 baseline, on cases small enough to compute by hand."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from math import log2
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.config import evaluation as config
from zerogr.corpus.collection import Collection, Query
from zerogr.errors import UserError
from zerogr.evaluation.baselines.bm25 import BM25, document_text
from zerogr.evaluation.metrics import METRICS, evaluate_queries, evaluate_run
from zerogr.evaluation.runs import format_run, parse_run, run_file_name

QUERIES = [
    {"_id": "q1", "text": "wing lift", "metadata": {"instruction": "Find aeronautics abstracts."}},
    {"_id": "q2", "text": "crystalline lens", "instruction": "Find medical abstracts."},
    {"_id": "q3", "text": "heat transfer", "metadata": {"original_id": 7}},
    {"_id": "unjudged", "text": ""},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t-1\nq2\tc\t1\nq3\td\t0\n"


def write_collection(folder: Path, queries: list[dict] | str = QUERIES, qrels: str = QRELS, split: str = "test") -> str:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    text = queries if isinstance(queries, str) else "".join(json.dumps(query) + "\n" for query in queries)
    (folder / "queries.jsonl").write_text(text, encoding="utf-8")
    (folder / "qrels" / f"{split}.tsv").write_text(qrels, encoding="utf-8")
    return str(folder)


class TestCollection:
    """A collection read wrongly gives plausible figures that are wrong."""

    def test_loads_judged_queries_with_their_instructions(self, tmp_path: Path) -> None:
        collection = Collection.load(write_collection(tmp_path), "test")
        assert collection.queries == {
            "q1": Query("q1", "wing lift", "Find aeronautics abstracts."),
            "q2": Query("q2", "crystalline lens", "Find medical abstracts."),
            "q3": Query("q3", "heat transfer", None),
        }
        assert collection.qrels == {"q1": {"a": 2, "b": -1}, "q2": {"c": 1}, "q3": {"d": 0}}

    def test_reads_from_any_fsspec_url(self, tmp_path: Path) -> None:
        local = write_collection(tmp_path)
        fsspec.filesystem("memory").put(local, "/bucket/collection", recursive=True)
        assert Collection.load("memory://bucket/collection/", "test") == Collection.load(local, "test")

    def test_reads_files_written_on_windows(self, tmp_path: Path) -> None:
        folder = write_collection(tmp_path)
        (tmp_path / "qrels" / "test.tsv").write_bytes(b"\xef\xbb\xbf" + QRELS.replace("\n", "\r\n").encode())
        assert Collection.load(folder, "test").qrels["q1"] == {"a": 2, "b": -1}

    def test_restriction_drops_what_no_system_could_find(self, tmp_path: Path) -> None:
        collection = Collection.load(write_collection(tmp_path), "test")
        restricted = collection.restricted_to({"a", "d", "z"})
        assert restricted.qrels == {"q1": {"a": 2}}
        assert list(restricted.queries) == ["q1"]
        assert restricted.num_dropped_queries == 2

    def test_shares_are_nested_and_drawn_by_the_seed(self, tmp_path: Path) -> None:
        rows = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(40)]
        qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(40))
        whole = Collection.load(write_collection(tmp_path, rows, qrels))
        shares = [whole.share(fraction, seed=3) for fraction in (0, 0.01, 0.05, 0.1, 0.25, 1)]
        assert [len(share.queries) for share in shares] == [0, 1, 2, 4, 10, 40]
        for smaller, larger in pairwise(shares):
            assert set(smaller.queries) < set(larger.queries)
            assert list(smaller.queries) == list(smaller.qrels)
            assert list(larger.queries) == [
                name for name in whole.queries if name in larger.queries
            ]  # the file's order
        assert shares[4].queries == Collection.load(str(tmp_path)).share(0.25, seed=3).queries
        assert shares[4].queries != whole.share(0.25, seed=4).queries

    def test_negative_gapped_and_single_grades_are_read_as_they_are(self, tmp_path: Path) -> None:
        grades = ["q1\ta\t-2", "q1\tb\t1", "q1\tc\t5", "q2\ta\t3", "q2\tb\t3", "q3\ta\t-1"]
        whole = Collection.load(
            write_collection(tmp_path, qrels="\n".join(["query-id\tcorpus-id\tscore", *grades, ""]))
        )
        assert whole.qrels == {"q1": {"a": -2, "b": 1, "c": 5}, "q2": {"a": 3, "b": 3}, "q3": {"a": -1}}
        assert whole.highest_grade == 5
        restricted = whole.restricted_to({"a", "b", "c"})
        assert list(restricted.qrels) == ["q1", "q2"] and restricted.num_dropped_queries == 1  # nothing answers q3
        relevant = {doc_id: [grade for *_, grade in asked] for doc_id, asked in whole.by_document("Find it.").items()}
        assert relevant == {"a": [3], "b": [1, 3], "c": [5]}

    def test_halves_by_position(self, tmp_path: Path) -> None:
        collection = Collection.load(write_collection(tmp_path), "test")
        halves = {positions: collection.at(positions) for positions in ("even", "odd", "all")}
        assert {name: list(half.queries) for name, half in halves.items()} == {
            "even": ["q1", "q3"], "odd": ["q2"], "all": ["q1", "q2", "q3"],
        }  # fmt: skip
        assert halves["odd"].qrels == {"q2": {"c": 1}}
        with pytest.raises(UserError, match="no query at an odd position, only 1 in all"):
            halves["odd"].at("odd")

    def test_restriction_to_a_foreign_index_is_refused(self, tmp_path: Path) -> None:
        collection = Collection.load(write_collection(tmp_path), "test")
        with pytest.raises(
            UserError, match="none of the 3 judged queries has a relevant document among the 2 documents"
        ):
            collection.restricted_to({"b", "z"})

    def test_a_missing_split_names_those_that_exist(self, tmp_path: Path) -> None:
        write_collection(tmp_path, split="dev")
        folder = write_collection(tmp_path, split="test")
        with pytest.raises(UserError, match=r"no split 'train'; the splits that exist: dev, test$"):
            Collection.load(folder, "train")

    def test_missing_folder_and_missing_queries(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no folder"):
            Collection.load(str(tmp_path / "absent"), "test")
        with pytest.raises(UserError, match="holds no queries.jsonl"):
            Collection.load(str(tmp_path), "test")

    @pytest.mark.parametrize(
        ("qrels", "message"),
        [
            (QRELS + "q1 a 1\n", r"qrels/test\.tsv:6 must hold three tab-separated columns"),
            (QRELS + "q1\tz\thigh\n", r"qrels/test\.tsv:6: the score must be a whole number, not 'high'"),
            (QRELS + "q1\ta\t1\n", r"qrels/test\.tsv:6 judges document 'a' for query 'q1' again"),
            ("q1\ta\t1\n", r"qrels/test\.tsv:1 must be the header"),
            ("query-id\tcorpus-id\tscore\n", "holds no judgement"),
            (QRELS + "q9\ta\t1\n", "1 of the 4 judged queries .* the first is 'q9'"),
        ],
    )
    def test_malformed_judgements(self, tmp_path: Path, qrels: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            Collection.load(write_collection(tmp_path, qrels=qrels), "test")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", r"queries\.jsonl:2 cannot be read: Expecting property name .* at column 2; mend that line"),
            ('{"id": "q1", "text": "x"}', r'queries\.jsonl:2: "_id" must be a string or an integer, not None'),
            ('{"_id": "q1", "text": " "}', r"queries\.jsonl:2: the text of the judged query 'q1' is empty"),
            ('{"_id": "q2", "text": "x"}', r"queries\.jsonl:2 repeats the query id 'q2'"),
            (
                '{"_id": "q1", "text": "x", "instruction": 3}',
                r"queries\.jsonl:2: the instruction must be a string, not 3",
            ),
        ],
    )
    def test_malformed_queries(self, tmp_path: Path, line: str, message: str) -> None:
        folder = write_collection(tmp_path, queries=json.dumps(QUERIES[1]) + "\n" + line + "\n")
        with pytest.raises(UserError, match=message):
            Collection.load(folder, "test")

    def test_invalid_utf8_names_the_line(self, tmp_path: Path) -> None:
        folder = write_collection(tmp_path)
        (tmp_path / "queries.jsonl").write_bytes(b'\n{"_id": "q1", "text": "\xff"}\n')
        with pytest.raises(UserError, match=r"queries\.jsonl:2 cannot be read: byte 23 of the line is not UTF-8"):
            Collection.load(folder, "test")


class TestMetrics:
    def test_graded_judgements_by_hand(self) -> None:
        qrels = {"q": {"a": 3, "b": 1, "c": 0, "d": -1, "e": 1}}
        values = evaluate_run(qrels, {"q": ["b", "d", "a", "x"]})
        gained = 1 / log2(2) + 3 / log2(4)
        ideal = 3 / log2(2) + 1 / log2(3) + 1 / log2(4)
        assert values == {
            "acc@1": 1.0,
            "ndcg@10": pytest.approx(gained / ideal),
            "recall@100": pytest.approx(2 / 3),
            "mrr@10": 1.0,
            "map": pytest.approx((1 + 2 / 3) / 3),
            "p@20": pytest.approx(2 / 20),
            "err@20": pytest.approx(1 / 16 + (1 - 1 / 16) * 7 / 16 / 3),
            "ndcg@5": pytest.approx(gained / ideal),
            "ndcg@20": pytest.approx(gained / ideal),
            "mrr@3": 1.0,
            "mrr@20": 1.0,
            "hits@10": 1.0,
            "num_queries": 1,
        }

    def test_negative_and_zero_grades_are_not_relevant(self) -> None:
        qrels = {"q": {"bad": -2, "none": 0, "good": 1}}
        values = evaluate_run(qrels, {"q": ["bad", "none", "good"]})
        assert values["acc@1"] == 0
        assert values["ndcg@10"] == pytest.approx(1 / log2(4))
        assert values["recall@100"] == 1
        assert values["mrr@10"] == values["map"] == pytest.approx(1 / 3)
        assert values["err@20"] == pytest.approx(1 / 16 / 3)

    def test_cut_offs(self) -> None:
        qrels = {"q": {"r11": 1, "r21": 1, "r101": 1}}
        run = [f"x{i}" for i in range(1, 102)]
        run[10], run[20], run[100] = "r11", "r21", "r101"
        values = evaluate_run(qrels, {"q": run})
        assert values["acc@1"] == values["ndcg@10"] == values["mrr@10"] == 0
        assert values["recall@100"] == pytest.approx(2 / 3)
        assert values["p@20"] == pytest.approx(1 / 20)
        assert values["err@20"] == pytest.approx(1 / 16 / 11)
        assert values["map"] == pytest.approx((1 / 11 + 2 / 21 + 3 / 101) / 3)

    @pytest.mark.parametrize(
        ("rank", "hits", "mrr_3", "mrr_10", "mrr_20"),
        [
            (3, 1, 1 / 3, 1 / 3, 1 / 3), (4, 1, 0, 1 / 4, 1 / 4), (10, 1, 0, 1 / 10, 1 / 10), (11, 0, 0, 0, 1 / 11),
            (21, 0, 0, 0, 0),
        ],
    )  # fmt: skip
    def test_cut_offs_of_ranks(self, rank: int, hits: float, mrr_3: float, mrr_10: float, mrr_20: float) -> None:
        values = evaluate_run({"q": {"r": 2}}, {"q": [*(f"x{i}" for i in range(1, rank)), "r"]})
        assert [values[key] for key in ("hits@10", "mrr@3", "mrr@10", "mrr@20")] == [
            hits, pytest.approx(mrr_3), pytest.approx(mrr_10), pytest.approx(mrr_20),
        ]  # fmt: skip
        assert values["acc@1"] == 0

    def test_cut_offs_of_four_grades_by_hand(self) -> None:
        """As in Cranfield: six graded documents, of which the run has one among the first 5 and four among the first 20."""
        qrels = {"q": {"a": 4, "b": 3, "c": 2, "d": 1, "e": 1, "f": 4}}
        run = [f"x{i}" for i in range(1, 23)]
        run[1], run[5], run[9], run[19], run[20] = "b", "a", "d", "c", "f"  # ranks 2, 6, 10, 20, 21
        values = evaluate_run(qrels, {"q": run})
        ideal_5 = 4 / log2(2) + 4 / log2(3) + 3 / log2(4) + 2 / log2(5) + 1 / log2(6)
        ideal = ideal_5 + 1 / log2(7)
        gained = 3 / log2(3), 4 / log2(7), 1 / log2(11), 2 / log2(21)
        assert values["ndcg@5"] == pytest.approx(gained[0] / ideal_5)
        assert values["ndcg@10"] == pytest.approx(sum(gained[:3]) / ideal)
        assert values["ndcg@20"] == pytest.approx(sum(gained) / ideal)
        assert values["p@20"] == pytest.approx(4 / 20)
        stops = [(2, 7 / 16), (6, 15 / 16), (10, 1 / 16), (20, 3 / 16)]
        reading, expected = 1.0, 0.0
        for rank, satisfied in stops:
            expected += reading * satisfied / rank
            reading *= 1 - satisfied
        assert values["err@20"] == pytest.approx(expected)

    def test_gaps_between_grades_and_a_single_grade(self) -> None:
        gaps = evaluate_run({"q": {"a": 4, "b": 1}}, {"q": ["b", "a"]})
        assert gaps["ndcg@5"] == pytest.approx((1 + 4 / log2(3)) / (4 + 1 / log2(3)))
        alike = evaluate_run({"q": {"a": 3, "b": 3}}, {"q": ["x", "a", "b"]})
        assert alike["ndcg@5"] == pytest.approx((1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3)))

    def test_the_configuration_names_what_is_measured(self) -> None:
        assert tuple(METRICS) == config.METRICS

    def test_grades_above_four_satisfy_no_reader_more_than_once(self) -> None:
        values = evaluate_run({"q": {"a": 6}}, {"q": ["a"]})
        assert values["err@20"] == pytest.approx(63 / 64)

    def test_queries_without_results_count_as_zero(self) -> None:
        qrels = {"found": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}, "nothing relevant": {"a": 0}}
        run = {"found": ["a"], "empty": [], "nothing relevant": ["a"], "not judged": ["a"]}
        values = evaluate_run(qrels, run)
        assert values["num_queries"] == 4
        assert values["acc@1"] == values["ndcg@10"] == values["recall@100"] == values["map"] == 0.25
        per_query = evaluate_queries(qrels, run)
        assert list(per_query) == list(qrels)
        assert per_query["found"]["acc@1"] == per_query["found"]["map"] == 1
        assert set(per_query["absent"].values()) == set(per_query["empty"].values()) == {0.0}

    @settings(deadline=None, max_examples=50)
    @given(
        grades=st.dictionaries(st.integers(0, 60), st.integers(-1, 4), min_size=1),
        found=st.lists(st.integers(0, 140), unique=True, max_size=130),
    )
    def test_agrees_with_the_definitions(self, grades: dict[int, int], found: list[int]) -> None:
        """An independent evaluator, from the text of a run file: trec_eval's definitions, written down once more."""
        lines = format_run({"q": [str(doc) for doc in found]}, "ours").splitlines()
        ranked = [line.split()[2] for line in sorted(lines, key=lambda line: -float(line.split()[4]))]
        gains = [max(grades.get(int(doc), 0), 0) for doc in ranked]
        relevant = [gain > 0 for gain in gains]
        num_relevant = sum(grade > 0 for grade in grades.values())
        ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)

        def ndcg(k: int) -> float:
            gained, best = (
                sum(value / log2(place + 2) for place, value in enumerate(values[:k])) for values in (gains, ideal)
            )
            return gained / best if best else 0.0

        precisions = [sum(relevant[: i + 1]) / (i + 1) for i in range(len(relevant)) if relevant[i]]
        first = relevant.index(True) + 1 if any(relevant) else 1000
        expected = {
            "acc@1": float(relevant[:1] == [True]),
            "hits@10": float(any(relevant[:10])),
            **{f"ndcg@{k}": ndcg(k) for k in (5, 10, 20)},
            **{f"mrr@{k}": 1 / first if first <= k else 0.0 for k in (3, 10, 20)},
            "recall@100": sum(relevant[:100]) / num_relevant if num_relevant else 0.0,
            "map": sum(precisions) / num_relevant if num_relevant else 0.0,
            "p@20": sum(relevant[:20]) / 20,
        }
        qrels = {"q": {str(doc): grade for doc, grade in grades.items()}}
        values = evaluate_run(qrels, {"q": [str(doc) for doc in found]})
        assert {name: values[name] for name in expected} == pytest.approx(expected, abs=5e-5)

    def test_our_order_survives_deep_ranks(self) -> None:
        """trec_eval breaks ties by document id; scores that coincide as 32-bit floats would let it reorder us."""
        ids = [f"{i:06d}" for i in range(1, 100_001)]
        for position in (9, 99):
            values = evaluate_run({"q": {ids[position]: 1}}, {"q": ids})
            assert values["ndcg@10"] == pytest.approx(1 / log2(11) if position == 9 else 0)
            assert values["recall@100"] == 1
        assert evaluate_run({"q": {ids[100]: 1}}, {"q": ids})["recall@100"] == 0

    def test_misuse(self) -> None:
        with pytest.raises(ValueError, match="'a' more than once"):
            evaluate_run({"q": {"a": 1}}, {"q": ["a", "b", "a"]})
        with pytest.raises(ValueError, match="no judgements"):
            evaluate_run({}, {"q": ["a"]})


class TestRunFiles:
    def test_columns(self) -> None:
        text = format_run({"q1": ["b", "a", "c"], "q2": []}, "bm25")
        assert text == "q1 Q0 b 1 1 bm25\nq1 Q0 a 2 0.5 bm25\nq1 Q0 c 3 0.333333333 bm25\n"

    def test_every_id_comes_back(self) -> None:
        ids = [
            "plain",
            "a b",
            "tab\there",
            "line\nbreak",
            "100%",
            "%20",
            "%ff",
            "c#",
            "é/ü",
            "\x1c\u2028\x85",
            "50%25 x",
        ]
        run = {"a query": ids, "q": ["z"]}
        text = format_run(run, "zerogr-beam")
        assert all(len(line.split()) == 6 for line in text.split("\n")[:-1])
        assert parse_run(text) == run

    def test_ids_that_need_no_quoting_stand_as_they_are(self) -> None:
        ids = ["collections.OrderedDict", "100%", "a+b", "https://example.org/x?y=1"]
        assert [line.split()[2] for line in format_run({"q": ids}, "s").splitlines()] == ids

    def test_reading_orders_by_score(self) -> None:
        assert parse_run("q Q0 low 1 -2.5 x\nq Q0 high 2 7e1 x\nq Q0 tied 3 -2.5 x\n\n") == {
            "q": ["high", "low", "tied"]
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("q Q0 a 1 1\n", r"bm25\.run:1 must hold six columns"),
            ("q Q0 a 1 1 s\nq Q0 b two 1 s\n", r"bm25\.run:2: rank and score must be numbers, not \['two', '1'\]"),
            ("q Q0 a 1 1 s\nq Q0 a 2 .5 s\n", r"bm25\.run:2 names the document 'a' a second time"),
        ],
    )
    def test_malformed_files(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            parse_run(text, "bm25.run")

    def test_names(self) -> None:
        assert run_file_name("zerogr-reverse_annealing") == "zerogr-reverse_annealing.run"
        for name in ("", "../x", "a b", ".hidden"):
            with pytest.raises(ValueError, match="system name"):
                run_file_name(name)
        with pytest.raises(ValueError, match="empty id"):
            format_run({"q": [""]}, "s")


class TestBM25:
    def test_ranks_by_stemmed_words_of_title_and_text(self) -> None:
        texts = [
            document_text("Wings", "lifting in a slipstream"),
            document_text("", "crystals"),
            document_text("wing", ""),
        ]
        index = BM25.build(["a", "b", "c"], texts)
        assert index.search(["wing", "the crystal", "the of", "zebra", "lift wing"], k=10) == [
            ["c", "a"],
            ["b"],
            [],
            [],
            ["a", "c"],
        ]

    def test_scores_of_the_lucene_variant(self) -> None:
        """idf = ln(1 + (3 - 2 + .5) / (2 + .5)); tf part tf / (tf + .9 (.6 + .4 · length / 3)); by hand."""
        index = BM25.build(["a", "b", "c"], ["alpha alpha beta gamma", "alpha beta", "beta gamma delta"])
        scores = index._model.get_scores(["alpha"])
        idf = 0.47000363  # ln 1.6
        assert scores.tolist() == pytest.approx(
            [idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 4 / 3)), idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / 3)), 0], rel=1e-5
        )

    def test_equal_scores_keep_document_order_and_k_cuts(self) -> None:
        index = BM25.build([f"d{i}" for i in range(9)], ["same words here"] * 9)
        assert index.search(["words"], k=4) == [["d0", "d1", "d2", "d3"]]

    def test_misuse(self) -> None:
        for doc_ids, texts in (([], []), (["a"], []), (["a"], ["of the"])):
            with pytest.raises(ValueError, match="BM25|none of the 1 texts"):
                BM25.build(doc_ids, texts)
        with pytest.raises(ValueError, match="k must be at least 1, not 0"):
            BM25.build(["a"], ["word"]).search(["word"], k=0)

    @pytest.mark.skipif("ZEROGR_DATA" not in os.environ, reason="ZEROGR_DATA names no folder of test collections")
    @pytest.mark.parametrize(
        ("name", "ndcg", "accuracy", "recall"),
        [("adi", 0.480, 0.514, 0.910), ("med", 0.671, 0.800, 0.772), ("cranfield", 0.403, 0.684, 0.738)],
    )
    def test_published_figures(self, name: str, ndcg: float, accuracy: float, recall: float) -> None:
        folder = Path(os.environ["ZEROGR_DATA"]) / name
        if not folder.is_dir():
            pytest.skip(f"{folder} does not exist")
        with open(folder / "corpus.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        index = BM25.build(
            [row["_id"] for row in rows], [document_text(row.get("title", ""), row["text"]) for row in rows]
        )
        collection = Collection.load(str(folder), "test")
        results = index.search([query.text for query in collection.queries.values()], k=100)
        values = evaluate_run(collection.qrels, dict(zip(collection.queries, results, strict=True)))
        assert values["ndcg@10"] == pytest.approx(ndcg, abs=0.003)
        assert values["acc@1"] == pytest.approx(accuracy, abs=0.003)
        assert values["recall@100"] == pytest.approx(recall, abs=0.003)
