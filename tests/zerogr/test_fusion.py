"""Regularised fusion: its terms against hand-made cases and a slow loop in fp64, and its training."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from zerogr.docids.schemes.fusion import FusionSettings
from zerogr.llm.chat import ChatFormat
from zerogr.llm.latents import DOCUMENT, QUERY
from zerogr.llm.models import load_model
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors
from zerogr.training.learner import Learner, TrainingSettings
from zerogr.training.loop import train
from zerogr.training.loss import Seen
from zerogr.training.losses.fusion import FusionLoss, FusionLossSettings
from zerogr.training.packing import PackedBatch, passes
from zerogr.training.recipes.fusion import Texts, examples_of, groups_of

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = [
    [
        ("Roast the beans, then grind them for espresso.", "roast beans"),
        ("The keel keeps a boat upright in the wind.", "keel and wind of boats"),
        ("A knight jumps.", "knight"),
    ],
    [("Flour, water and yeast make a dough.", "what makes dough"), ("A chain and a gear.", "bicycle gear chain")],
    [("The tide comes in at noon.", "tide")],
]
"""Three pairs, two pairs, and one that has no other to be told from."""


class Given:
    """A model in fp64, groups of it, and the loss."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[tuple[str, str]]] = GROUPS, **settings: Any) -> None:
        self.model, self.tokenizer = load_model(str(folder), dtype="float64", device="cpu")
        self.settings = FusionSettings(num_latents=settings.get("num_latents", 1))
        self.examples = examples_of(groups, self.tokenizer, self.settings)
        torch.manual_seed(0)
        self.loss = FusionLoss(FusionLossSettings(**settings), self.model)

    def batch(self, ids: Sequence[int]) -> PackedBatch:
        (batch,) = passes(self.examples, np.array(ids), 256, 10**9, places=True)
        return batch

    def value(self, ids: Sequence[int]) -> torch.Tensor:
        batch = self.batch(ids)
        log_probs, states = self.loss.reader(batch)
        return self.loss(Seen(batch, log_probs, states, 0.0))


class Slow:
    """The same by loops: each text is read alone, with the stock model."""

    def __init__(self, given: Given) -> None:
        self.given, self.chat = given, ChatFormat.of(given.tokenizer)
        self.num_latents = given.settings.num_latents

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.given.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def latent(self, instruction: str, text: str) -> torch.Tensor:
        tokens = [*self.chat.prefix(instruction), *self.tokens(text), *[self.chat.end_token_id] * self.num_latents]
        states = self.given.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
        found: torch.Tensor = states[-self.num_latents :]
        return found / found.square().mean(-1, keepdim=True).sqrt()

    def log_prob(self, latent: torch.Tensor, text: str) -> torch.Tensor:
        model, tokens = self.given.model, torch.tensor([*self.tokens(text), self.chat.end_token_id])
        prompt = torch.cat([model.of_loss(latent), model.get_input_embeddings()(tokens[:-1])])
        logits = model(inputs_embeds=prompt[None]).logits[0, self.num_latents - 1 :]
        return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum()

    def value(self, ids: Sequence[int], *, autoencoder: bool = True, alpha: float = 1.0, beta: float = 30.0) -> float:
        total = 0.0
        for number in ids:
            group = GROUPS[number]
            documents = [self.latent(DOCUMENT, document) for document, _ in group]
            queries = [self.latent(QUERY, query) for _, query in group]
            num_written = sum(len(self.tokens(query)) + 1 for _, query in group)
            for (_, query), e_d, e_q in zip(group, documents, queries, strict=True):
                total -= float(self.log_prob(e_d, query))
                total -= float(self.log_prob(e_q, query)) if autoencoder else 0.0
            if autoencoder:
                total += num_written * (alpha * relevance(documents, queries) + beta * distinctness(documents, queries))
        return total


def sim(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.flatten() * second.flatten()).mean())


def relevance(documents: Sequence[torch.Tensor], queries: Sequence[torch.Tensor]) -> float:
    total = 0.0
    for i, document in enumerate(documents):
        zeta = sum(math.exp(sim(document, queries[j])) for j in range(len(queries)) if j != i)
        total += math.exp(sim(document, queries[i])) / (math.exp(sim(document, queries[i])) + zeta)
    return -total / len(documents)


def distinctness(documents: Sequence[torch.Tensor], queries: Sequence[torch.Tensor]) -> float:
    n = len(documents)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    apart = sum(sim(each[i], each[j]) for each in (documents, queries) for i, j in pairs)
    return apart / max(n * (n - 1), 1) - sum(map(sim, documents, queries)) / n


