from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.examples import asked, targets
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, load_frequency
from zerogr.docids.prompts import DOCID_PREFILL
from zerogr.docids.rules import Terms, validate
from zerogr.docids.schemes.keywords import keywords_of, limits_of
from zerogr.docids.schemes.terms import QUERY_SHARE
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.stage import DISTIL
from zerogr.llm.engines.engine import Prompt
from zerogr.llm.engines.rendering import ChatRenderer
from zerogr.llm.models import load_model
from zerogr.store import storage
from zerogr.teaching.pairs import Pair, pairs_for
from zerogr.text.words import stem, words
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors
from zerogr.training.examples import Relevant, TextExample
from zerogr.training.learner import Learner
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.recipe import load_base, run_recipe
from zerogr.training.recipes.retriever import RetrieverRecipe
from zerogr.trie.written import Written


@pytest.fixture
def config(tmp_path: Path, collection: Path, tiny_model: Path) -> Config:
    task = {"name": "tiny", "source": str(collection), "judged": str(collection), "split": "test"}
    tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
    tree["tuning"] = {
        "model": str(tiny_model),
        "out": str(tmp_path / "generators"),
        "tasks": [{**task, "instruction": "Find the text that answers."}],
    }
    return validate_config(tree)


def changed(config: Config, **tuning: Any) -> Config:
    return config.model_copy(update={"tuning": config.tuning.model_copy(update=tuning)})


class TestPairs:
    def test_titles_teach_docids_that_obey_the_rules(self, config: Config) -> None:
        pairs = list(pairs_for(config, "docid_generator"))
        titled = [row for row in tiny.documents() if row["title"]]
        assert len(pairs) == len(titled) == 20
        index = Index(config.index)
        build_corpus(config, index)
        frequency, limits = load_frequency(index), limits_of(keywords_of(config))
        for pair, row in zip(pairs, titled, strict=True):
            assert row["text"][:40] in pair.prompt and pair.prefill == DOCID_PREFILL["brief"]
            assert pair.completion.startswith(row["title"])
            assert not validate(
                pair.completion.split(" "), Terms.of(row["title"], row["text"], frequency), limits, frequency
            )

    def test_judged_queries_teach_queries(self, config: Config) -> None:
        pairs = list(pairs_for(config, "query_generator"))
        assert len(pairs) == 40
        first = tiny.documents()[0]
        assert first["text"] in pairs[0].prompt and "Find the text that answers." in pairs[0].prompt
        assert pairs[0].completion == f"what about {first['text'].split(':')[0][6:]}"

    def test_a_sample_holds_judged_documents(self, config: Config, tmp_path: Path) -> None:
        dataset = tiny.write_collection(tmp_path / "judged")
        (dataset / "qrels" / "train.tsv").write_text(
            "query-id\tcorpus-id\tscore\nq39\tbicycles-7\t2\nq38\tchess-1\t0\n"
        )
        task = config.tuning.tasks[0].model_copy(update={"judged": str(dataset), "split": "train", "max_documents": 3})
        [pair] = pairs_for(changed(config, tasks=[task]), "query_generator")
        assert pair.completion == "what about the measurement of bicycles"

    def test_teacher_data_comes_as_it_is(self, config: Config, tmp_path: Path) -> None:
        import pyarrow as pa

        teacher = Index(str(tmp_path / "teacher"))
        row = {"task": "t", "doc_id": "d", "prompt": "Name it.", "prefill": "", "completion": "tea leaf"}
        storage.write_parquet(teacher.shard("docids", 0), pa.Table.from_pylist([row]))
        teacher.finish(DISTIL.name, {}, config={}, counts={}, seconds=0)
        config = changed(config, teacher=teacher.uri, tasks=[])
        assert list(pairs_for(config, "docid_generator")) == [Pair("Name it.", "", "tea leaf")]
        assert list(pairs_for(config, "query_generator")) == []
        recipe = RECIPES["query_generator"](config)
        with pytest.raises(UserError, match="no pair to train the query_generator on; see tuning.teacher"):
            recipe.examples(load_base(recipe)[1])

    def test_a_task_without_judged_queries_says_so(self, config: Config) -> None:
        task = config.tuning.tasks[0].model_copy(update={"judged": None})
        config = changed(config, tasks=[task])
        assert RECIPES["docid_generator"](config).inputs()
        with pytest.raises(UserError, match="'tiny' names no judged queries, which the query generator learns from"):
            RECIPES["query_generator"](config).inputs()


