"""The scheme `fusion`: what it trains on, and what it makes of what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.zerogr.test_fusion import Given, Slow
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus
from zerogr.docids.scheme import FITTED, Proposal
from zerogr.docids.schemes.fusion import Fusion, on_sphere
from zerogr.docids.stage import FOLDER, DocidProposer, assign_docids, docids_inputs
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.llm.chat import ChatFormat
from zerogr.llm.generation import Rejection
from zerogr.llm.latents import BRIDGE, DOCUMENT, LatentModel
from zerogr.llm.models import load_model
from zerogr.store import storage
from zerogr.training.examples import Examples
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.fusion import FusionRecipe
from zerogr.training.recipes.recipe import run_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


class Writer:
    """What stands for the model: it writes what it was told to, and notes what it was given."""

    width, is_on_gpu = 24, False

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts, self.read_texts, self.latents = texts, [], []  # type: ignore[var-annotated]

    def read(self, texts: list[str], *, max_tokens: int) -> torch.Tensor:
        self.read_texts = texts
        return torch.zeros(len(texts), self.width)

    def write(self, latents: torch.Tensor, *, num_beams: int, max_tokens: int) -> list[list[str]]:
        self.latents += latents.tolist()
        return [next(self.texts[key] for key in self.texts if key in text) for text in self.read_texts]


def config_of(folder: Path, rows: list[dict[str, Any]], model: Path, **docids: Any) -> Config:
    """Returns the configuration of an index of these rows, whose corpus is built."""
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "index": str(folder / "index"),
        "corpus": {"source": str(folder / "corpus.jsonl"), "shard_size": 8},
        "docids": {"scheme": "fusion", "model": str(model), **docids},
        "training": {"precision": "fp32"},
    }
    config = validate_config(tree)
    index = Index(config.index)
    counts = build_corpus(config, index)
    index.finish("corpus", {"rows": rows}, config={}, counts=counts, seconds=0.0)
    return config


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]


class TestScheme:
    def named(
        self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, list[str]],
        rows: list[dict[str, Any]], **docids: Any,
    ) -> tuple[list[Proposal | Rejection], Writer, Config]:  # fmt: skip
        config = config_of(folder, rows, model, **docids)
        writer = Writer(texts)
        monkeypatch.setattr(Fusion, "_model", writer)
        proposer = DocidProposer(config, Index(config.index), None)
        return proposer._scheme.identify([{**row, "doc_id": row["_id"]} for row in rows]), writer, config

    def test_candidates_are_words_distinct_and_best_first(
        self, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = {"coffee": ["How to Roast, coffee?", "how to roast coffee", "…", "one two three four five six"]}
        found, _, _ = self.named(
            tmp_path, tiny_model, monkeypatch, texts, rows_of("coffee beans", "", "?!"), max_words=4
        )
        proposal = found[0]
        assert isinstance(proposal, Proposal)
        assert proposal.candidates == ["how to roast coffee", "one two three four"]
        assert proposal.sources == ["lm", "lm"]
        assert [each.reason for each in found[1:] if isinstance(each, Rejection)] == ["no_words", "no_words"]

    def test_a_document_about_which_nothing_is_written_is_named_by_its_terms(
        self, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found, _, _ = self.named(tmp_path, tiny_model, monkeypatch, {"": ["", " …"]}, rows_of("espresso grind"))
        assert isinstance(found[0], Proposal)
        assert sorted(found[0].candidates[0].split()) == ["espresso", "grind"] and found[0].sources == ["repaired"]

    def test_noise_has_the_radius_and_depends_on_seed_and_document_alone(
        self, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = rows_of(*(f"text {i}" for i in range(20)))  # more than are written together
        _, writer, _ = self.named(tmp_path, tiny_model, monkeypatch, {"text": ["x"]}, rows, radius=2.0)
        noise = np.array(writer.latents)
        assert noise.shape == (20, 24)
        assert np.linalg.norm(noise, axis=1) == pytest.approx(np.full(20, 2.0), rel=1e-5)
        assert len({tuple(row) for row in noise.tolist()}) == 20
        again = Writer({"text": ["x"]})
        monkeypatch.setattr(Fusion, "_model", again)
        config = config_of(tmp_path / "again", rows, tiny_model, radius=2.0)
        DocidProposer(config, Index(config.index), None)._scheme.identify([{**rows[7], "doc_id": "d7"}])
        assert again.latents[0] == writer.latents[7]
        other = DocidProposer(config.model_copy(update={"seed": 1}), Index(config.index), None)
        other._scheme.identify([{**rows[7], "doc_id": "d7"}])
        assert again.latents[1] != again.latents[0]

    def test_two_documents_with_one_query_get_different_docids(
        self, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = rows_of("roast beans", "roast beans again", "keel")
        texts = {"roast": ["how to roast", "roasting"], "keel": ["a keel"]}
        _, _, config = self.named(tmp_path, tiny_model, monkeypatch, texts, rows)
        index = Index(config.index)
        proposer = DocidProposer(config, index, None)
        for shard in index.pending_shards(FOLDER):
            proposer(shard)
        counts = assign_docids(config, index)
        docids = [
            row["docid"]
            for shard in shards_in(index.path("docids"))
            for row in storage.read_parquet(index.shard("docids", shard)).to_pylist()
        ]
        assert docids == ["how to roast", "roasting", "a keel"]
        assert counts["collisions_per_round"][:2] == [1, 0]

    def test_directions_are_drawn_evenly(self) -> None:
        drawn = np.stack([on_sphere(seed, 3, 1.5) for seed in range(2000)])
        assert np.linalg.norm(drawn, axis=1) == pytest.approx(np.full(2000, 1.5), rel=1e-5)
        assert abs(drawn.mean(0)).max() < 0.1 and drawn.var(0) == pytest.approx(np.full(3, 0.75), abs=0.08)
        assert not on_sphere(0, 3, 0.0).any()

    @pytest.mark.parametrize(
        ("docids", "message"),
        [
            ({"num_spans_per_document": 0}, "judged names no collection; one of them must give queries"),
            ({"radius": -1}, "greater than or equal to 0"),
            ({"group_size": 1}, "greater than or equal to 2"),
        ],
    )
    def test_settings_that_are_refused(self, docids: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            validate_config({"docids": {"scheme": "fusion", **docids}})


class TestRecipe:
    def test_pairs_are_judged_queries_and_spans(self, tmp_path: Path, tiny_model: Path) -> None:
        judged = tiny.write_collection(tmp_path / "judged")
        shutil.copy(judged / "qrels" / "test.tsv", judged / "qrels" / "train.tsv")
        rows = [*tiny.documents(), {"_id": "empty", "title": "", "text": "..."}]
        config = config_of(tmp_path / "run", rows, tiny_model, judged=str(judged), num_spans_per_document=2)
        recipe = FusionRecipe(config)
        [groups] = recipe.groups()
        assert [groups] == list(FusionRecipe(config).groups())
        found = [pair for group in groups for pair in group]
        assert len({document for document, _ in found}) == 40
        assert {"what about the history of coffee", "what about the storage of chess"} <= {query for _, query in found}
        assert len(found) == 40 * 3 and max(map(len, groups)) <= 16
        plain = FusionRecipe(config_of(tmp_path / "plain", rows, tiny_model, num_spans_per_document=2))
        assert {key for key, value in recipe.inputs().items() if plain.inputs()[key] != value} == {"docids.judged"}

    def test_how_it_is_asked_trains_nothing_anew(self, tmp_path: Path, tiny_model: Path) -> None:
        config = config_of(tmp_path, tiny.documents(), tiny_model)
        changed = {"radius": 0.5, "num_beams": 2, "max_words": 5}
        other = config.model_copy(update={"docids": config.docids.model_copy(update=changed)})
        assert FusionRecipe(other).inputs() == FusionRecipe(config).inputs()
        other = config.model_copy(update={"docids": config.docids.model_copy(update={"beta": 0.0})})
        assert FusionRecipe(other).inputs() != FusionRecipe(config).inputs()

    def test_no_pair_at_all(self, tmp_path: Path, tiny_model: Path) -> None:
        judged = tiny.write_collection(tmp_path / "judged")
        rows = [{"_id": "other", "title": "", "text": "a document that nobody asks for"}]
        config = config_of(tmp_path / "run", rows, tiny_model, judged=str(judged), judged_split="test",
                           num_spans_per_document=0)  # fmt: skip
        with pytest.raises(UserError, match="has no pair of document and query to learn docids from"):
            FusionRecipe(config).examples(load_model(str(tiny_model), device="cpu")[1])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Config:
    """An index of the tiny corpus whose scheme is trained, without Ray."""
    folder = tmp_path_factory.mktemp("fusion")
    config = config_of(folder, tiny.documents(), tiny_model, num_latents=2, num_epochs=2, learning_rate=3e-3)
    recipe = RECIPES["scheme"](config)
    counts = run_recipe(recipe, recipe.index.path("work/scheme/checkpoints"))
    assert counts["examples"] + counts["held_out"] == 10  # 160 pairs
    return config


class TestWriting:
    def model(self, config: Config) -> LatentModel:
        return LatentModel(Path(Index(config.index).path(FITTED)), num_latents=2, device="cpu", dtype=torch.float32)

    def test_its_bridge_lies_beside_the_model(self, published: Config) -> None:
        folder = Path(Index(published.index).path(FITTED))
        assert {name: tuple(tensor.shape) for name, tensor in load_file(folder / BRIDGE).items()} == {
            "weight": (32, 32), "bias": (32,),
        }  # fmt: skip
        assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").is_file()

    def test_reads_as_it_was_trained(self, published: Config, tiny_model: Path) -> None:
        """Texts of one batch do not see each other, nor the padding."""
        model = self.model(published)
        texts = [row["text"] for row in tiny.documents()[:3]] + ["short"]
        together = model.read(texts, max_tokens=128)
        given = Given(tiny_model, num_latents=2)
        given.model = model.model.double()
        slow = Slow(given)
        with torch.no_grad():
            for text, latent in zip(texts, together, strict=True):
                assert torch.allclose(slow.latent(DOCUMENT, text).flatten().float(), latent, atol=1e-4)

    def test_beams_are_distinct_and_best_first(self, published: Config) -> None:
        """Each beam is scored by a plain forward pass: its log-probability per token falls from beam to beam."""
        model = self.model(published)
        latents = model.read([row["text"] for row in tiny.documents()[:3]], max_tokens=128)
        end = ChatFormat.of(model._tokenizer).end_token_id
        beams = model.search(latents, num_beams=4, max_tokens=12)
        assert len(beams) == 12
        for number, latent in enumerate(latents):
            found = []
            for beam in beams[4 * number : 4 * number + 4]:
                tokens = beam[: beam.index(end) + 1] if end in beam else beam
                with torch.no_grad():
                    prompt = model._bridge(latent.view(2, 32))
                    embedded = torch.cat([prompt, model.model.get_input_embeddings()(torch.tensor(tokens[:-1]))])
                    log_probs = model.model(inputs_embeds=embedded[None]).logits[0, 1:].log_softmax(-1)
                found.append((float(log_probs[torch.arange(len(tokens)), torch.tensor(tokens)].mean()), tuple(tokens)))
            assert len({tokens for _, tokens in found}) == 4
            scores = [score for score, _ in found]
            assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)

    def test_the_same_document_is_named_alike_in_any_batch(self, published: Config) -> None:
        model = self.model(published)
        texts = [row["text"] for row in tiny.documents()[:5]]
        together = model.write(model.read(texts, max_tokens=64), num_beams=3, max_tokens=10)
        alone = [model.write(model.read([text], max_tokens=64), num_beams=3, max_tokens=10)[0] for text in texts]
        assert together == alone and all(len(beams) == 3 for beams in together)

    def test_every_document_is_named_and_the_same_way_again(self, published: Config) -> None:
        index = Index(published.index)

        def named() -> list[dict[str, Any]]:
            proposer = DocidProposer(published, index, None)
            for shard in index.pending_shards(FOLDER):
                proposer(shard)
            assert assign_docids(published, index)["rows"] == 40
            return [
                row
                for shard in shards_in(index.path("docids"))
                for row in storage.read_parquet(index.shard("docids", shard)).to_pylist()
            ]

        rows = named()
        assert len({row["docid"] for row in rows}) == 40
        assert {row["source"] for row in rows} <= {"lm", "repaired", "resolved"}
        storage.delete(index.path(FOLDER))
        assert named() == rows
        index.finish("scheme", {"corpus": "x"}, config={}, counts={}, seconds=0.0)
        assert docids_inputs(published, index)["scheme"] == index.require("scheme").fingerprint

    def test_examples_are_deleted_when_it_is_trained(self, published: Config) -> None:
        recipe = RECIPES["scheme"](published)
        assert isinstance(recipe, FusionRecipe) and not recipe._files().folder.exists()
        assert isinstance(recipe.examples(load_model(recipe.base, device="cpu")[1]), Examples)
        recipe.close()
