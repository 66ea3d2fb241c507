"""A plan is held against what was recorded: figures of the documentation, copied with their source, never timed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zerogr.config.file import load_config, validate_config
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.tree import Config
from zerogr.cost.against import WITHIN, Comparison, compare
from zerogr.cost.estimate import Models, StageCost, estimate
from zerogr.cost.machines import GPUS, Machines
from zerogr.cost.plan import Plan, Prices, make_plan
from zerogr.cost.rates import CORES, RATES, ZEROGR_WEEKS
from zerogr.cost.shapes import SHAPES, shape_of
from zerogr.cost.texts import Texts, assumed_texts, sampled_texts
from zerogr.cost.work import Learning, Writing, work_of
from zerogr.errors import UserError
from zerogr.index.index import Index

ROOT = Path(__file__).parents[2]
TINY = SHAPES[EMBEDDED_MODEL]
LAPTOP = Machines.of("none", "avx2", 1)


def texts_of(num_documents: int = 1000, **changes: Any) -> Texts:
    """Returns the demo's documents, or others."""
    demo: dict[str, Any] = {
        "document_bytes": 2826,
        "document_words": 399,
        "spans_per_document": 24,
        "span_bytes": 40,
        "compression": 0.4,
        "source": "a test",
    }
    return Texts(num_documents=num_documents, **(demo | changes))


def plan_of(config: Config, texts: Texts, machines: Machines, **options: Any) -> Plan:
    return make_plan(config, texts, machines, prices=options.pop("prices", Prices()), **options)


class Recorded(NamedTuple):
    """A run of the past: what it took, and where that stands."""

    predicted: float
    seconds: float
    source: str


EPYC = "benchmarks/results/pipeline-epyc.md, commit 6876e370e470"
XEON = "benchmarks/results/pipeline-xeon.md, commit 33f858d81aff"
SLOWER = "benchmarks/results/pipeline.md, commit 9aeb424eefe1"


def pipeline(num_documents: int, source: str, **seconds: float) -> list[Recorded]:
    """Many documents without a language model. The rates are those of a million on the first Xeon."""
    config = validate_config(
        {"docids": {"scheme": "tfidf"}, "queries": {"num_queries_per_document": 0, "num_spans_per_document": 4}}
    )
    texts = texts_of(num_documents, document_words=66, spans_per_document=4)
    costs = estimate(config, texts, LAPTOP, Models(docids=None, queries=None, retriever=TINY))
    return [Recorded(cost.seconds or 0, seconds[cost.stage], source) for cost in costs if cost.stage in seconds]


def demo(
    words: list[int], spans: int, span_bytes: float, questions: int, document_words: int, seconds: float
) -> Recorded:
    """The demo in one of its settings, with AVX2 alone; wall time of all stages."""
    config = load_config(
        str(ROOT / "examples" / "pystdlib" / "demo.yaml"),
        [
            f"queries.span_words={words}",
            f"queries.num_spans_per_document={spans}",
            f"queries.num_queries_per_document={questions}",
            f"docids.document_words={document_words}",
        ],
    )
    texts = texts_of(125, spans_per_document=spans, span_bytes=span_bytes)
    costs = estimate(config, texts, LAPTOP, Models(docids=TINY, queries=TINY, retriever=TINY))
    return Recorded(
        sum(cost.seconds or 0 for cost in costs), seconds, "docs/log.md, 2026-11-28, the demo in the paper's way"
    )


def step(model: str, pairs: int, milliseconds: float) -> Recorded:
    """An optimiser step on an H200, of pairs of 28.4 tokens."""
    learning = Learning(pairs=pairs, steps=1, pair_tokens=28.4, model_tokens=17, stored_pairs=pairs)
    found = Machines.of("h200", "avx2", 1).training_s(learning, pairs, SIZES_OF[model], is_lora=False)
    return Recorded(found.value, milliseconds / 1000, "docs/gpu.md, commit d174075")


SIZES_OF = {"135M": TINY, "1B": SHAPES["meta-llama/Llama-3.2-1B-Instruct"]}