class TestLoss:
    def test_regularisers_by_hand(self, tiny_model: Path) -> None:
        """Two pairs in the plane: documents at 0 and 90 degrees, queries at 0 and 180."""
        given = Given(tiny_model, [GROUPS[1]])
        batch = given.batch([0])
        latents = math.sqrt(2) * torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]]]).double()
        weight = float(batch.weights.sum())
        first = math.e / (math.e + 1 / math.e)  # cosines 1 and -1
        second = 1 / 2  # both 0
        expected = -(first + second) / 2 + 30 * ((0 - 1) - 1 / 2)
        found = given.loss(Seen(batch, torch.zeros(2, 2), latents, 0.0))
        assert float(found) == pytest.approx(weight * expected, rel=1e-6)
        given.loss._settings = FusionLossSettings(alpha=0.0)
        found = given.loss(Seen(batch, torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), latents, 0.0))
        assert float(found) == pytest.approx(10 + weight * 30 * -1.5, rel=1e-6)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"num_latents": 3}, {"alpha": 0.0}, {"beta": 0.0}, {"autoencoder": False}],
        ids=lambda settings: str(settings),
    )
    def test_against_a_slow_loop(self, tiny_model: Path, settings: dict[str, Any]) -> None:
        given = Given(tiny_model, **settings)
        ids = [2, 0, 1]
        with torch.no_grad():
            found = float(given.value(ids))
            expected = Slow(given).value(ids, **{key: settings[key] for key in settings if key != "num_latents"})
        assert found == pytest.approx(expected, rel=1e-6)

    def test_packing_changes_nothing(self, tiny_model: Path) -> None:
        given = Given(tiny_model, num_latents=2)
        with torch.no_grad():
            together = float(given.value([1, 2, 0]))
            assert together == pytest.approx(sum(float(given.value([i])) for i in range(3)), rel=1e-9)
            log_probs, latents = given.loss.reader(given.batch([0, 1]))
        regrouped = Given(tiny_model, [[*GROUPS[0], *GROUPS[1]]], num_latents=2)
        with torch.no_grad():
            others, same = regrouped.loss.reader(regrouped.batch([0]))
            # Pairs alone do not depend on their group; what they are compared with does.
            assert torch.allclose(others, log_probs) and torch.allclose(same, latents)
            assert float(regrouped.value([0])) != pytest.approx(float(given.value([0, 1])), rel=1e-4)

    def test_gradients(self, tiny_model: Path) -> None:
        """Of every parameter, the bridge's among them, by finite differences; the model computes its norms in fp32."""
        given = Given(tiny_model, num_latents=2)
        parameters = [parameter for parameter in given.model.parameters() if parameter.requires_grad]
        given.value([0, 1, 2]).backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
        draw = torch.Generator().manual_seed(1)
        for parameter in (given.model.of_loss.weight, given.model.of_loss.bias, *parameters[:4], parameters[-1]):
            direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            slope = float((parameter.grad * direction).sum())
            ends = []
            with torch.no_grad():
                for sign in (1, -1):
                    parameter += sign * 1e-4 * direction
                    ends.append(float(given.value([0, 1, 2])))
                    parameter -= sign * 1e-4 * direction
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=2e-3, abs=1e-2)

    def test_the_writer_sees_nothing_but_the_latent(self, tiny_model: Path) -> None:
        """Another text of the same latent would be written alike; another latent is not."""
        given = Given(tiny_model)
        reader = given.loss.reader
        [tokens] = [torch.tensor([[5, 6, 7]])]
        latents = torch.randn(2, 1, 32, dtype=torch.float64)
        with torch.no_grad():
            one, other = (float(reader._log_probs(each[None], tokens, torch.tensor([3]))[0]) for each in latents)
            both = reader._log_probs(latents, tokens.repeat(2, 1), torch.tensor([3, 3]))
        assert one != other and torch.allclose(both, torch.tensor([one, other]).double())

    def test_similarities_are_bounded_so_that_beta_cannot_run_away(self, tiny_model: Path) -> None:
        given = Given(tiny_model)
        with torch.no_grad():
            for parameter in given.model.get_decoder().norm.parameters():
                parameter *= 100.0
            _, latents = given.loss.reader(given.batch([0, 1, 2]))
        assert torch.allclose(latents.square().mean(-1), torch.ones(6, 2).double())


