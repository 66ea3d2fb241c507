"""An index made by calling the library's stages one after the other, without Ray, and opened for search."""

from __future__ import annotations

import shutil
from math import exp, fsum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tests import tiny
from tests.stages import build_index
from zerogr.config.file import validate_config
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.llm.chat import SETTINGS_FILE
from zerogr.llm.models import load_model
from zerogr.retriever import Retriever
from zerogr.search.answer import Hit
from zerogr.search.writer import Writer
from zerogr.store import storage
from zerogr.text.words import stem
from zerogr.training.checkpoints import full_tensors
from zerogr.training.recipes.recipe import load_base
from zerogr.training.recipes.retriever import RetrieverRecipe
from zerogr.trie import DocidTrie
from zerogr.trie.opened import read_documents
from zerogr.trie.stage import build_trie

QUERIES = ["what about the roast beans of coffee", "the knight and the bishop", "  "]
DENIED = ["coffee-0", "coffee-3", "chess-1"]


def assert_alike(hits: list[Hit], expected: list[Hit]) -> None:
    """The same documents in the same order; a batch moves scores by rounding."""
    assert [(hit.doc_id, hit.rank) for hit in hits] == [(hit.doc_id, hit.rank) for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-4)


@pytest.fixture(scope="module")
def built_and_trained(
    tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    """With docids written whole, so that a score is the probability of one text."""
    uri = str(tmp_path_factory.mktemp("by-hand") / "index")
    return uri, build_index(validate_config(tiny.settings(uri, collection, tiny_model, decoding__k=7)))


@pytest.fixture(scope="module")
def built(built_and_trained: tuple[str, dict[str, torch.Tensor]]) -> str:
    return built_and_trained[0]


@pytest.fixture(scope="module")
def trained(built_and_trained: tuple[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return built_and_trained[1]


@pytest.fixture(scope="module")
def retriever(built: str) -> Retriever:
    return Retriever.load(built, device="cpu")


@pytest.fixture
def copy(built: str, tmp_path: Path) -> str:
    """The index, to be damaged."""
    shutil.copytree(built, tmp_path / "index")
    return str(tmp_path / "index")


class TestSearch:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_strategy_finds_documents_of_the_index(self, retriever: Retriever, built: str, strategy: str) -> None:
        table = read_documents(Index(built), Version()).to_pylist()
        docid_of = {row["doc_id"]: row["docid"] for row in table}
        for hits in retriever.search(QUERIES, k=5, strategy=strategy):
            assert len({hit.doc_id for hit in hits}) == len(hits) == 5
            assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
            assert all(hit.docid == docid_of[hit.doc_id] for hit in hits)
            assert all(hit.score <= 0 for hit in hits)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_the_array_programs_find_the_same(self, retriever: Retriever, built: str, strategy: str) -> None:
        on_device = Retriever.load(built, device="cpu", decoder="device")
        views = [(retriever, on_device), *[(retriever.restricted(deny=DENIED), on_device.restricted(deny=DENIED))]]
        for one, other in views:
            expected, found = (each.search(QUERIES, k=7, strategy=strategy, seed=2) for each in (one, other))
            assert [[hit.doc_id for hit in hits] for hits in found] == [
                [hit.doc_id for hit in hits] for hits in expected
            ]
            for hits, others in zip(found, expected, strict=True):
                assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in others], abs=1e-4)

    def test_an_unknown_decoder_is_refused(self, built: str) -> None:
        with pytest.raises(ValueError, match="decoder is 'gpu'; it must be 'device', 'reference' or None"):
            Retriever.load(built, device="cpu", decoder="gpu")

    def test_graphs_are_captured_as_an_index_is_opened(self, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
        searched: list[Any] = []
        monkeypatch.setattr(Writer, "captures_graphs", True)
        monkeypatch.setattr(Retriever, "search", lambda self, queries, **options: searched.append(queries))
        Retriever.load(built, device="cpu")
        assert len(searched) == 1

    def test_score_is_the_probability_of_the_docid(self, retriever: Retriever) -> None:
        """Over all documents the probabilities under `allowed` sum to one: nothing else can be written."""
        (hits,) = retriever.search([QUERIES[0]], k=1000, strategy="best_first", normalise="allowed")
        assert len(hits) == 40 == retriever.num_documents
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert fsum(exp(hit.score) for hit in hits) == pytest.approx(1, abs=1e-4)
        (beam,) = retriever.search([QUERIES[0]], k=1000, strategy="beam", beam_width=1000)
        assert {hit.doc_id: pytest.approx(hit.score, abs=1e-4) for hit in beam} == {
            hit.doc_id: hit.score for hit in hits
        }

    def test_score_equals_one_pass_over_the_whole_text(self, retriever: Retriever) -> None:
        """The slow reference: instruction, query, docid and end as one text through the stock model, no trie, no cache."""
        model, chat = retriever.writer.model.model, retriever.writer.chat
        answers = retriever.search(QUERIES, instruction="Name it.", k=4, strategy="best_first", normalise="vocabulary")
        for query, hits in zip(QUERIES, answers, strict=True):
            for hit in hits:
                prompt, docid = chat.prompt("Name it.", query), [*chat.docid(hit.docid), chat.end_token_id]
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([prompt + docid])).logits[0, len(prompt) - 1 : -1]
                expected = logits.log_softmax(-1).gather(1, torch.tensor(docid)[:, None]).sum().item()
                assert hit.score == pytest.approx(expected, abs=1e-3)
        assert len({hits[0].score for hits in answers}) == len(QUERIES)

    def test_searches_with_the_weights_that_were_trained(
        self, retriever: Retriever, trained: dict[str, torch.Tensor], tiny_model: Path
    ) -> None:
        served = full_tensors(retriever.writer.model.model)
        base = full_tensors(load_model(str(tiny_model), device="cpu")[0])
        assert served.keys() == trained.keys()
        assert all(torch.equal(served[name], trained[name]) for name in trained)
        assert any(not torch.equal(served[name], base[name]) for name in base)

    def test_answers_do_not_depend_on_their_company(self, retriever: Retriever) -> None:
        together = retriever.search(QUERIES, strategy="reverse_annealing", seed=3)
        alone = [retriever.search([query], strategy="reverse_annealing", seed=3)[0] for query in QUERIES]
        for hits, expected in zip(together, alone, strict=True):
            assert_alike(hits, expected)

    def test_defaults_are_those_of_the_index(self, retriever: Retriever) -> None:
        (hits,) = retriever.search([QUERIES[0]])
        assert len(hits) == 7
        assert hits == retriever.search([QUERIES[0]], k=7, strategy="beam", instruction=tiny_instruction())[0]
        assert isinstance(hits[0], Hit)

    def test_instructions_per_query(self, retriever: Retriever) -> None:
        other = "Name the game."
        mixed = retriever.search([QUERIES[0]] * 3, instruction=[None, other, tiny_instruction()])
        assert_alike(mixed[0], mixed[2])
        assert_alike(mixed[1], retriever.search([QUERIES[0]], instruction=other)[0])
        assert [hit.score for hit in mixed[1]] != [hit.score for hit in mixed[0]]
        with pytest.raises(ValueError, match="zip"):
            retriever.search(QUERIES, instruction=[other])

    def test_restricted_to_some_documents(self, retriever: Retriever) -> None:
        options = dict(strategy="best_first", normalise="vocabulary")
        [whole] = retriever.search(QUERIES[:1], k=40, **options)
        coffee = [hit.doc_id for hit in whole if hit.doc_id.startswith("coffee")]
        assert 1 < len(coffee) < len(whole)
        tenant = retriever.restricted(allow=[*coffee, "somebody else's"])
        [found] = tenant.search(QUERIES[:1], k=40, **options)
        assert [hit.doc_id for hit in found] == coffee
        assert [hit.score for hit in found] == pytest.approx(
            [hit.score for hit in whole if hit.doc_id in coffee], abs=1e-4
        )
        fresh = tenant.restricted(deny=coffee[:1])
        assert [hit.doc_id for hit in fresh.search(QUERIES[:1], k=40, **options)[0]] == coffee[1:]
        assert retriever.restricted(allow=[]).search(QUERIES) == [[], [], []]
        assert [hit.doc_id for hit in retriever.search(QUERIES[:1], k=40, **options)[0]] == [h.doc_id for h in whole]

    def test_misuse_is_named(self, retriever: Retriever) -> None:
        with pytest.raises(ValueError, match="queries must be a list of strings, not one string"):
            retriever.search("one string")
        with pytest.raises(ValueError, match="strategy"):
            retriever.search(QUERIES, strategy="magic")

    def test_no_queries(self, retriever: Retriever) -> None:
        assert retriever.search([]) == []

    def test_names_what_it_serves(self, retriever: Retriever, built: str) -> None:
        index = Index(built)
        prints = [index.require(stage).fingerprint[:8] for stage in ("trie", "retriever")]
        assert retriever.index_version == "-".join(prints)
        assert retriever.doc_ids() == {row["_id"] for row in tiny.documents()}


def tiny_instruction() -> str:
    return str(tiny.settings("", Path(), Path())["instruction"])


class TestMix:
    """The hybrid: the retriever writes terms, and documents are found by the sum over those and their BM25 score."""

    @pytest.fixture(scope="class")
    def writer(self, tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path) -> Retriever:
        uri = str(tmp_path_factory.mktemp("words") / "index")
        build_index(
            validate_config(tiny.settings(uri, collection, tiny_model, docids__scheme="terms", ranking__name="mix"))
        )
        return Retriever.load(uri, device="cpu")

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_strategy_finds_each_document_once(self, writer: Retriever, strategy: str) -> None:
        for hits in writer.search(QUERIES, k=40, strategy=strategy, num_leaves=500):
            assert {hit.doc_id for hit in hits} == writer.doc_ids() and len(hits) == 40
            assert [hit.rank for hit in hits] == list(range(1, 41))
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    @pytest.mark.parametrize("options", [{}, {"ranking": "terms"}])
    def test_scores_are_the_sums_over_the_words(self, writer: Retriever, options: dict[str, str]) -> None:
        """Every word of the index is written, so that a trace and a search see the same."""
        [hits] = writer.search(QUERIES[:1], k=40, num_leaves=500, **options)
        [traced] = writer.trace(QUERIES[:1], [[hit.doc_id for hit in hits]], **options)
        for hit, each in zip(hits, traced, strict=True):
            assert (each.doc_id, each.docid, each.steps) == (hit.doc_id, hit.docid, [])
            assert set(map(stem, hit.docid.split())) <= {stem(part.text) for part in each.parts}
            assert each.score == pytest.approx(hit.score, rel=1e-3) == sum(part.score for part in each.parts)

    def test_the_query_s_own_words(self, writer: Retriever) -> None:
        """What the model makes of a word that it has never met must not decide whether documents with it are found."""
        [model], [mixed], [nothing_named], [same] = (
            writer.search([query], k=40, num_leaves=500, ranking=ranking)
            for query, ranking in (
                ("sourdough starter", "terms"), ("sourdough starter", "mix"), ("unheard of", "mix"), ("unheard of", "terms")
            )
        )  # fmt: skip
        own = {hit.doc_id for hit in writer.search(["sourdough starter"], k=40, ranking="lexical")[0]}
        assert own < {hit.doc_id for hit in model}
        places = [sum(hit.rank for hit in hits if hit.doc_id in own) for hits in (model, mixed)]
        assert places[1] < places[0]
        assert [(hit.doc_id, 2 * hit.score) for hit in nothing_named] == [(hit.doc_id, hit.score) for hit in same]

    def test_fewer_words_find_fewer_documents(self, writer: Retriever) -> None:
        [few], [many] = (writer.search(QUERIES[:1], k=40, num_leaves=number) for number in (1, 8))
        assert 0 < len(few) <= len(many) <= 40

    def test_restricted_to_some_documents(self, writer: Retriever) -> None:
        coffee = {f"coffee-{number}" for number in range(8)}
        tenant = writer.restricted(allow=sorted(coffee))
        for strategy in STRATEGIES:
            assert {hit.doc_id for hit in tenant.search(QUERIES[:1], k=40, strategy=strategy)[0]} == coffee
        others = {
            hit.doc_id for hit in writer.restricted(deny=sorted(coffee)).search(QUERIES[:1], k=40, num_leaves=500)[0]
        }
        assert others == writer.doc_ids() - coffee
        assert writer.restricted(allow=[]).search(QUERIES[:1]) == [[]]

    def test_a_trie_of_other_documents_is_named(
        self, built_and_trained: tuple[str, dict[str, torch.Tensor]], tmp_path: Path
    ) -> None:
        """Its rows would be other documents than their keys say."""
        shutil.copytree(built_and_trained[0], tmp_path / "index")
        index = Index(str(tmp_path / "index"))
        shard = index.shard("docids", 0)
        storage.write_parquet(shard, storage.read_parquet(shard).slice(1))
        with pytest.raises(UserError, match="is not that of its 39 docids; run `zerogr index` with --rebuild trie"):
            Retriever.load(index.uri, device="cpu")

    def test_a_setting_of_another_ranker_is_named(self, built_and_trained: tuple[str, dict[str, torch.Tensor]]) -> None:
        retriever = Retriever.load(built_and_trained[0], device="cpu")
        with pytest.raises(UserError, match="num_leaves is no setting of the ranker likelihood"):
            retriever.search(QUERIES[:1], num_leaves=1)
        with pytest.raises(UserError, match="the index ranks by likelihood, not by 'lexical'"):
            retriever.search(QUERIES[:1], ranking="lexical")


class TestLoad:
    def test_no_index(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no index at '.*nowhere'; `zerogr index CONFIG` makes one"):
            Retriever.load(str(tmp_path / "nowhere"))

    @pytest.mark.parametrize(("stage", "command"), [("trie", "trie"), ("retriever", "train")])
    def test_an_unfinished_index_names_what_is_missing(self, copy: str, stage: str, command: str) -> None:
        Index(copy).rebuild(stage)
        with pytest.raises(UserError, match=f"has no finished stage '{stage}'; run `zerogr {command} CONFIG`"):
            Retriever.load(copy)

    def test_a_trie_of_another_tokenizer(self, copy: str) -> None:
        trie = DocidTrie.load(Path(copy) / "trie")
        shutil.rmtree(Path(copy) / "trie")
        (Path(copy) / "trie").mkdir()
        trie.save(Path(copy) / "trie", extra={"tokenizer": "of something else"})
        with pytest.raises(UserError, match=r"made with another tokenizer than its retriever; run .*--rebuild trie"):
            Retriever.load(copy)

    def test_the_trie_knows_the_rows_of_every_docid(self, built: str, retriever: Retriever) -> None:
        table = read_documents(Index(built), Version())
        trie = DocidTrie.load(Path(built) / "trie")
        assert trie.num_docids == table.num_rows == 40
        assert sorted(trie.rows(trie.root).tolist()) == list(range(40))

    def test_settings_travel_with_the_model(self, built: str) -> None:
        assert storage.read_json(f"{built}/retriever/{SETTINGS_FILE}") == {
            "instruction": tiny_instruction(),
            "codec": "text",
            "max_instruction_tokens": 64,
            "max_query_tokens": 64,
        }


class TestStages:
    def test_a_document_without_a_docid_teaches_nothing(self, copy: str, tiny_model: Path, collection: Path) -> None:
        config = validate_config(tiny.settings(copy, collection, tiny_model))
        index, recipe = Index(copy), RetrieverRecipe(config)
        tokenizer = load_base(recipe)[1]
        before = len(recipe.examples(tokenizer))
        queries = storage.read_parquet(index.shard("queries", 0)).to_pylist()
        docids = storage.read_parquet(index.shard("docids", 0))
        storage.write_parquet(index.shard("docids", 0), docids.slice(1))
        lost = len(queries[0]["queries"]) + len(queries[0]["spans"])
        assert lost > 0
        assert len(recipe.examples(tokenizer)) == before - lost

    def test_no_query_at_all_is_one_error(self, copy: str, tiny_model: Path, collection: Path) -> None:
        config = validate_config(tiny.settings(copy, collection, tiny_model))
        recipe = RetrieverRecipe(config)
        tokenizer = load_base(recipe)[1]
        storage.delete(Index(copy).path("queries"))
        with pytest.raises(UserError, match="has no pseudo-query to train on; raise queries.num_spans_per_document"):
            recipe.examples(tokenizer)

    def test_no_docid_at_all_is_one_error(self, copy: str, tiny_model: Path, collection: Path) -> None:
        config = validate_config(tiny.settings(copy, collection, tiny_model))
        index = Index(copy)
        for shard in range(5):
            table: pa.Table = storage.read_parquet(index.shard("docids", shard))
            storage.write_parquet(index.shard("docids", shard), table.slice(0, 0))
        with pytest.raises(UserError, match="has no docid; every document was rejected, see `zerogr status"):
            build_trie(config, index)

    def test_a_changed_model_or_setting_changes_the_retriever_and_hardware_does_not(
        self, built: str, tiny_model: Path, collection: Path
    ) -> None:
        def inputs(**changes: Any) -> dict[str, Any]:
            return RetrieverRecipe(validate_config(tiny.settings(built, collection, tiny_model, **changes))).inputs()

        plain = inputs()
        assert inputs(compute__num_training_workers=2, training__checkpoint_every=9) == plain
        changed = inputs(training__num_epochs=9, seed=1)
        assert {key for key in plain if plain[key] != changed[key]} == {"training.num_epochs", "seed"}