def scifact_on_gpu() -> list[Recorded]:
    """SciFact whole on an H200: 48 spans and 4.9 questions, steps of 1,024."""
    learning = Learning(pairs=273_103, steps=267, pair_tokens=43, model_tokens=27, stored_pairs=278_000)
    machines = Machines.of("h200", "avx2", 1)
    training = machines.training_s(learning, 1024, TINY, is_lora=False)
    writing = Writing(prompt_tokens=5_183 * 268, new_tokens=41_464 * 15, longest=283)
    source = "docs/gpu.md, commit d174075"
    return [
        Recorded(training.value, 86, source),
        Recorded(machines.writing_s(writing, TINY).value, 135, source),
    ]


RECORDED = [
    *pipeline(1_000_000, EPYC, corpus=44.5, docids=96.2, queries=65.5, trie=12.2),
    *pipeline(10_000_000, EPYC, corpus=435.9, docids=1044.8, queries=723.7, trie=134.1),
    *pipeline(1_000_000, XEON, corpus=47.4, docids=103.5, queries=77.4, trie=14.1),
    *pipeline(10_000_000, XEON, corpus=471.3, docids=1086.8, queries=817.1, trie=140.2),
    *pipeline(1_000_000, SLOWER, corpus=61.7, docids=111.8, queries=86.6, trie=15.4),
    *pipeline(10_000_000, SLOWER, corpus=611.2, docids=1184.4, queries=947.0, trie=151.3),
    demo([6, 24], 16, 60, 2, 128, 7 * 60 + 14),
    demo([6, 24], 24, 60, 2, 128, 9 * 60 + 2),
    demo([3, 12], 32, 40, 2, 128, 10 * 60 + 40),
    demo([3, 12], 24, 40, 6, 48, 10 * 60 + 39),
    step("135M", 256, 169),
    step("135M", 1024, 224),
    step("1B", 256, 185),
    step("1B", 1024, 480),
    *scifact_on_gpu(),
]


@pytest.mark.parametrize("run", RECORDED, ids=lambda run: f"{run.seconds:.3g} s")
def test_recorded_runs_are_predicted_within_a_quarter(run: Recorded) -> None:
    assert run.predicted == pytest.approx(run.seconds, rel=WITHIN), run.source


def test_the_authors_two_weeks_have_the_right_size() -> None:
    """No check of ours: how much of MAIR their two weeks cover is not known, and their program is another."""
    config = load_config(str(ROOT / "examples" / "models" / "llama-3.2-3b.yaml"))
    plan = plan_of(config, assumed_texts(config, 4_274_916, 1500), Machines.of("a800", "avx2", 8))
    weeks = plan.total.seconds / (7 * 86_400)
    assert ZEROGR_WEEKS.value / 2 < weeks < 2 * ZEROGR_WEEKS.value


class TestShapes:
    @pytest.mark.parametrize(
        ("size", "millions"), [("135M", 134.5), ("1B", 1235.8), ("1.5B", 1543.5), ("3B", 3212.5), ("7B", 7615.3)]
    )
    def test_known_models_have_their_published_parameters(self, size: str, millions: float) -> None:
        assert shape_of(size, "--model").parameters / 1e6 == pytest.approx(millions, rel=1e-3)

    def test_a_folder_tells_its_shape(self, tmp_path: Path) -> None:
        shape = {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "vocab_size": 10,
        }
        (tmp_path / "config.json").write_text(json.dumps(shape))
        found = shape_of(str(tmp_path), "--model")
        assert found == (8, 2, 16, 2, 2, 10, 4, False)
        assert found.parameters == 2 * (2 * 8 * 4 * 4 + 3 * 8 * 16) + 2 * 80

    @pytest.mark.parametrize("broken", ["{}", "[]", "no json"])
    def test_an_unknown_model_is_refused_with_what_to_give(self, tmp_path: Path, broken: str) -> None:
        (tmp_path / "config.json").write_text(broken)
        for model in (str(tmp_path), "somebody/70B"):
            with pytest.raises(UserError, match=r"is not known; give .* --generator with one of 135M, 1B"):
                shape_of(model, "--generator")


