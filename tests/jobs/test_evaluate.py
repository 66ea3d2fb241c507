"""What an index is measured to be worth, why it missed what it missed, and what other settings would have made of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.cli import main
from tests import tiny
from tests.published import files
from zerogr import Retriever
from zerogr.index.index import Index
from zerogr.store import storage
from zerogr.text.words import stem

pytestmark = pytest.mark.integration

METRICS = {"acc@1", "ndcg@10", "recall@100", "mrr@10", "map", "p@20", "err@20"}
METRICS |= {"ndcg@5", "ndcg@20", "mrr@3", "mrr@20", "hits@10"}


@pytest.fixture
def config(tiny_index: str) -> Path:
    """The config file that `tiny_index` was made with."""
    return Path(tiny_index).parent / "config.yaml"


@pytest.fixture
def copied(tiny_index: str, tmp_path: Path) -> str:
    """A copy of `tiny_index` that a test may change."""
    shutil.copytree(tiny_index, tmp_path / "index")
    return str(tmp_path / "index")


def printed(command: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must succeed; returns the JSON document it prints."""
    assert main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents_of(uri: str, folder: str) -> dict[str, bytes]:
    """Returns what the files of a folder hold."""
    return {name: file.content for name, file in files(uri, folder).items()}


class TestEvaluate:
    def test_tables_and_files_agree(
        self, tiny_index: str, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        command = ["evaluate", tiny_index, "--dataset", str(collection), "--strategy", "greedy", "beam:beam_width=40"]
        command += ["--strategy", "greedy", "--k", "20", "--baseline", "bm25", "doc2query", "rrf", "--out", str(out)]
        tables = printed(command, capsys)
        assert [(row["system"], row["strategy"]) for row in tables["rows"]] == [
            ("zerogr-greedy", "greedy"), ("zerogr-beam+beam_width=40", "beam"),
            ("bm25", None), ("doc2query", None), ("rrf", None),
        ]  # fmt: skip
        queries = [json.loads(line) for line in (out / "queries.jsonl").read_text().splitlines()]
        assert len(queries) == 40 and len({query["query_id"] for query in queries}) == 40
        for row in tables["rows"]:
            expected = {"system", "strategy", "num_queries", "ms_per_query", "seconds_to_index", *METRICS}
            assert set(row) == expected and row["num_queries"] == 40
            assert 0 <= row["acc@1"] <= row["ndcg@10"] <= row["recall@100"] <= 1
            assert row["ms_per_query"] >= 0 and row["seconds_to_index"] >= 0
            lines = (out / f"{row['system']}.run").read_text().splitlines()
            first = [line.split() for line in lines if line.split()[3] == "1"]
            # One judged document per question: Acc@1 is the share of questions whose first document is theirs.
            right = sum(columns[2] == tiny.documents()[int(columns[0][1:])]["_id"] for columns in first)
            assert right / 40 == pytest.approx(row["acc@1"])
            values = [query["systems"][row["system"]] for query in queries]
            assert sum(value["acc@1"] for value in values) / 40 == pytest.approx(row["acc@1"])
            assert sum(value["first_relevant_rank"] == 1 for value in values) == right
        assert tables["by_kind"] == {}
        assert {row["against"] for row in tables["differences"]} == {row["system"] for row in tables["rows"][1:]}
        assert json.loads((out / "metrics.json").read_text()) == tables
        for name in ("report.html", "report.md"):
            report = (out / name).read_text()
            assert all(f"{row['ndcg@10']:.3f}" in report for row in tables["rows"])
            assert "zerogr explain" in report and "begins" in report

        errors, verdicts = tables["errors"], [query["error"] for query in queries if query["error"]]
        wrong = [query["query_id"] for query in queries if not query["systems"]["zerogr-greedy"]["acc@1"]]
        assert errors["wrong"] == len(verdicts) == len(wrong) == 40 - errors["right"]
        assert sum(count for name, count in errors.items() if name not in ("right", "wrong")) == errors["wrong"]
        assert {query["query_id"] for query in queries if query["error"]} == set(wrong)

    def test_measures_the_runs_of_others(
        self, tiny_index: str, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        perfect = [f"q{i} Q0 {row['_id']} 1 1 x\n" for i, row in enumerate(tiny.documents())]
        (tmp_path / "perfect.run").write_text("".join(perfect))
        command = ["evaluate", tiny_index, "--dataset", str(collection), "--strategy", "beam", "--baseline"]
        tables = printed([*command, "--run", str(tmp_path / "perfect.run")], capsys)
        assert [row["system"] for row in tables["rows"]] == ["zerogr-beam", "perfect"]
        assert {tables["rows"][1][metric] for metric in ("acc@1", "ndcg@10", "recall@100", "map")} == {1.0}
        assert tables["rows"][1]["ms_per_query"] is None

        assert main([*command, "--run", str(tmp_path / "perfect.run")]) == 0
        shown = capsys.readouterr().out
        assert [line.split()[0] for line in shown.splitlines()[:3]] == ["system", "zerogr-beam", "perfect"]
        names = shown.splitlines()[0].split()
        assert names == ["system", "queries", "Acc@1", "nDCG@10", "Recall@100", "MRR@10", "MAP", "ms/query"]
        assert main([*command, "--run", str(tmp_path / "perfect.run"), "--metric", "err@20", "mrr@10"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["system", "queries", "ERR@20", "MRR@10", "MAP", "ms/query"]
        assert [line.split()[1] for line in lines if line.startswith("  perfect")] == ["err@20", "mrr@10"]
        assert "first hits are not relevant" in shown and re.search(r"p = [01]\.\d{4}  \d+/\d+", shown)

    def test_tables_by_kind_where_there_are_several(
        self, tiny_index: str, collection: Path, capsys: pytest.CaptureFixture[str], copied: str
    ) -> None:
        for shard in (0, 1):
            table = storage.read_parquet(Index(copied).shard("corpus", shard))
            kinds = table.schema.get_field_index("kind")
            table = table.set_column(kinds, "kind", [["code"] * len(table)])
            storage.write_parquet(Index(copied).shard("corpus", shard), table)
        command = ["evaluate", copied, "--dataset", str(collection), "--strategy", "greedy"]
        tables = printed(command, capsys)
        numbers = {kind: [row["num_queries"] for row in rows] for kind, rows in tables["by_kind"].items()}
        assert numbers == {"code": [16, 16], "text": [24, 24]}
        for place in (0, 1):
            means = {kind: rows[place]["ndcg@10"] for kind, rows in tables["by_kind"].items()}
            whole = (16 * means["code"] + 24 * means["text"]) / 40
            assert whole == pytest.approx(tables["rows"][place]["ndcg@10"], abs=1e-4)
        assert main(command) == 0
        assert "\ncode\n" in capsys.readouterr().out

    def test_at_the_end_of_an_index_and_never_twice(
        self, copied: str, config: Path, collection: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes = ["--set", f"index={copied}", "--set", f"evaluation.dataset={collection}"]
        changes += ["--set", "evaluation.strategies=[greedy]", "--set", "evaluation.k=5"]
        assert main(["index", str(config), *changes]) == 0
        assert "zerogr-greedy" in capsys.readouterr().out
        evaluated = files(copied, "evaluation")
        assert set(evaluated) == {
            f"evaluation/{collection.name}/{name}"
            for name in "metrics.json queries.jsonl report.html report.md zerogr-greedy.run bm25.run".split()
        }
        assert main(["index", str(config), *changes]) == 0
        assert files(copied, "evaluation") == evaluated

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("evaluation.strategies=[beam:width=3]", "unknown option of beam 'width'"),
            (
                "evaluation.strategies=[beam:beam_width=5]",
                "the strategy beam+beam_width=5 cannot run: beam_width must be",
            ),
            ("evaluation.baselines=[doc2query]", "queries.num_queries_per_document is 0"),
            ("evaluation.split=dev", "no split 'dev'"),
            ("evaluation.dataset=nowhere", "there is no folder"),
        ],
    )
    def test_mistakes_are_found_before_the_work(
        self, change: str | list[str], message: str, config: Path, collection: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        index = tmp_path / "index"
        changes = [f"index={index}", f"evaluation.dataset={collection}", "queries.num_queries_per_document=0"]
        changes += [change] if isinstance(change, str) else change
        assert main(["index", str(config), *(word for each in changes for word in ("--set", each))]) == 2
        assert message in capsys.readouterr().err
        assert not index.exists()


class TestExplain:
    def test_parts_add_up_to_what_the_search_saw(self, hybrid_index: str, capsys: pytest.CaptureFixture[str]) -> None:
        query = "what about the history of coffee"
        hits = Retriever.load(hybrid_index).search([query], k=40, strategy="best_first", num_leaves=500)[0]
        last = hits[-1]
        how = ["--doc", last.doc_id, "-k", "40", "--strategy", "best_first:num_leaves=500"]
        command = ["explain", hybrid_index, query, *how]
        told = printed(command, capsys)
        assert (told["rank"], told["num_hits"], told["lost_at"]) == (40, 40, None)
        assert told["verdict"] not in ("first", "search", "first_token", "late")
        for name, hit in (("wanted", last), ("first", hits[0])):
            assert {stem(word) for word in hit.docid.split()} <= {stem(each["text"]) for each in told[name]["parts"]}
            assert sum(part["score"] for part in told[name]["parts"]) == pytest.approx(hit.score, rel=1e-3)

        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "rank 40" in shown and told["verdict"] in shown
        best = max(told["first"]["parts"], key=lambda part: part["score"])
        assert re.search(rf" {re.escape(best['text'])} +{best['ranker']} .*{best['score']:.3f}", shown)

    def test_tokens_where_docids_are_written(
        self, config: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        index = str(tmp_path / "index")
        assert main(["index", str(config), "--set", f"index={index}"]) == 0
        capsys.readouterr()
        query = "what about the history of coffee"
        hits = Retriever.load(index).search([query], k=40, strategy="best_first")[0]
        last = hits[-1]
        command = ["explain", index, query, "--doc", last.doc_id, "-k", "40", "--strategy", "best_first:k=40"]
        told = printed(command, capsys)
        assert (told["rank"], told["num_hits"]) == (40, 40) and told["verdict"] not in ("first", "search")
        assert (told["first"]["doc_id"], told["first"]["docid"]) == (hits[0].doc_id, hits[0].docid)
        for name, hit in (("wanted", last), ("first", hits[0])):
            tokens = told[name]["tokens"]
            assert "".join(token["token"] for token in tokens) == f" {hit.docid}<end>"
            assert sum(token["log_prob"] for token in tokens) == pytest.approx(hit.score, abs=1e-2)
            shares = [each["share"] for each in told[name]["pseudo_queries"]]
            assert shares and shares == sorted(shares, reverse=True)
        before = sum(token["log_prob"] for token in told["wanted"]["tokens"][: told["lost_at"]])
        assert before >= hits[0].score > before + told["wanted"]["tokens"][told["lost_at"]]["log_prob"] - 1e-2

        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "<- lost here" in shown and "rank 40" in shown and told["verdict"] in shown

    def test_the_first_hit_lost_nothing(self, tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
        query = "what about the history of coffee"
        first = Retriever.load(tiny_index).search([query], k=100)[0][0]  # a beam of 100, as explain's
        told = printed(["explain", tiny_index, query, "--doc", first.doc_id], capsys)
        assert (told["verdict"], told["rank"], told["lost_at"]) == ("first", 1, None)

    def test_unknown_document(self, tiny_index: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", tiny_index, "coffee", "--doc", "tea-7"]) == 2
        assert "the index holds no document 'tea-7'" in capsys.readouterr().err


class TestAblate:
    @pytest.fixture
    def plan(self, tmp_path: Path, config: Path, collection: Path) -> Path:
        tree = yaml.safe_load(config.read_text())
        tree["evaluation"] = {"dataset": str(collection), "strategies": ["beam"], "k": 40}
        tree["training"]["num_epochs"] = 1
        tree["ablation"] = {
            "out": str(tmp_path / "out"),
            "grids": [{"docids.scheme": ["keywords", "random"]}, {"training.learning_rate": [1e-3], "seed": [0]}],
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "plan.yaml"

    def test_measures_every_variant_and_makes_shared_stages_once(
        self, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = printed(["ablate", str(plan)], capsys)["rows"]
        names = ["base", "docids.scheme=random", "training.learning_rate=0.001"]
        assert [(row["variant"], row["system"]) for row in rows] == [
            (name, system) for name in names for system in ("zerogr-beam", "bm25")
        ]
        assert [json.loads(row["changes"]) for row in rows[::2]] == [
            {}, {"docids.scheme": "random"}, {"training.learning_rate": 0.001},
        ]  # fmt: skip
        assert pq.read_table(tmp_path / "out" / "results.parquet").to_pylist() == rows
        assert all(names[1] in (tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
        for row in rows:
            base = next(each for each in rows if each["system"] == row["system"])
            assert row["ndcg@10 - base"] == pytest.approx(row["ndcg@10"] - base["ndcg@10"], abs=1e-4)
        assert {row["p of ndcg@10"] for row in rows if row["system"] == "bm25"} == {1.0}  # it knows nothing of docids

        base, random, slow = (Index(str(tmp_path / "out" / "indexes" / name)) for name in names)
        for other, shared in ((random, ("corpus", "queries")), (slow, ("corpus", "docids", "queries", "trie"))):
            for stage in ("corpus", "docids", "queries", "trie", "retriever"):
                assert (other.record(stage) == base.record(stage)) == (stage in shared), stage
            for stage in shared:
                assert contents_of(other.uri, stage) == contents_of(base.uri, stage)

        before = files(str(tmp_path / "out"), "indexes")
        assert printed(["ablate", str(plan)], capsys)["rows"] == rows
        assert files(str(tmp_path / "out"), "indexes") == before
        assert main(["ablate", str(plan)]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
            row["variant"] for row in rows
        ]

    @pytest.mark.slow
    def test_low_resource_curve(
        self, plan: Path, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = yaml.safe_load(plan.read_text())
        tree["training"] |= {"judged": str(collection), "judged_split": "test"}
        tree["evaluation"]["metrics"] = ["hits@10"]
        tree["ablation"]["grids"] = [{"training.judged_share": [0, 0.1, 1.0]}]
        plan.write_text(yaml.safe_dump(tree))
        rows = [row for row in printed(["ablate", str(plan)], capsys)["rows"] if row["system"] == "zerogr-beam"]
        assert [(row["variant"], row["training.judged_share"]) for row in rows] == [
            ("base", 1.0), ("training.judged_share=0", 0), ("training.judged_share=0.1", 0.1),
        ]  # fmt: skip
        assert all("p of hits@10" in row and "p of ndcg@10" in row for row in rows)
        out = tmp_path / "out"
        every, none, few = (Index(str(out / "indexes" / row["variant"])).require("retriever") for row in rows)
        learnt = [stage.counts["examples"] + stage.counts["held_out"] for stage in (every, none, few)]
        assert learnt == [learnt[1] + 40, learnt[1], learnt[1] + 4]
        assert "training.judged" not in none.inputs and few.inputs["training.judged"] != every.inputs["training.judged"]
        assert "From 0 to 100 per cent of the judged queries" in (out / "report.md").read_text()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("ablation.grids=[]", "ablation.grids is empty"),
            ("evaluation.dataset=null", "an ablation needs judged queries"),
            ("ablation.grids=[{instruction: [a b, a_b]}]", "two variants of ablation.grids would both be named"),
            ("ablation.grids=[{decoding.k: []}]", "gives 'decoding.k' no value"),
            ("ablation.grids=[{compute.max_retries: [1]}]", "'compute.max_retries', which makes no other index"),
            ("ablation.grids=[{docids.max_word: [4]}]", "did you mean 'docids.max_words'"),
            ("ablation.grids=[{docids.scheme: [titel]}]", "docids.scheme is 'titel'"),
            ("ablation.grids=[{training.judged_share: [0.1]}]", "judged names no folder whose share it could be"),
        ],
    )
    def test_mistakes_cost_nothing(
        self, plan: Path, tmp_path: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["ablate", str(plan), "--set", change]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestReuse:
    """Stages taken over from another index must be what this one would have made."""

    def test_what_has_other_inputs_is_made_anew(
        self, tiny_index: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        index = str(tmp_path / "index")
        command = [str(config), "--set", f"index={index}", "--set", f"compute.reuse=[{tiny_index}]", "--set", "seed=9"]
        assert main(["corpus", *command]) == 0
        assert main(["queries", *command]) == 0
        assert Index(index).record("corpus") == Index(tiny_index).record("corpus")
        assert contents_of(index, "corpus") == contents_of(tiny_index, "corpus")
        assert Index(index).require("queries").inputs["seed"] == 9
        assert contents_of(index, "queries") != contents_of(tiny_index, "queries")

    def test_what_is_begun_is_gone_on_with(self, tiny_index: str, tmp_path: Path) -> None:
        donor, index = Index(tiny_index), Index(str(tmp_path / "index"))
        inputs = donor.require("corpus").inputs
        assert index.begin("corpus", inputs)
        assert not index.adopt("corpus", inputs, donor, config={})
        assert index.record("corpus") is None
