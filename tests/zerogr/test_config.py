from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from zerogr.config.base import Section
from zerogr.config.evaluation import AblationConfig, StudyConfig
from zerogr.config.file import default_yaml, load_config, validate_config
from zerogr.config.teaching import DistilConfig, PretrainingConfig, TuningConfig
from zerogr.config.tree import Config
from zerogr.errors import UserError


def refused(tree: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        validate_config(tree)
    return str(caught.value)


class TestKeys:
    @pytest.mark.parametrize(
        ("tree", "sentence"),
        [
            ({"trainig": {}}, "there is no key 'trainig'; did you mean 'training'?"),
            (
                {"training": {"num_epoch": 2}},
                "there is no key 'training.num_epoch'; did you mean 'training.num_epochs'?",
            ),
            ({"docids": {"min_word": 2}}, "there is no key 'docids.min_word'; did you mean 'docids.min_words'?"),
        ],
    )
    def test_unknown_key_names_the_nearest(self, tree: dict[str, Any], sentence: str) -> None:
        assert refused(tree) == sentence

    def test_unlike_any_key_lists_the_allowed_ones(self) -> None:
        assert refused({"retriever": {"zzz": 1}}) == (
            "there is no key 'retriever.zzz'; allowed there: model, num_layers"
        )

    def test_every_mistake_is_named(self) -> None:
        sentence = refused({"sead": 1, "training": {"batch_size": 0}})
        assert "there is no key 'sead'; did you mean 'seed'?" in sentence
        assert "training.batch_size is 0" in sentence


class TestValues:
    @pytest.mark.parametrize(
        ("section", "key", "value", "limit"),
        [
            ("training", "batch_size", 0, "greater than or equal to 1"),
            ("training", "learning_rate", 1.5, "less than 1"),
            ("training", "num_epochs", "many", "valid integer"),
            ("training", "row_tokens", 63, "greater than or equal to 64"),
            (
                "docids",
                "scheme",
                "numbers",
                "must be one of fusion, keywords, kmeans, random, terms, tfidf, title, or package.module:Class",
            ),
            ("decoding", "strategy", "magic", "'greedy', 'beam'"),
            ("corpus", "source", "", "at least 1 character"),
            ("queries", "top_p", 0, "greater than 0"),
            ("evaluation", "baselines", "bm25", "valid list"),
            ("corpus", "source", {"pystdlib": None}, "valid string"),
        ],
    )
    def test_path_value_and_limit(self, section: str, key: str, value: Any, limit: str) -> None:
        sentence = refused({section: {key: value}})
        assert sentence.startswith(f"{section}.{key} is {value!r}: ")
        assert limit in sentence

    def test_a_share_is_one_of_judged_queries(self) -> None:
        assert refused({"training": {"judged_share": 0.1}}) == (
            "training: judged_share is 0.1, and judged names no folder whose share it could be"
        )
        assert refused({"training": {"judged": "x", "judged_share": 1.5}}).startswith("training.judged_share is 1.5: ")
        assert refused({"evaluation": {"metrics": ["hits@1"]}}).startswith("evaluation.metrics.0 is 'hits@1': ")
        assert validate_config({"training": {"judged": "x", "judged_share": 0}}).training.judged_share == 0

    def test_limits_that_contradict_each_other(self) -> None:
        sentence = refused({"docids": {"min_words": 9, "max_words": 8}})
        assert sentence == "docids: min_words is 9; it must not exceed max_words = 8"
        sentence = refused({"docids": {"min_words": 6, "max_words": 8, "min_core_terms": 9}})
        assert sentence == "docids: min_core_terms is 9; it must not exceed max_words = 8"

    def test_a_value_where_a_section_is_expected(self) -> None:
        assert refused({"training": 3}).startswith("training is 3: ")

    def test_a_wrong_item_of_a_list_is_named_by_its_place(self) -> None:
        assert refused({"evaluation": {"strategies": ["beam", "bean"]}}).startswith(
            "evaluation.strategies.1 is 'bean': "
        )

    def test_nothing_changes_after_validation(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Config().training.num_epochs = 7


class TestOverrides:
    def test_values_are_read_as_yaml(self) -> None:
        config = load_config(
            None,
            [
                "training.learning_rate=1e-4",
                "training.num_epochs=7",
                "training.evaluation_fraction=0",
                "retriever.num_layers=null",
                "corpus.keep_judged=/some/folder",
                "evaluation.strategies=[greedy, nucleus]",
                "compute.engine_options.max_model_len=2048",
                "instruction=Find it.",
                "index=s3://bucket/index",
            ],
        )
        assert config.training.learning_rate == 1e-4
        assert config.training.num_epochs == 7
        assert config.training.evaluation_fraction == 0
        assert config.retriever.num_layers is None
        assert config.corpus.keep_judged == "/some/folder"
        assert config.evaluation.strategies == ["greedy", "nucleus"]
        assert config.compute.engine_options == {"max_model_len": 2048}
        assert (config.instruction, config.index) == ("Find it.", "s3://bucket/index")

    @pytest.mark.parametrize("text", ["'1e5'", '"12"', "nan", "inf", "infinity", "1e5 of them"])
    def test_text_that_looks_like_a_number_stays_text(self, text: str) -> None:
        assert load_config(None, [f"instruction={text}"]).instruction == text.strip("'\"")

    def test_a_colon_makes_no_mapping_without_braces(self) -> None:
        config = load_config(
            None,
            ["corpus.source=pystdlib:", "instruction=Find: it", "compute.engine_options={max_model_len: 9}"],
        )
        assert (config.corpus.source, config.instruction) == ("pystdlib:", "Find: it")
        assert config.compute.engine_options == {"max_model_len": 9}

    def test_they_stand_above_the_file_and_the_later_wins(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        path.write_text("training: {num_epochs: 2, batch_size: 8}\n")
        config = load_config(str(path), ["training.num_epochs=3", "training.num_epochs=4"])
        assert (config.training.num_epochs, config.training.batch_size) == (4, 8)

    def test_a_section_left_empty_in_the_file_can_be_filled(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        path.write_text("training:\n  # everything as it is\nseed: 3\n")
        assert load_config(str(path), ["training.num_epochs=3"]).training.num_epochs == 3
        assert load_config(str(path)).training == Config().training

    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            ("training.num_epochs", "--set training.num_epochs: write it as key.sub=value"),
            ("=3", "--set =3: write it as key.sub=value"),
            ("seed.deep=3", "--set seed.deep=3: 'seed' is a value, not a section"),
            ("instruction=Find: it: now", "'Find: it: now' is not a YAML value; quote it"),
            ("trainig.num_epochs=3", "there is no key 'trainig'; did you mean 'training'?"),
            ("training.num_epochs=0", "training.num_epochs is 0: input should be greater than or equal to 1"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, override: str, sentence: str) -> None:
        path = tmp_path / "config.yaml"
        path.write_text("seed: 1\n")
        with pytest.raises(UserError) as caught:
            load_config(str(path), [override])
        assert sentence in str(caught.value)


class TestFile:
    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere.yaml"
        with pytest.raises(UserError) as caught:
            load_config(str(path))
        assert str(caught.value) == (
            f"there is no config file '{path}'; `zerogr config > {path}` writes a documented one"
        )

    @pytest.mark.parametrize("content", [b"a: [1, 2", b"a: b: c", b"\xff\xfe\x00", b"\tindex: x"])
    def test_not_yaml(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "config.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^'.*config\.yaml' cannot be read as YAML: ") as caught:
            load_config(str(path))
        assert "\n" not in str(caught.value)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read as YAML"):
            load_config(str(tmp_path))

    @pytest.mark.parametrize(("content", "kind"), [("- a\n- b\n", "list"), ("hello\n", "str")])
    def test_not_a_mapping(self, tmp_path: Path, content: str, kind: str) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=f"holds a {kind}; it must be a mapping"):
            load_config(str(path))

    @pytest.mark.parametrize("workers", ["0", "[2, 1]", "[0, 2]", "[1, 2, 3]"])
    def test_training_workers_are_a_number_or_a_range(self, workers: str) -> None:
        with pytest.raises(
            UserError, match=r"compute: num_training_workers is .*; it must be at least 1, or \[fewest, most\]"
        ):
            load_config(None, [f"compute.num_training_workers={workers}"])
        assert load_config(None, ["compute.num_training_workers=[1, 2]"]).compute.most_training_workers == 2

    def test_empty_file_is_the_default(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        path.write_text("")
        places = {
            "index": os.path.abspath("index"),
            "ablation": AblationConfig(out=os.path.abspath("ablation")),
            "study": StudyConfig(out=os.path.abspath("study")),
            "distil": DistilConfig(out=os.path.abspath("teacher")),
            "tuning": TuningConfig(out=os.path.abspath("generators")),
            "pretraining": PretrainingConfig(out=os.path.abspath("pretraining")),
        }
        assert load_config(str(path)) == load_config(None) == Config(**places)

    def test_paths_become_absolute_and_names_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker elsewhere has another working folder."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model").mkdir()
        path = tmp_path / "config.yaml"
        path.write_text("index: a/b\ncorpus: {source: c}\nqueries: {model: org/name}\nretriever: {model: model}\n")
        config = load_config(str(path), ["evaluation.dataset=d"])
        assert config.index == str(tmp_path / "a" / "b")
        assert config.corpus.source == str(tmp_path / "c")
        assert config.evaluation.dataset == str(tmp_path / "d")
        assert config.retriever.model == str(tmp_path / "model")
        assert config.queries.model == "org/name"

        elsewhere = load_config(str(path), ["index=s3://bucket/a", "corpus.source=pystdlib:"])
        assert (elsewhere.index, elsewhere.corpus.source) == ("s3://bucket/a", "pystdlib:")


class TestDefaultFile:
    """The file is the documentation: what it leaves out does not exist for a user."""

    def test_round_trips(self) -> None:
        assert validate_config(yaml.safe_load(default_yaml())) == Config()

    def test_names_every_key(self) -> None:
        assert yaml.safe_load(default_yaml()) == Config().model_dump(mode="json")

    def test_every_key_has_its_comment_above_it(self) -> None:
        lines = [line.strip() for line in default_yaml().splitlines()]
        num_keys = 0
        for name, field in Config.model_fields.items():
            default = getattr(Config(), name)
            subfields = type(default).model_fields if isinstance(default, Section) else {}
            for key, documented in {name: field, **subfields}.items():
                assert documented.description, f"{name}.{key}"
                place = lines.index(f"# {documented.description}")
                assert lines[place + 1].startswith(f"{key}:")
                num_keys += 1
        assert num_keys == sum(":" in line and not line.startswith("#") for line in lines)


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("examples/**/*.yaml")), ids=lambda path: path.stem
)
def test_examples_are_valid(path: Path) -> None:
    assert load_config(str(path)).instruction


class TestDistilTasks:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"name": "a/b"}, "distil.tasks.0.name is 'a/b': string should match pattern"),
            ({"name": "b"}, "distil: two tasks are named 'b'; every task needs a name of its own"),
            ({"sauce": 1}, "there is no key 'distil.tasks.0.sauce'; did you mean 'distil.tasks.0.source'?"),
            ({"instruction": ""}, "distil.tasks.0.instruction is '': string should have at least 1 character"),
            ({"max_documents": 0}, "distil.tasks.0.max_documents is 0: input should be greater than or equal to 1"),
        ],
    )
    def test_mistakes_are_named(self, changes: dict[str, Any], sentence: str) -> None:
        tasks = [{"name": name, "source": "s", "instruction": "Find."} for name in ("a", "b")]
        with pytest.raises(UserError) as caught:
            validate_config({"distil": {"tasks": [{**tasks[0], **changes}, tasks[1]]}})
        assert str(caught.value).startswith(sentence)

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(UserError) as caught:
            validate_config({"distil": {"tasks": [{"name": "a"}]}})
        assert str(caught.value) == "distil.tasks.0.source: field required; distil.tasks.0.instruction: field required"

    def test_paths_are_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker elsewhere has another working folder."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model").mkdir()
        tasks = [{"name": name, "source": name, "instruction": "Find."} for name in ("a", "pystdlib:")]
        tasks[1]["name"] = "b"
        (tmp_path / "config.yaml").write_text(json.dumps({"distil": {"out": "t", "model": "model", "tasks": tasks}}))
        distil = load_config("config.yaml").distil
        assert (distil.out, distil.model) == (str(tmp_path / "t"), str(tmp_path / "model"))
        assert [task.source for task in distil.tasks] == [str(tmp_path / "a"), "pystdlib:"]