class TestWork:
    def test_work_grows_with_documents_queries_and_epochs(self) -> None:
        config = load_config(str(ROOT / "examples" / "paper.yaml"))
        once, twice = (work_of(config, texts_of(count), row_tokens=1024) for count in (100_000, 200_000))
        assert once.queries and twice.queries and once.docids and twice.docids
        assert twice.queries.new_tokens == pytest.approx(2 * once.queries.new_tokens)
        assert once.docids.new_tokens == pytest.approx(100_000 * 4 * 12.6)
        assert once.learning.pairs == pytest.approx(5 * (100_000 * (24 + 16) - 1000))
        assert twice.learning.steps == pytest.approx(2 * once.learning.steps, rel=1e-3)

    def test_without_queries_and_models_nothing_is_written(self) -> None:
        config = validate_config({"docids": {"scheme": "tfidf"}, "queries": {"num_queries_per_document": 0}})
        work = work_of(config, texts_of(), row_tokens=256)
        assert work.docids is None and work.queries is None and work.kept_queries == 0

    def test_whole_docids_are_more_tokens_than_their_open_part(self) -> None:
        allowed, whole = (
            work_of(validate_config({"training": {"normalise": normalise}}), texts_of(), row_tokens=256).learning
            for normalise in ("allowed", "vocabulary")
        )
        assert whole.pair_tokens - allowed.pair_tokens == pytest.approx(13.4 - 2.3)
        assert whole.model_tokens > allowed.model_tokens

    def test_a_short_document_is_read_to_its_end(self) -> None:
        assert texts_of(document_bytes=70, document_words=10).excerpt_bytes(128) == 70
        assert texts_of(document_bytes=700, document_words=100).excerpt_bytes(10) == 70


class TestPlan:
    def test_a_query_more_costs_what_a_plan_with_one_more_does(self) -> None:
        config = load_config(str(ROOT / "examples" / "paper.yaml"))
        more = load_config(str(ROOT / "examples" / "paper.yaml"), ["queries.num_queries_per_document=17"])
        texts, machines = texts_of(), Machines.of("h200", "avx2", 2)
        one, other = (plan_of(each, texts, machines) for each in (config, more))
        assert one.one_query_more.gpu_hours == pytest.approx(other.total.gpu_hours - one.total.gpu_hours)
        assert one.one_query_more.gpu_hours > 0

    def test_larger_retrievers_cost_more_and_are_extrapolated(self) -> None:
        config = load_config(str(ROOT / "examples" / "paper.yaml"))
        plans = [plan_of(config, texts_of(), Machines.of("h200", "avx2", 1), model=size) for size in ("1B", "3B", "7B")]
        hours = [plan.total.gpu_hours for plan in plans]
        assert hours == sorted(hours) and hours[0] < hours[2]
        assert [plan.stages[-1].basis for plan in plans] == ["fitted", "extrapolated", "extrapolated"]

    def test_more_nodes_are_faster_and_cost_no_less(self) -> None:
        config = load_config(str(ROOT / "examples" / "paper.yaml"))
        one, eight = (plan_of(config, texts_of(), Machines.of("h200", "avx2", nodes)) for nodes in (1, 8))
        assert eight.total.seconds < one.total.seconds
        assert eight.total.gpu_hours >= one.total.gpu_hours

    def test_what_was_not_measured_is_not_priced(self) -> None:
        config = validate_config({"docids": {"scheme": "tfidf"}, "evaluation": {"dataset": "somewhere"}})
        costs = {cost.stage: cost for cost in plan_of(config, texts_of(), LAPTOP).stages}
        assert costs["evaluation"] == StageCost(stage="evaluation", basis="not known", formula="nobody has measured it")
        assert costs["trie"].basis == "measured"

    def test_dollars_are_the_users(self) -> None:
        assert Prices().of(3, 4) is None
        assert Prices(gpu_hour=2).of(3, 0) == 6
        assert Prices(gpu_hour=2).of(3, 4) is None  # the cores' price was not said
        assert Prices(gpu_hour=2, cpu_hour=0.5).of(3, 4) == 8

    @pytest.mark.parametrize("gpu", GPUS)
    def test_every_gpu_has_a_plan(self, gpu: str) -> None:
        config = load_config(str(ROOT / "examples" / "paper.yaml"))
        plan = plan_of(config, texts_of(), Machines.of(gpu, "avx2", 1))
        assert plan.total.gpu_hours > 0
        assert (plan.stages[-1].basis == "fitted") == (gpu == "h200")

    def test_unknown_hardware_is_refused(self) -> None:
        with pytest.raises(UserError, match="--gpu is tpu; there are rates for none, h200"):
            Machines.of("tpu", "avx2", 1)
        with pytest.raises(UserError, match="--cpu is arm; there are rates for avx2, bf16, amx"):
            Machines.of("none", "arm", 1)

    def test_every_rate_says_where_it_is_from(self) -> None:
        for name, rate in RATES.items():
            assert rate.value > 0 and rate.unit and rate.hardware, name
            assert rate.basis == "assumed" or any(
                mark in rate.source for mark in (".md", ".py", "github.com", "commit")
            ), name


