"""Graded pairs from links. What these tests look for: a link with the wrong grade, a pair of a document with itself, a title
that stands for two articles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.examples import answers, asked
from zerogr.config.file import config_of, validate_config
from zerogr.config.tree import Config
from zerogr.corpus.articles import Article, articles_hash, read_articles
from zerogr.corpus.document import Rejected
from zerogr.corpus.pystdlib_links import linked_pystdlib
from zerogr.errors import UserError
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.teaching.graded import graded_queries
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.recipe import load_base, run_recipe

TURING = {
    "_id": "Q1",
    "title": "Alan Turing",
    "sections": [
        {"text": "Alan Turing was a mathematician. He broke codes!", "links": ["mathematician", "Q1", "Q4", "nobody"]},
        {"text": "He was born in London.", "links": ["London", "Turing_machine", "Q4", "London"]},
        {"text": "He ran.", "links": ["Running", 7]},
    ],
    "see_also": ["Turing machine", "Alan Turing", "Enigma (lost)"],
    "references": ["Q9"],
}
OTHERS = [
    {"_id": "Q2", "title": "Turing machine", "sections": [{"text": "A machine with a tape."}]},
    {"_id": "Q3", "title": "Mathematician"},
    {
        "_id": "Q4",
        "title": "Cryptanalysis",
        "references": ["Q1", "Q2"],
        "sections": [{"text": "It breaks codes, slowly."}],
    },
    {"_id": "Q5", "title": "London", "see_also": None, "sections": None},
    {"_id": 7, "title": "Running"},
    {"_id": "Q9", "title": "On computable numbers"},
]


def write(folder: Path, rows: list[Any], name: str = "articles.jsonl") -> Path:
    """Writes a file of articles; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name


def configured(source: Path | str, **changes: Any) -> Config:
    return validate_config({"pretraining": {"source": str(source), **changes}})


def graded(source: Path | str, **changes: Any) -> list[tuple[str, dict[str, int]]]:
    return [(query, dict(relevant)) for query, relevant in graded_queries(configured(source, **changes))]


WATCHED_LOSS = """
from zerogr.config.base import LossSettings

seen = []


class Watched:
    Settings = LossSettings

    def __init__(self, settings, model):
        pass

    def __call__(self, given):
        batch = given.batch
        for example in batch.example.unique():
            seen.append(batch.grades[batch.example == example].tolist())
        return given.cross_entropy()
"""


class TestArticles:
    def test_reads_sections_and_links(self, tmp_path: Path) -> None:
        source = write(tmp_path, [TURING, *OTHERS])
        first, *_, last = read_articles(str(source))
        assert first == Article(
            "Q1",
            "Alan Turing",
            "Alan Turing was a mathematician. He broke codes!",
            "He was born in London.\nHe ran.",
            ["Turing machine", "Alan Turing", "Enigma (lost)"],
            ["Q9"],
            ["mathematician", "Q1", "Q4", "nobody"],
            ["London", "Turing_machine", "Q4", "London", "Running", "7"],
        )
        assert last == Article("Q9", "On computable numbers")
        write(tmp_path / "folder", [TURING], "a.jsonl")
        write(tmp_path / "folder", OTHERS, "b.jsonl")
        assert list(read_articles(str(tmp_path / "folder"))) == list(read_articles(str(source)))

    @pytest.mark.parametrize(
        ("row", "reason", "detail"),
        [
            ('{"_id": "Q1", ', "invalid_json", "at column"),
            ({"title": "x"}, "empty_doc_id", '"_id" must be a string or an integer, not None'),
            ({"_id": "Q1", "title": "  "}, "invalid_row", '"title" must be a string that is not empty'),
            ({"_id": "Q1", "title": "x", "sections": "text"}, "invalid_row", '"sections" must be a list of objects'),
            ({"_id": "Q1", "title": "x", "sections": [{"text": 3}]}, "invalid_row", 'the "text" of a section'),
            ({"_id": "Q1", "title": "x", "see_also": "y"}, "invalid_row", "must be lists of ids or titles"),
            (
                {"_id": "Q1", "title": "x", "sections": [{"links": [{}]}]},
                "invalid_row",
                "must be lists of ids or titles",
            ),
        ],
    )
    def test_what_is_no_article_says_why(self, tmp_path: Path, row: Any, reason: str, detail: str) -> None:
        [found] = read_articles(str(write(tmp_path, [row])))
        assert isinstance(found, Rejected) and found.reason == reason and detail in found.detail

    def test_a_missing_source_is_named(self, tmp_path: Path) -> None:
        for read in (articles_hash, lambda source: list(read_articles(source))):
            with pytest.raises(UserError, match=r"pretraining\.source '.*nowhere' does not exist; give a \.jsonl file"):
                read(str(tmp_path / "nowhere"))


