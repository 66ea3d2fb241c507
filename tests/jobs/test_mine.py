"""Documents that are not relevant: mined, learnt against, and what comes of it in a search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs import update as update_job
from jobs.cli import main
from tests import tiny
from tests.published import rows
from zerogr import Retriever
from zerogr.config.file import validate_config
from zerogr.editing.update import Request
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.stage import INDEX
from zerogr.mining.stage import Miner
from zerogr.mining.teacher import CrossEncoderTeacher
from zerogr.queries.negatives import NOT_PSEUDO, judged_uri, read_negatives
from zerogr.store import storage
from zerogr.training.recipes.retriever import RetrieverRecipe

QUERY = "what about the history of coffee"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection with graded training queries; the last names a document that is not there."""
    folder = tiny.write_collection(tmp_path_factory.mktemp("judged") / "collection")
    lines = ["q0\tcoffee-0\t3", "q0\tcoffee-1\t1", "q0\tchess-1\t-1", "q1\tcoffee-1\t2", "q2\tnowhere-1\t1"]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, judged: Path, tiny_model: Path, local_ray: None) -> Any:
    """The configuration of an index that is built: ranknet, every second query with negatives."""
    folder = tmp_path_factory.mktemp("mined")
    changes: dict[str, Any] = {"training__judged": str(judged), "training__loss": {"name": "ranknet"}}
    negatives = {"negatives__every": 2, "negatives__number": 5, "negatives__sources": ["lexical", "any"]}
    tree = tiny.settings(str(folder / "index"), judged, tiny_model, **changes, **negatives, training__num_epochs=4)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["index", str(folder / "config.yaml")]) == 0
    return tree


def pseudo(index: str) -> list[dict[str, Any]]:
    """Returns what was found for pseudo-queries."""
    return [row for row in rows(index, "negatives") if row["row_id"] != NOT_PSEUDO]


class TestNegatives:
    def test_none_is_relevant_and_each_stands_once(self, settings: Any) -> None:
        docid_of = {row["row_id"]: row["docid"] for row in rows(settings["index"], "docids")}
        mined = pseudo(settings["index"])
        assert mined
        for row in mined:
            found = [negative["row_id"] for negative in row["negatives"]]
            assert len(set(found)) == 5 and row["row_id"] not in found
            assert [negative["docid"] for negative in row["negatives"]] == [docid_of[row_id] for row_id in found]
            assert docid_of[row["row_id"]] not in {negative["docid"] for negative in row["negatives"]}
            [relevant] = row["relevant"]
            assert relevant["row_id"] == row["row_id"]

    def test_half_of_the_queries_have_some(self, settings: Any) -> None:
        queries = rows(settings["index"], "queries")
        every = {(row["row_id"], query) for row in queries for query in (*row["queries"], *row["spans"])}
        mined = {(row["row_id"], row["query"]) for row in pseudo(settings["index"])}
        assert mined < every and 0.35 < len(mined) / len(every) < 0.65

    def test_lexical_ones_are_nearer_than_others(self, settings: Any) -> None:
        """A teacher that knows words gives most of them something, and the relevant one more."""
        mined = pseudo(settings["index"])
        scores = [negative["teacher"] for row in mined for negative in row["negatives"]]
        best = [row["relevant"][0]["teacher"] for row in mined]
        assert sum(score > 0 for score in scores) > len(scores) / 4
        assert sum(best) / len(best) > sum(scores) / len(scores)

    def test_of_judged_queries_no_graded_document_is_one(self, settings: Any) -> None:
        row_of = {row["doc_id"]: row["row_id"] for row in rows(settings["index"], "docids")}
        mined = read_negatives(judged_uri(Index(settings["index"])))
        assert [query for _, query in mined] == ["what about the history of coffee", "what about the repair of coffee"]
        first, second = mined.values()
        assert set(first.teacher) == {row_of["coffee-0"], row_of["coffee-1"]}
        assert not set(first.teacher) & {negative["row_id"] for negative in first.negatives}
        assert set(second.teacher) == {row_of["coffee-1"]}

    def test_training_sees_them_behind_the_relevant_ones(self, settings: Any) -> None:
        recipe = RetrieverRecipe(validate_config(settings))
        parts = list(recipe.text_examples())
        pseudo, judged = parts[0], parts[-1]
        with_some = [example for example in pseudo if len(example.documents) > 1]
        assert 0 < len(with_some) < len(pseudo)
        for example in with_some:
            assert [document.grade for document in example.documents] == [1.0, *[0.0] * 5]
            assert all(weight == 0 for document in example.documents[1:] for _, weight in document.answers)
        assert [document.grade for document in judged[0].documents] == [3.0, 1.0, *[0.0] * 5]

    def test_a_lost_shard_is_made_again_and_nothing_else(self, settings: Any) -> None:
        index = Index(settings["index"])
        config = validate_config(settings)
        before = storage.read_bytes(index.shard("negatives", 2))
        storage.delete(index.shard("negatives", 2))
        Miner(config, index)(2)
        assert storage.read_bytes(index.shard("negatives", 2)) == before

    def test_a_retriever_decodes_them(self, settings: Any) -> None:
        index = settings["index"]
        config = validate_config(
            {**settings, "negatives": {"sources": ["decoded"], "retriever": index, "depth": 10, "number": 5}}
        )
        miner = Miner(config, Index(index))
        retriever = Retriever.load(index, device="cpu")
        shard = rows(index, "queries")[0]
        query = (*shard["queries"], *shard["spans"])[0]
        [hits] = retriever.search([query], instruction=shard["instruction"], k=10)
        found = next(row for row in miner._rows(miner.asked(0)) if row["query"] == query)
        doc_of = {row["row_id"]: row["doc_id"] for row in rows(index, "docids")}
        assert {doc_of[negative["row_id"]] for negative in found["negatives"]} <= {hit.doc_id for hit in hits}

    def test_a_cross_encoder_scores_them(self, settings: Any, tmp_path: Path) -> None:
        pytest.importorskip("sentence_transformers")
        name = tiny.save_cross_encoder(tmp_path / "teacher")
        index = Index(settings["index"])
        config = validate_config({**settings, "negatives": {"teacher": str(name), "number": 3}})
        miner = Miner(config, index)
        row = miner._rows(miner.asked(0)[:1])[0]
        assert isinstance(miner._teacher, CrossEncoderTeacher)
        from sentence_transformers import CrossEncoder

        text = {row["row_id"]: f"{row['title']}\n{row['text']}" for row in rows(index.uri, "corpus")}
        model = CrossEncoder(str(name))
        for document in (*row["relevant"], *row["negatives"]):
            expected = float(model.predict([(row["query"], text[document["row_id"]])])[0])
            assert document["teacher"] == pytest.approx(expected, abs=1e-4)