class TestTexts:
    def test_a_corpus_is_measured(self, tmp_path: Path) -> None:
        text = "a wing in the slipstream of a propeller lifts more than one in still air"
        rows = [{"_id": str(number), "title": f"wing {number % 10}", "text": text} for number in range(30)]
        (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = validate_config({"corpus": {"source": str(tmp_path)}, "queries": {"num_spans_per_document": 4}})
        found = sampled_texts(config, None)
        assert found.num_documents == 30
        assert found.document_bytes == len("wing 1\n" + text)
        assert found.document_words == 17
        assert found.spans_per_document == 4 and 0 < found.span_bytes < found.document_bytes
        assert 0 < found.compression < 1
        assert sampled_texts(config, 5_000_000).num_documents == 5_000_000

    def test_an_empty_corpus_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "corpus.jsonl").write_text("no json\n")
        config = validate_config({"corpus": {"source": str(tmp_path)}})
        with pytest.raises(UserError, match="has no usable document; give --document-bytes"):
            sampled_texts(config, None)

    def test_a_large_corpus_is_not_counted(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps({"_id": str(number), "text": "wing"}) + "\n" for number in range(10_001))
        (tmp_path / "corpus.jsonl").write_text(lines)
        config = validate_config({"corpus": {"source": str(tmp_path)}})
        with pytest.raises(UserError, match="more than 10,000 documents.*--documents"):
            sampled_texts(config, None)


class TestAgainst:
    def test_errors_are_relative_to_what_was_recorded(self) -> None:
        assert Comparison("trie", 12, 10).error == pytest.approx(0.2)
        assert Comparison("trie", 12, 10).is_within is True
        assert Comparison("trie", 13, 10).is_within is False
        assert Comparison("trie", None, 10).is_within is None
        assert Comparison("trie", 10, 0.0).error is None

    def test_stages_of_the_manifest_are_compared(self, tmp_path: Path) -> None:
        index = Index(str(tmp_path))
        index.finish("corpus", {}, config={}, counts={"rows": 10}, seconds=2.0)
        index.finish("docids", {}, config={}, counts={}, seconds=2.0, effort={"seconds": 5.0})
        costs = [
            StageCost(stage=name, basis="measured", formula="", seconds=seconds)
            for name, seconds in (("corpus", 1.0), ("docids", 5.5), ("trie", 1.0))
        ]
        corpus, docids, together = compare(costs, str(tmp_path))
        assert corpus == ("corpus", 1.0, 2.0)
        assert docids == ("docids", 5.5, 5.0)  # interrupted once: all runs count
        assert together == ("together", 6.5, 7.0)

    def test_an_index_without_stages_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no finished stage to compare with"):
            compare([], str(tmp_path))


def test_cores_are_slower_without_instructions_for_bf16() -> None:
    assert CORES["avx2"].training.value < CORES["bf16"].training.value