class TestGenerator:
    @pytest.mark.parametrize("name", ["docid_generator", "query_generator"])
    def test_learns_in_the_tokens_it_is_asked_in(self, config: Config, name: str) -> None:
        recipe = RECIPES[name](config)
        tokenizer = load_base(recipe)[1]
        examples = recipe.examples(tokenizer)
        pair = next(pairs_for(config, name))
        before = ChatRenderer(tokenizer).render(Prompt(user=pair.prompt, prefill=pair.prefill, seeds=()), 1024)
        answer = tokenizer(f" {pair.completion}", add_special_tokens=False)["input_ids"]
        assert asked(examples, 0) == before and targets(examples, 0) == [*answer, tokenizer.eos_token_id]

    def test_what_it_is_made_from(self, config: Config, tmp_path: Path) -> None:
        def inputs(name: str, **tuning: Any) -> dict[str, Any]:
            return RECIPES[name](changed(config, **tuning)).inputs()

        for name in ("docid_generator", "query_generator"):
            plain = inputs(name)
            assert inputs(name, out=str(tmp_path / "elsewhere")) == plain
            other = inputs(name, num_epochs=3)
            assert {key for key in plain if plain[key] != other[key]} == {"tuning.num_epochs"}
        task = config.tuning.tasks[0].model_copy(update={"instruction": "Find another."})
        assert inputs("query_generator", tasks=[task]) != inputs("query_generator")


