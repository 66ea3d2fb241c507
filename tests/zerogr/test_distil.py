"""Teacher data. What is wrong here is learned: a mended docid, another prompt than the generator's, a row of the wrong task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, load_frequency
from zerogr.docids import prompts as docid_prompts
from zerogr.docids.rules import Terms, validate
from zerogr.docids.schemes.keywords import keywords_of, limits_of
from zerogr.docids.stage import DocidProposer
from zerogr.errors import StageRefused, UserError
from zerogr.index.index import Index, fingerprint
from zerogr.llm import prompts
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.fake import FakeEngine
from zerogr.queries.stage import QueryWriter
from zerogr.store import storage
from zerogr.teaching.distil import (
    Distiller,
    build_corpora,
    distil_counts,
    distil_inputs,
    pending_shards,
    shards_of,
    tasks_of,
)
from zerogr.text.words import words

BREAD = "Sourdough bread needs flour, water and salt; the starter ferments the dough and the oven bakes the crust."
BOAT = "A sailing boat has a keel, a mast, a rudder and a jib; the anchor holds it in the harbour against the tide."
BREAD_ROWS = [{"_id": f"d{i}", "title": f"Recipe {i}", "text": f"{BREAD} Number {i}."} for i in range(5)]
BOAT_ROWS = [{"_id": f"d{i}", "title": "", "text": f"{BOAT} Number {i}."} for i in range(3)]

DOCIDS = [
    " sourdough, bread, flour, starter, dough, oven",
    "Sourdough Bread Flour Starter Dough Oven",  # the same, in other letters
    "crust oven dough starter salt water flour",
    "bread flour",
    "sourdough bread with the flour and the water in the oven",
    "sourdough bread flour starter dough spaceship",
]
QUERIES = [
    " how does a starter ferment dough?",
    "2. How does a STARTER ferment dough",  # the same, with a label
    "how hot is the oven for bread crust",
    "which planets have rings",
    "what does this document say about dough",
]


class Scripted:
    """An engine that gives every prompt the same answers, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, docids: list[str] = DOCIDS, queries: list[str] = QUERIES) -> None:
        self.asked: list[Prompt] = []
        self.sampling: list[Sampling] = []
        self._answers = {docid_prompts.DOCID_PREFILL["brief"]: docids, prompts.QUERY_PREFILL: queries}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        self.asked += prompts
        self.sampling.append(sampling)
        return [
            Generation(texts=[], error="ValueError: no")
            if "<<fail>>" in prompt.user
            else Generation(texts=list(self._answers[prompt.prefill]), num_prompt_tokens=7, num_output_tokens=11)
            for prompt in prompts
        ]


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """Returns a function that makes the configuration of two tasks over two corpora whose documents have the same keys."""

    def configured(bread: Sequence[dict[str, Any]] = BREAD_ROWS, **distil: Any) -> Config:
        tasks = [
            {"name": "bread", "source": _write(tmp_path / "bread.jsonl", bread), "instruction": "Find the recipe."},
            {"name": "boats", "source": _write(tmp_path / "boats.jsonl", BOAT_ROWS), "instruction": "Find the boat."},
        ]
        out = str(tmp_path / "teacher")
        return validate_config({"distil": {"engine": "fake", "out": out, "tasks": tasks, "shard_size": 2, **distil}})

    return configured


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _distil(config: Config, engine: Any, shards: Sequence[int] | None = None) -> Index:
    build_corpora(config)
    for number in pending_shards(config) if shards is None else shards:
        Distiller(config, engine)(number)
    return Index(config.distil.out)


def _rows(index: Index, folder: str) -> list[dict[str, Any]]:
    return [
        row
        for name in storage.list_files(index.path(folder))
        for row in storage.read_parquet(index.path(folder, name)).to_pylist()
    ]