class TestGrades:
    def test_a_link_has_its_highest_grade_and_what_is_not_there_has_none(self, tmp_path: Path) -> None:
        """Unknown targets, links to itself, links twice, by title in another case or with underscores, by id."""
        found = graded(write(tmp_path, [TURING, *OTHERS]), num_queries_per_article=2)
        relevant = {
            "alan turing": 4, "turing machine": 3, "mathematician": 2, "cryptanalysis": 2, "london": 1, "running": 1,
        }  # fmt: skip
        assert sorted(query for query, _ in found[:2]) == ["Alan Turing was a mathematician.", "He broke codes!"]
        assert [each for _, each in found[:2]] == [relevant, relevant]
        # References stand in where there is nothing to see also; who has no first section is not asked about.
        assert found[2:] == [
            ("A machine with a tape.", {"turing machine": 4}),
            ("It breaks codes, slowly.", {"cryptanalysis": 4, "alan turing": 3, "turing machine": 3}),
        ]

    def test_references_count_where_what_to_see_also_is_not_there(self, tmp_path: Path) -> None:
        rows = [{**TURING, "see_also": ["Enigma (lost)"]}, *OTHERS]
        [(_, relevant), *_] = graded(write(tmp_path, rows))
        assert relevant["on computable numbers"] == 3 and relevant["turing machine"] == 1

    def test_the_most_relevant_links_stay(self, tmp_path: Path) -> None:
        source = write(tmp_path, [TURING, *OTHERS])
        [(_, relevant), *_] = graded(source, max_links=4)
        assert list(relevant)[:2] == ["alan turing", "turing machine"]
        assert list(relevant.values()) == [4, 3, 2, 2, 1]
        assert graded(source, max_links=4) == graded(source, max_links=4)

    def test_equal_titles_are_told_apart(self, tmp_path: Path) -> None:
        rows = [
            {
                "_id": "a",
                "title": "Mercury",
                "sections": [{"text": "Mercury is a planet near the sun.", "links": ["b"]}],
            },
            {"_id": "b", "title": "Mercury", "sections": [{"text": "Mercury is a metal.", "links": ["c", "Mercury"]}]},
            {"_id": "c", "title": "mercury!", "sections": [{"text": "Mercury is a metal.", "links": ["d"]}]},
            {"_id": "d", "title": "!?", "sections": [{"text": "It has no name at all."}]},
        ]
        assert [relevant for _, relevant in graded(write(tmp_path, rows))] == [
            {"mercury": 4, "mercury metal": 2},
            {"mercury metal": 4, "mercury 2": 2, "mercury": 2},
            {"mercury 2": 4, "it has no name at all": 2},
            {"it has no name at all": 4},
        ]

    def test_true_duplicates_share_a_docid(self, tmp_path: Path) -> None:
        twin = {"title": "Twin", "sections": [{"text": "One of two.", "links": ["b", "c"]}]}
        rows = [{"_id": "a", **twin}, {"_id": "b", **twin}, {"_id": "c", "title": "Other"}]
        assert [relevant for _, relevant in graded(write(tmp_path, rows))] == [{"twin": 4, "other": 2}] * 2

    def test_a_sample_asks_about_some_and_links_to_all(self, tmp_path: Path) -> None:
        rows = [
            {
                "_id": f"a{i}",
                "title": f"Number {i}",
                "sections": [{"text": f"The number {i} it is.", "links": [f"a{i - 1}"]}],
            }
            for i in range(20)
        ]
        source = write(tmp_path, rows)
        every, some = graded(source), graded(source, max_articles=5)
        assert len(every) == 20 and len(some) == 5
        assert [each for each in every if each in some] == some
        assert all(len(relevant) == 2 for _, relevant in every[1:])

    @pytest.mark.parametrize(
        "rows",
        [
            [{"_id": "a", "title": "A", "text": "As BEIR has it."}, {"_id": "b", "title": "B", "text": "Another one."}],
            [{"_id": "a", "title": "A", "sections": [{"text": "It links to itself.", "links": ["A", "gone"]}]}],
        ],
    )
    def test_a_corpus_without_links_is_refused(self, tmp_path: Path, rows: list[Any]) -> None:
        with pytest.raises(UserError, match=r"none with a first section links to others; give a corpus with `links`"):
            graded(write(tmp_path, rows))

    def test_rows_that_are_no_articles_are_left_out_or_too_many(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [TURING, *OTHERS, {"_id": "Q1", "title": "Again"}]
        config = validate_config(
            {"pretraining": {"source": str(write(tmp_path, rows))}, "compute": {"max_rejected_fraction": 0.2}}
        )
        assert len(list(graded_queries(config))) == 3
        assert "1 of 8 rows of pretraining.source" in caplog.text and "Q1, duplicate_doc_id" in caplog.text
        write(tmp_path, [*rows, "[]", "{"])
        with pytest.raises(UserError, match=r"3 of 10 rows .* more than compute\.max_rejected_fraction = 0\.2"):
            list(graded_queries(config))


class TestBuiltInCorpus:
    @pytest.fixture(scope="class")
    def articles(self) -> dict[str, Article]:
        return {fields["doc_id"]: Article(**fields) for fields in linked_pystdlib()}

    def test_sections_and_links(self, articles: dict[str, Article]) -> None:
        """Whatever CPython's wording becomes: what these refer to is the same in 3.11 to 3.14."""
        assert articles["method:str.split"].see_also == ["str"]
        assert articles["class:threading.Event"].see_also == ["threading"]
        assert articles["class:threading.Event"].opening == "Class implementing event objects."
        assert {"method:threading.Event.set", "method:threading.Event.wait"} <= set(
            articles["class:threading.Event"].other_links
        )
        assert "module:marshal" in articles["module:json"].other_links
        assert "topic:numbers" in articles["topic:types"].see_also and "inspect" in articles["topic:types"].see_also
        assert articles["function:os.path.join"].opening.startswith("Join two or more pathname components")

    def test_names_are_those_of_documents(self, articles: dict[str, Article]) -> None:
        links = [link for each in articles.values() for link in (*each.opening_links, *each.other_links)]
        assert len(links) > 1000 and set(links) <= articles.keys()


class TestRecipe:
    @pytest.fixture
    def config(self, tmp_path: Path, tiny_model: Path) -> Config:
        tree = {
            "instruction": "Find the articles.",
            "pretraining": {
                "model": str(tiny_model), "source": str(write(tmp_path, [TURING, *OTHERS])), "out": str(tmp_path / "out"),
            },
        }  # fmt: skip
        return config_of(tree)

    def test_a_query_and_all_its_articles_are_one_example(self, config: Config) -> None:
        recipe = RECIPES["pretrained"](config)
        tokenizer = load_base(recipe)[1]
        chat = ChatFormat.of(tokenizer)
        examples = recipe.examples(tokenizer)
        assert len(examples) == 3
        last = [("cryptanalysis", 1.0), ("alan turing", 0.75), ("turing machine", 0.75)]
        assert asked(examples, 2) == chat.prompt("Find the articles.", "It breaks codes, slowly.")
        written = [([*chat.docid(title), chat.end_token_id], weight) for title, weight in last]
        assert answers(examples, 2)[0] == written[0] and sorted(answers(examples, 2)) == sorted(written)
        assert examples.grades.tolist()[-3:] == [4, 3, 3]
        recipe.close()

    def test_any_loss_sees_the_grades_and_a_model_comes_out(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one process, without Ray; the loss is somebody else's."""
        (tmp_path / "watched_loss.py").write_text(WATCHED_LOSS)
        monkeypatch.syspath_prepend(tmp_path)
        tree = config.model_dump(mode="json")
        tree["training"] |= {"loss": {"name": "watched_loss:Watched"}, "evaluation_fraction": 0, "precision": "fp32"}
        recipe = RECIPES["pretrained"](validate_config(tree))
        counts = run_recipe(recipe, str(tmp_path / "checkpoints"))
        assert counts["examples"] == 3 and counts["steps"] == 1

        import watched_loss  # type: ignore[import-not-found]

        by_query = sorted(sorted(grades, reverse=True) for grades in watched_loss.seen)
        assert by_query == [[4], [4, 3, 2, 2, 1, 1], [4, 3, 3]]
        folder = tmp_path / "out" / "pretrained"
        assert (folder / "model.safetensors").is_file() and load_model(str(folder), device="cpu")[1].chat_template

    def test_what_it_is_made_from(self, config: Config, tmp_path: Path) -> None:
        def changed(**keys: Any) -> set[str]:
            tree = config.model_dump(mode="json")
            for key, value in keys.items():
                section, _, name = key.partition("__")
                tree[section] = tree[section] | {name: value} if name else value
            inputs = RECIPES["pretrained"](validate_config(tree)).inputs()
            return {key for key in inputs | before if inputs.get(key) != before.get(key)}

        before = RECIPES["pretrained"](config).inputs()
        assert (
            changed(pretraining__out=str(tmp_path / "elsewhere"), index="another", training__normalise="vocabulary")
            == set()
        )
        assert changed(pretraining__max_links=3) == {"pretraining.max_links"}
        assert changed(instruction="Find others.") == {"instruction"}
        assert changed(training__num_epochs=2) == {"training.num_epochs"}
        other = write(tmp_path / "other", [TURING])
        assert changed(pretraining__source=str(other)) == {"pretraining.source"}

    def test_paths_are_those_of_the_user(self, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        found = config_of({"pretraining": {"source": "articles.jsonl", "out": "there"}}).pretraining
        assert (found.source, found.out) == (str(tmp_path / "articles.jsonl"), str(tmp_path / "there"))
        assert config_of({}).pretraining.source == "pystdlib:"