class TestJudgedQueries:
    def test_train_the_retriever_by_their_grades(self, tiny_index: str, tmp_path: Path, config: Config) -> None:
        dataset = tmp_path / "judged"
        (dataset / "qrels").mkdir(parents=True)
        queries = [{"_id": "q1", "text": "boats"}, {"_id": "q2", "text": "bakers", "instruction": "Find bread."}]
        (dataset / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
        (dataset / "qrels" / "train.tsv").write_text(
            "query-id\tcorpus-id\tscore\nq1\tsailing-0\t2\nq1\tchess-0\t0\nq1\tsailing-1\t1\nq2\tbread-1\t1\nq2\tunknown\t2\n"
        )
        judged = {"judged": str(dataset), "judged_weight": 3.0}
        config = config.model_copy(update={"index": tiny_index, "training": config.training.model_copy(update=judged)})
        recipe, plain = RetrieverRecipe(config), RetrieverRecipe(validate_config({"index": tiny_index}))
        docids = {
            row["doc_id"]: row["docid"]
            for shard in range(5)
            for row in storage.read_parquet(Index(tiny_index).shard("docids", shard)).to_pylist()
        }
        *pseudo, added = recipe.text_examples()
        assert pseudo == list(plain.text_examples())
        assert added == [
            TextExample(
                "Find the text that answers.",
                "boats",
                [Relevant(2.0, [(docids["sailing-0"], 3.0)]), Relevant(1.0, [(docids["sailing-1"], 1.5)])],
            ),
            TextExample("Find bread.", "bakers", [Relevant(1.0, [(docids["bread-1"], 1.5)])]),
        ]
        examples = recipe.examples(load_base(recipe)[1])
        assert examples.weights.tolist()[-3:] == [3.0, 1.5, 1.5] and examples.grades.tolist()[-3:] == [2.0, 1.0, 1.0]
        assert np.diff(examples.first_document).tolist()[-2:] == [2, 1]
        inputs = recipe.inputs()
        assert inputs["training.judged_weight"] == 3.0 and "training.judged" not in plain.inputs()

    @pytest.fixture
    def judged(self, tiny_index: str, tmp_path: Path, config: Config) -> Callable[..., RetrieverRecipe]:
        """Returns the recipe with these judgements of tiny's 40 questions and these settings."""

        def recipe(judgements: str, **training: Any) -> RetrieverRecipe:
            dataset = tiny.write_collection(tmp_path / "judged")
            (dataset / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}")
            tree = config.model_dump(mode="json") | {"index": tiny_index}
            tree["training"] |= {"judged": str(dataset), **training}
            return RetrieverRecipe(validate_config(tree))

        return recipe

    def test_negative_gapped_and_single_grades(self, judged: Callable[..., RetrieverRecipe]) -> None:
        rows = "q0\tcoffee-0\t-1\nq0\tcoffee-1\t1\nq0\tcoffee-2\t4\nq1\tchess-0\t4\nq1\tchess-1\t4\nq2\tbread-0\t-2\n"
        *_, added = judged(rows).text_examples()
        weights = [[(each.grade, each.answers[0][1]) for each in example.documents] for example in added]
        # What is negative teaches nothing; grades weigh in proportion, whatever lies between them.
        assert weights == [[(1.0, 0.25), (4.0, 1.0)], [(4.0, 1.0), (4.0, 1.0)]]
        assert [example.query for example in added] == [
            "what about the history of coffee",
            "what about the repair of coffee",
        ]

    @pytest.mark.parametrize(
        ("judgements", "message"),
        [
            (
                "q0\tcoffee-0\t-1\nq1\tcoffee-1\t0\n",
                "judges nothing as relevant in its split 'train': no grade is above 0",
            ),
            ("q0\tunknown\t1\n", "none of the 1 judged queries .* has a relevant document in this index"),
        ],
    )
    def test_judgements_that_teach_nothing_are_refused(
        self, judged: Callable[..., RetrieverRecipe], judgements: str, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            list(judged(judgements).text_examples())

    def test_a_share_trains_fewer_with_the_weights_of_all(self, judged: Callable[..., RetrieverRecipe]) -> None:
        ids = [row["_id"] for row in tiny.documents()]
        rows = "".join(f"q{i}\t{doc_id}\t{2 if i == 0 else 1}\n" for i, doc_id in enumerate(ids))

        def added(share: float) -> dict[str, float]:
            parts = list(judged(rows, judged_share=share).text_examples())
            return {
                example.query: example.documents[0].answers[0][1] for example in (parts[5] if len(parts) > 5 else [])
            }

        every, few, more = added(1.0), added(0.1), added(0.25)
        assert (len(every), len(few), len(more)) == (40, 4, 10)
        assert few.items() < more.items() < every.items()  # half the weight, even where no query of grade 2 is drawn
        assert sorted(every.values()) == [*[0.5] * 39, 1.0]
        assert added(0) == {}

    def test_a_share_is_part_of_what_the_retriever_is_made_from(self, judged: Callable[..., RetrieverRecipe]) -> None:
        rows = "".join(f"q{i}\t{row['_id']}\t1\n" for i, row in enumerate(tiny.documents()))
        every, half, none = (judged(rows, judged_share=share).inputs() for share in (1.0, 0.5, 0))
        assert {key for key in half if half[key] != every.get(key)} == {"training.judged", "training.judged_share"}
        assert "training.judged_share" not in every
        assert {key for key in every if key not in none} == {"training.judged", "training.judged_weight"}


class TestAdapters:
    def test_only_they_are_trained_and_they_are_merged_at_the_end(self, config: Config, tmp_path: Path) -> None:
        changes = {"lora_rank": 4, "num_epochs": 2}
        config = config.model_copy(
            update={
                "training": config.training.model_copy(update=changes),
                "tuning": config.tuning.model_copy(update={"learning_rate": 1e-2, "num_epochs": 4}),
            }
        )
        recipe = RECIPES["docid_generator"](config)
        run_recipe(recipe, str(tmp_path / "checkpoints"))
        model = load_model(recipe.index.path(recipe.stage), device="cpu", dtype=torch.float32)[0]
        base = load_model(recipe.base, device="cpu", dtype=torch.float32)[0]
        merged, plain = full_tensors(model), full_tensors(base)
        assert merged.keys() == plain.keys()
        moved = {name for name in plain if (merged[name] - plain[name]).abs().max() > 1e-3}
        assert moved and all("proj" in name for name in moved)
        trained, _ = load_base(recipe)
        assert all("lora_" in name for name in full_tensors(trained))

    def test_a_killed_run_goes_on_from_its_adapters(self, config: Config, tmp_path: Path) -> None:
        training = config.training.model_copy(update={"lora_rank": 4, "checkpoint_every": 2, "precision": "fp32"})
        config = config.model_copy(
            update={"training": training, "tuning": config.tuning.model_copy(update={"batch_size": 4})}
        )
        recipe = RECIPES["docid_generator"](config)
        torch.manual_seed(0)
        model, tokenizer = load_base(recipe)
        learner = Learner(model, recipe.settings)
        learner.step(learner.prepare(recipe.examples(tokenizer), np.arange(4)), 1e-2)
        checkpointer = StorageCheckpointer(str(tmp_path / "checkpoints"))
        checkpointer.save(learner.weights, learner.optimizer, 1)
        checkpointer.wait()
        other = Learner(load_base(recipe)[0], recipe.settings)
        assert checkpointer.restore(other.weights, other.optimizer) == 1
        for name, tensor in learner.weights.items():
            assert torch.equal(other.weights[name], tensor)


def test_trie_of_another_tokenizer_is_named(tiny_index: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RetrieverRecipe(config.model_copy(update={"index": tiny_index}))
    _, tokenizer = load_base(recipe)
    recipe.choices(tokenizer)
    monkeypatch.setattr(Written, "hash", lambda _: "another")
    with pytest.raises(
        UserError, match="made with another tokenizer than that of retriever.model; run again with --rebuild"
    ):
        recipe.choices(tokenizer)


def test_a_query_teaches_its_terms_and_others(hybrid_index: str, config: Config) -> None:
    """Taught terms that are not in the query alone, the retriever would have to learn every document by heart."""
    manifest = validate_config(Index(hybrid_index).manifest()["config"])
    recipe = RetrieverRecipe(manifest)
    taught = list(chain.from_iterable(recipe.text_examples()))
    assert taught == list(chain.from_iterable(recipe.text_examples()))
    shares = {True: 0.0, False: 0.0}
    for example in taught:
        in_query = set(map(stem, words(example.query)))
        [relevant] = example.documents
        for word, probability in relevant.answers:
            shares[stem(word) in in_query] += probability
    assert sum(shares.values()) == pytest.approx(len(taught))
    assert QUERY_SHARE - 0.15 < shares[True] / len(taught) < QUERY_SHARE + 0.15