class TestPairs:
    def test_only_what_obeys_the_rules_unmended(self, configured: Callable[..., Config]) -> None:
        config = configured()
        index = _distil(config, Scripted())
        docids = [row for row in _rows(index, "docids") if row["task"] == "bread"]
        assert [(row["doc_id"], row["completion"]) for row in docids] == [
            (f"d{i}", docid)
            for i in range(5)
            for docid in (
                "sourdough bread flour starter dough oven",
                "crust oven dough starter salt water flour",
            )
        ]
        said = {" ".join(words(text)) for text in DOCIDS}
        assert {row["completion"] for row in docids} <= said
        frequency = load_frequency(tasks_of(config)[0].corpus)
        for row in docids:
            document = BREAD_ROWS[int(row["doc_id"][1:])]
            terms = Terms.of(document["title"], document["text"], frequency)
            assert validate(row["completion"].split(" "), terms, limits_of(keywords_of(config)), frequency) == []

    def test_cleaned_queries_each_once(self, configured: Callable[..., Config]) -> None:
        index = _distil(configured(), Scripted())
        queries = [row for row in _rows(index, "queries") if row["task"] == "bread"]
        assert [(row["doc_id"], row["completion"]) for row in queries] == [
            (f"d{i}", query)
            for i in range(5)
            for query in ("how does a starter ferment dough?", "how hot is the oven for bread crust")
        ]
        assert {row["instruction"] for row in queries} == {"Find the recipe."}

    def test_every_sample_is_kept_repeated_or_rejected(self, configured: Callable[..., Config]) -> None:
        index = _distil(configured(), Scripted())
        rejected = [row for row in _rows(index, "rejected") if row["task"] == "bread"]
        reasons = {doc_id: [] for doc_id in ("d0", "d1", "d2", "d3", "d4")}
        for row in rejected:
            reasons[row["doc_id"]].append((row["stage"], row["reason"]))
        # Six proposals: two kept, one of them twice. Five queries: two kept, one of them twice.
        assert (
            list(reasons.values())
            == [
                [
                    ("docids", "too_few_words+too_few_core_terms"),
                    ("docids", "too_many_words+repeated_word+function_word+too_many_foreign_words+unknown_word"),
                    ("docids", "too_many_foreign_words+unknown_word"),
                    ("queries", "off_topic"),
                    ("queries", "prompt_echo"),
                ]
            ]
            * 5
        )
        details = [row["detail"] for row in rejected if row["doc_id"] == "d0"]
        assert details[0] == "the teacher wrote 'bread flour'"
        assert details[3] == "the teacher wrote 'which planets have rings'"

    def test_documents_without_a_pair_are_rejected_by_name(self, configured: Callable[..., Config]) -> None:
        rows = [*BREAD_ROWS, {"_id": "mute", "text": "— … —"}, {"_id": "bad", "text": "bread <<fail>> bread"}]
        config = configured(rows)
        index = _distil(config, Scripted())
        boats = {(row["task"], row["doc_id"]) for row in _rows(index, "rejected") if row["stage"] == "docids"}
        assert {("boats", f"d{i}") for i in range(3)} <= boats  # nothing of what was said is about boats
        assert {row["task"] for row in _rows(index, "docids")} == {"bread"}
        for stage in ("docids", "queries"):
            seen = {(row["task"], row["doc_id"]) for row in _rows(index, stage)}
            seen |= {(row["task"], row["doc_id"]) for row in _rows(index, "rejected") if row["stage"] == stage}
            assert seen == {("bread", row["_id"]) for row in rows} | {("boats", row["_id"]) for row in BOAT_ROWS}
        of = {(row["doc_id"], row["stage"]): row for row in _rows(index, "rejected") if row["task"] == "bread"}
        assert of["mute", "docids"]["reason"] == "no_words"
        assert of["bad", "docids"]["reason"] == of["bad", "queries"]["reason"] == "engine_error"
        assert of["bad", "queries"]["detail"] == "ValueError: no"