class TestReranking:
    def test_orders_what_was_found_by_the_learnt_score(self, settings: Any) -> None:
        retriever = Retriever.load(settings["index"], device="cpu")
        queries = [QUERY, "the price of sailing"]
        plain, other = (retriever.search(queries, k=10, rerank=rerank) for rerank in (False, True))
        for before, after in zip(plain, other, strict=True):
            assert {hit.doc_id for hit in before} == {hit.doc_id for hit in after}
            scores = [hit.score for hit in after]
            assert scores == sorted(scores, reverse=True)
            assert [hit.rank for hit in after] == list(range(1, 11))
        assert [hit.doc_id for hit in plain[0]] != [hit.doc_id for hit in other[0]]
        alone = retriever.search(queries[:1], k=10, rerank=True)[0]
        assert [hit.doc_id for hit in alone] == [hit.doc_id for hit in other[0]]

    def test_scores_are_those_of_the_stock_model(self, settings: Any) -> None:
        """The state at the docid's last token times the vector that training has left."""
        import torch

        writer = Retriever.load(settings["index"], device="cpu").writer
        docids = [row["docid"] for row in rows(settings["index"], "docids")][:5]
        prompts = writer.prompts([QUERY], ["Find the text that answers."])
        [found] = writer.rate(prompts, [docids])
        for docid, score in zip(docids, found, strict=True):
            tokens = torch.tensor([[*prompts[0][0], *prompts[0][1], *writer.chat.docid(docid)]])
            with torch.no_grad():
                state = writer.model.model(tokens, output_hidden_states=True).hidden_states[-1][0, -1]
            assert score == pytest.approx(float(state @ writer.scorer[0].float()), abs=1e-4)

    def test_is_added_to_the_log_probability(self, settings: Any) -> None:
        """With `residual`: a score that has learnt nothing leaves the order of decoding, by one forward pass."""
        import torch

        retriever = Retriever.load(settings["index"], device="cpu")
        writer, queries = retriever.writer, [QUERY, "the price of sailing"]
        plain, learnt = retriever.search(queries, k=10), writer.scorer
        assert learnt is not None
        docids = [row["docid"] for row in rows(settings["index"], "docids")][:5]
        prompts = writer.prompts([QUERY], ["Find the text that answers."])
        [added] = writer.rate(prompts, [docids])
        log_probs = [sum(step.log_prob for step in path) for path in writer.score(prompts, [docids])[0]]

        writer.scorer = torch.eye(learnt.shape[1] + 1)[-1:]
        again = retriever.search(queries, k=10, rerank=True)
        assert [[hit.doc_id for hit in hits] for hits in again] == [[hit.doc_id for hit in hits] for hits in plain]
        for before, after in zip(plain, again, strict=True):
            assert [hit.score for hit in after] == pytest.approx([hit.score for hit in before], abs=1e-4)

        writer.scorer = torch.cat([learnt, torch.full((1, 1), 2.0).to(learnt)], dim=1)
        begun: list[Any] = []
        start = writer.model.start
        writer.model.start = lambda given: begun.append(start(given)) or begun[0]
        [both] = writer.rate(prompts, [docids])
        assert both == pytest.approx(added + 2 * np.array(log_probs), abs=1e-3)
        assert begun[0].num_forwards == 2  # of the prompts, and of the docids

    def test_on_the_command_line(self, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["search", settings["index"], QUERY, "-k", "5", "--rerank", "--json"]) == 0
        scores = [hit["score"] for hit in json.loads(capsys.readouterr().out)["hits"]]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)

    def test_an_evaluation_shows_both_orders(
        self, settings: Any, judged: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["evaluate", settings["index"], "--dataset", str(judged), "--strategy", "beam", "--json"]
        assert main(command) == 0
        systems = [row["system"] for row in json.loads(capsys.readouterr().out)["rows"]]
        assert systems[:2] == ["zerogr-beam", "zerogr-beam+rerank=True"]

    def test_stays_when_an_update_trains_the_model(self, settings: Any, tmp_path: Path) -> None:
        shutil.copytree(settings["index"], tmp_path / "index")
        new = {"_id": "new-1", "title": "", "text": "About the weather of gardens: the rain and the sun."}
        (tmp_path / "new.jsonl").write_text(json.dumps(new) + "\n")
        overrides = ["update.method.name=finetune", "update.method.num_epochs=1", "update.max_forgetting=1"]
        update_job.run(str(tmp_path / "index"), Request(source=str(tmp_path / "new.jsonl")), overrides)
        [hits] = Retriever.load(str(tmp_path / "index"), device="cpu").search([QUERY], k=5, rerank=True)
        assert len(hits) == 5

    def test_a_retriever_without_a_score(self, tiny_index: str) -> None:
        with pytest.raises(UserError, match="was not trained to score query and docid"):
            Retriever.load(tiny_index, device="cpu").search([QUERY], rerank=True)


class TestMistakes:
    def test_a_loss_that_compares_nothing(
        self, tmp_path: Path, collection: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tree = tiny.settings(str(tmp_path / "index"), collection, tiny_model)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        assert main(["mine", str(tmp_path / "config.yaml")]) != 0
        assert "compares no documents" in capsys.readouterr().err

    def test_decoded_ones_without_a_retriever(self, collection: Path, tiny_model: Path) -> None:
        tree = tiny.settings("index", collection, tiny_model, negatives__sources=["decoded"])
        with pytest.raises(UserError, match="retriever must name an index"):
            validate_config(tree)

    def test_a_score_of_other_probabilities_than_re_ranking_has(self, collection: Path, tiny_model: Path) -> None:
        loss = {"name": "ranknet", "residual": True}
        tree = tiny.settings("index", collection, tiny_model, training__loss=loss, training__normalise="vocabulary")
        with pytest.raises(UserError, match="normalise must be allowed"):
            validate_config(tree)

    def test_identifiers_that_documents_share(self, collection: Path, tiny_model: Path) -> None:
        tree = tiny.settings(
            "index",
            collection,
            tiny_model,
            docids__scheme="terms",
            ranking__name="mix",
            training__loss={"name": "margin"},
        )
        with pytest.raises(UserError, match="compares docids"):
            validate_config(tree)

    def test_the_stage_is_wanted_by_those_losses_alone(self, collection: Path, tiny_model: Path) -> None:
        wanted = {}
        for loss in ("cross_entropy", "margin"):
            config = validate_config(tiny.settings("index", collection, tiny_model, training__loss={"name": loss}))
            wanted[loss] = [stage.name for stage in INDEX.stages if stage.is_wanted(config)]
        assert set(wanted["margin"]) - set(wanted["cross_entropy"]) == {"lexical", "negatives"}