SETTINGS = TrainingSettings(
    num_epochs=4, batch_size=2, learning_rate=3e-3, precision="fp32", evaluation_fraction=0, checkpoint_every=5,
    loss=FusionLossSettings(num_latents=2),
)  # fmt: skip


def pairs(*, num_documents: int = 40, size: int = 8) -> list[list[tuple[str, str]]]:
    """Returns groups of the tiny corpus: of each document its text, and twice some of its words."""
    texts = [row["text"] for row in tiny.documents()[:num_documents]]
    return groups_of(
        [Texts(text, [" ".join(text.split()[2:5:2]), " ".join(text.split()[6:13:3])]) for text in texts], size
    )


def trained(folder: Path, model_folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Trains below a folder, from the checkpoint there if there is one; returns the weights and the counts."""
    model, tokenizer = load_model(str(model_folder), dtype="float32", device="cpu")
    examples = examples_of(pairs(), tokenizer, FusionSettings(num_latents=2))
    settings = replace(SETTINGS, **changes)
    counts = train(model, examples, settings, checkpointer=StorageCheckpointer(str(folder)))
    return full_tensors(model), counts


class TestTraining:
    def test_resumes_exactly(self, tiny_model: Path, tmp_path: Path) -> None:
        whole, counts = trained(tmp_path / "whole", tiny_model)
        assert counts["steps"] == 20 and counts["examples"] == 10
        shutil.copytree(tmp_path / "whole", tmp_path / "torn")  # its checkpoint is that of step 15
        resumed, _ = trained(tmp_path / "torn", tiny_model)
        assert resumed.keys() == whole.keys() and {"of_loss.weight", "of_loss.bias"} <= whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)

    def test_learns_what_it_is_asked_for(self, tiny_model: Path) -> None:
        """Documents come near their queries, and away from each other, while queries become likelier."""
        model, tokenizer = load_model(str(tiny_model), dtype="float32", device="cpu")
        examples = examples_of(pairs(num_documents=12, size=6), tokenizer, FusionSettings(num_latents=2))
        learner, ids = Learner(model, replace(SETTINGS, batch_size=4)), np.arange(len(examples))

        def measured() -> tuple[float, float, float]:
            (batch,) = passes(examples, ids, 256, 10**9, places=True)
            with torch.no_grad():
                log_probs, latents = learner._loss.reader(batch)
            documents, queries = latents.unbind(1)
            across = documents @ queries.T / documents.shape[1]
            within = documents @ documents.T / documents.shape[1]
            others = ~torch.eye(len(across), dtype=torch.bool)
            nearer = across.diagonal().mean() - across[others].mean()
            return float(log_probs.mean()), float(nearer), float(within[others].mean())

        before = measured()
        for _ in range(40):
            learner.step(learner.prepare(examples, ids), 3e-3)
        after = measured()
        assert after[0] > 0.75 * before[0], (before, after)
        assert after[1] > before[1] + 0.05 and after[2] < before[2] - 0.1, (before, after)

    def test_a_pass_never_splits_a_group(self, tiny_model: Path) -> None:
        model, tokenizer = load_model(str(tiny_model), dtype="float32", device="cpu")
        examples = examples_of(pairs(), tokenizer, FusionSettings(num_latents=2))
        small, large = (
            Learner(model, replace(SETTINGS, pass_tokens=pass_tokens)).prepare(examples, np.arange(4))
            for pass_tokens in (64, 100_000)
        )
        assert [len(batch.example) for batch in small.passes] == [8] * 4
        assert [len(batch.example) for batch in large.passes] == [32]


class TestGroups:
    @pytest.mark.parametrize(("counts", "size"), [([3] * 7, 4), ([1] * 9, 4), ([5, 1, 1], 16), ([0, 2], 2), ([], 4)])
    def test_every_pair_once_and_no_document_twice_in_a_group(self, counts: list[int], size: int) -> None:
        documents = [Texts(f"d{i}", [f"q{i}-{j}" for j in range(count)]) for i, count in enumerate(counts)]
        groups = groups_of(documents, size)
        assert Counter(pair for group in groups for pair in group) == Counter(
            (document, query) for document, queries in documents for query in queries
        )
        assert all(0 < len(group) <= size for group in groups)
        assert all(len({document for document, _ in group}) == len(group) for group in groups)
        sizes = [len(group) for group in groups] or [0]
        assert max(sizes) - min(sizes) <= 1