class TestPrompts:
    def test_are_the_generators_own(self, configured: Callable[..., Config], tmp_path: Path) -> None:
        """Another prompt, and the fine-tuned model is asked what it was not taught."""
        config, teacher, generators = configured(), Scripted(), Scripted()
        index = _distil(config, teacher)
        for task in tasks_of(config):
            changes = {"index": str(tmp_path / f"index-{task.name}"), "instruction": task.instruction}
            own = config.model_copy(update={"corpus": task.config.corpus, **changes})
            place = Index(own.index)
            build_corpus(own, place)
            for shard in place.pending_shards("queries"):
                for stage in (DocidProposer, QueryWriter):
                    stage(own, place, generators)(shard)
        asked = {(prompt.user, prompt.prefill) for prompt in generators.asked}
        assert len(asked) == 16
        assert {(prompt.user, prompt.prefill) for prompt in teacher.asked} == asked
        stored = {(row["prompt"], row["prefill"]) for folder in ("docids", "queries") for row in _rows(index, folder)}
        assert stored < asked
        assert all(f"Task: {row['instruction']}\n" in row["prompt"] for row in _rows(index, "queries"))

    def test_seeds_belong_to_task_document_question_and_sample(self, configured: Callable[..., Config]) -> None:
        config = configured(candidates=3, num_queries_per_document=5)
        engine = Scripted()
        _distil(config, engine)
        counts = {docid_prompts.DOCID_PREFILL["brief"]: 3, prompts.QUERY_PREFILL: 5}
        assert all(len(prompt.seeds) == counts[prompt.prefill] for prompt in engine.asked)
        seeds = [seed for prompt in engine.asked for seed in prompt.seeds]
        assert len(set(seeds)) == len(seeds) == 8 * (3 + 5)

    def test_sampling_is_as_configured(self, configured: Callable[..., Config]) -> None:
        engine = Scripted()
        _distil(configured(temperature=0.9, top_p=0.8, max_tokens=50), engine, [0])
        docids, queries = engine.sampling
        assert docids == Sampling(max_tokens=50, temperature=0.9, top_p=0.8)
        assert queries == Sampling(max_tokens=50, temperature=0.9, top_p=0.8, stop=("\n",))


class TestShards:
    def test_are_those_of_all_tasks_numbered_through(self, configured: Callable[..., Config]) -> None:
        config = configured()
        build_corpora(config)
        assert [(task.name, shard) for task, shard in shards_of(config)] == [
            ("bread", 0), ("bread", 1), ("bread", 2), ("boats", 0), ("boats", 1),
        ]  # fmt: skip
        assert pending_shards(config) == {0: 2, 1: 2, 2: 1, 3: 2, 4: 1}
        index = _distil(config, FakeEngine(), [1, 3])
        assert pending_shards(config) == {0: 2, 2: 1, 4: 1}
        assert {row["task"] for row in storage.read_parquet(index.shard("queries", 3)).to_pylist()} <= {"boats"}

    @pytest.mark.parametrize("folder", ["docids", "queries"])
    def test_one_without_both_files_is_not_finished(self, configured: Callable[..., Config], folder: str) -> None:
        config = configured()
        index = _distil(config, FakeEngine())
        assert pending_shards(config) == {}
        storage.delete(index.shard(folder, 2))
        assert pending_shards(config) == {2: 1}
        engine = Scripted()
        assert [Distiller(config, engine)(number) is None for number in (1, 2, 3)] == [True, False, True]
        assert len(engine.asked) == 2  # of the one document of shard 2
        assert pending_shards(config) == {}

    def test_a_document_gets_the_same_pairs_in_any_shard(self, configured: Callable[..., Config]) -> None:
        def made(rows: list[dict[str, Any]], **distil: Any) -> list[str]:
            config = configured(rows, **distil)
            index = _distil(config, FakeEngine())
            folders = ("docids", "queries", "rejected")
            return sorted(json.dumps(row) for folder in folders for row in _rows(index, folder))

        forwards = made(BREAD_ROWS)
        Index(configured().distil.out).rebuild("distil")
        assert made(BREAD_ROWS[::-1], shard_size=3) == forwards

    def test_several_at_once_are_what_they_are_one_by_one(self, configured: Callable[..., Config]) -> None:
        """An actor may work on shards of different tasks in several threads."""
        config = configured()
        index = _distil(config, Scripted())
        one_by_one = {folder: _rows(index, folder) for folder in ("docids", "queries", "rejected")}
        index.rebuild("distil")
        with ThreadPoolExecutor(5) as threads:
            assert len(list(threads.map(Distiller(config, Scripted()), range(5)))) == 5
        assert {folder: _rows(index, folder) for folder in one_by_one} == one_by_one

    def test_counts_are_those_of_all_shards(self, configured: Callable[..., Config]) -> None:
        config = configured([*BREAD_ROWS, {"_id": "bad", "text": "bread <<fail>> bread"}])
        index = _distil(config, Scripted())
        assert distil_counts(config, index) == {
            "rows": 8,
            "rejected": 1,
            "docids": 10,
            "queries": 10,
            "valid_docids": round(5 * 3 / (8 * 6), 4),
            "valid_queries": round(5 * 3 / (8 * 5), 4),
            "prompt_tokens": 8 * 2 * 7,
            "output_tokens": 8 * 2 * 11,
            "tasks": {
                "bread": {"documents": 6, "docids": 10, "queries": 10},
                "boats": {"documents": 3, "docids": 0, "queries": 0},
            },
            "rejected_by": {
                "engine_error": 2,
                "function_word": 8,
                "repeated_word": 8,
                "too_few_core_terms": 5 + 3 * 5,
                "too_few_words": 8,
                "too_many_foreign_words": 5 * 2 + 3 * 6,
                "too_many_words": 8,
                "unknown_word": 5 * 2 + 3 * 6,
                "off_topic": 5 * 1 + 3 * 4,
                "prompt_echo": 5 + 3,
            },
        }


class TestTasks:
    def test_without_any_the_configurations_own_corpus_is_one(self, tmp_path: Path) -> None:
        source = _write(tmp_path / "bread.jsonl", BREAD_ROWS)
        corpus = {"source": source, "max_documents": 3, "shard_size": 99}
        distil = {"out": str(tmp_path / "teacher"), "shard_size": 2}
        config = validate_config({"instruction": "Find it.", "corpus": corpus, "distil": distil})
        (task,) = tasks_of(config)
        assert (task.name, task.instruction) == ("corpus", "Find it.")
        assert task.config.corpus == config.corpus.model_copy(update={"shard_size": 2})
        index = _distil(config, Scripted())
        assert len({row["doc_id"] for row in _rows(index, "docids")}) == 3
        assert {row["instruction"] for row in _rows(index, "queries")} == {"Find it."}

    def test_each_is_read_its_own_way(self, tmp_path: Path) -> None:
        rows = [{"key": i, "name": f"Recipe {i}", "body": BREAD} for i in range(6)]
        task = {"name": "bread", "source": _write(tmp_path / "rows.jsonl", rows), "instruction": "Find it."}
        columns = {"doc_id_column": "key", "title_column": "name", "text_column": "body", "max_documents": 4}
        distil = {"out": str(tmp_path / "teacher"), "tasks": [{**task, **columns}]}
        config = validate_config({"distil": distil})
        index = _distil(config, Scripted())
        assert len({row["doc_id"] for row in _rows(index, "docids")}) == 4
        # The sample is a function of the seed.
        other = config.model_copy(
            update={"seed": 1, "distil": config.distil.model_copy(update={"out": f"{tmp_path}/o"})}
        )
        assert {row["doc_id"] for row in _rows(_distil(other, Scripted()), "docids")} != {
            row["doc_id"] for row in _rows(index, "docids")
        }

    def test_a_mistake_in_a_corpus_names_the_task(self, configured: Callable[..., Config], tmp_path: Path) -> None:
        config = configured([{"_id": "", "text": "bread"}])
        with pytest.raises(
            UserError, match="^task 'bread': .*bread.jsonl' has no usable document; 1 rows were rejected"
        ):
            build_corpora(config)
        (tmp_path / "bread.jsonl").unlink()
        with pytest.raises(UserError, match="^task 'bread': .*bread.jsonl' has no jsonl file to read"):
            distil_inputs(config)

    def test_too_many_rejected_rows_of_a_corpus(self, configured: Callable[..., Config]) -> None:
        config = configured([*BREAD_ROWS, {"_id": "", "text": "bread"}])
        with pytest.raises(UserError, match="^task 'bread': 1 of 6 rows of its corpus were rejected") as caught:
            build_corpora(config)
        assert "max_rejected_fraction = 0.1" in str(caught.value)
        compute = config.compute.model_copy(update={"max_rejected_fraction": 0.2})
        build_corpora(config.model_copy(update={"compute": compute}))
        assert len(pending_shards(config)) == 5

    def test_a_corpus_left_by_another_attempt_is_read_again(self, configured: Callable[..., Config]) -> None:
        build_corpora(configured(BREAD_ROWS[:2]))
        config = configured(BREAD_ROWS)
        build_corpora(config)
        assert sum(pending_shards(config).values()) == 8


class TestFingerprint:
    CHANGES: dict[str, tuple[str, Any]] = {
        "seed": ("seed", 7),
        "temperature": ("distil.temperature", 1.1),
        "candidates": ("distil.candidates", 9),
        "rules": ("docids.min_words", 4),
        "excerpt": ("queries.document_words", 50),
        "shards": ("tasks.bread.corpus.shard_size", 3),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_names_what_changed(self, configured: Callable[..., Config], change: str) -> None:
        key, value = self.CHANGES[change]
        config = configured()
        tree = config.model_dump(mode="json")
        *sections, name = (key if change != "shards" else "distil.shard_size").split(".")
        (tree[sections[0]] if sections else tree)[name] = value
        index = Index(config.distil.out)
        index.begin("distil", distil_inputs(config))
        with pytest.raises(StageRefused) as caught:
            index.begin("distil", distil_inputs(validate_config(tree)))
        assert f"{key} (" in str(caught.value)
        assert str(caught.value).endswith("run again with --rebuild distil, or with another distil.out")

    def test_instruction_corpus_and_order_of_the_tasks(self, configured: Callable[..., Config]) -> None:
        config = configured()
        prints = {fingerprint(distil_inputs(config))}
        tree = config.model_dump(mode="json")
        tree["distil"]["tasks"][1]["instruction"] = "Find the ship."
        prints.add(fingerprint(distil_inputs(validate_config(tree))))
        tree = config.model_dump(mode="json")
        tree["distil"]["tasks"].reverse()
        prints.add(fingerprint(distil_inputs(validate_config(tree))))
        prints.add(fingerprint(distil_inputs(configured(BREAD_ROWS[:4]))))
        assert len(prints) == 4

    def test_the_prompts_are_in_it(self, configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
        config = configured()
        before = distil_inputs(config)
        monkeypatch.setattr(prompts, "QUERY_USER", prompts.QUERY_USER + " Now.")
        monkeypatch.setitem(docid_prompts.DOCID_PREFILL, "brief", "Words:")
        after = distil_inputs(config)
        assert {key for key in before if before[key] != after[key]} == {"docids.prompt", "queries.prompt"}

    def test_hardware_training_and_the_place_are_not(self, configured: Callable[..., Config], tmp_path: Path) -> None:
        config = configured()
        tree = config.model_dump(mode="json")
        tree["compute"]["engine_batch_size"] = 3
        tree["training"]["num_epochs"] = 9
        tree["docids"]["temperature"] = 1.0
        tree["distil"]["out"] = str(tmp_path / "elsewhere")
        assert distil_inputs(validate_config(tree)) == distil_inputs(config)
