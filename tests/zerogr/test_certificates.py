"""Learning beside the ordinary steps: sharpness-aware ones, and terms of single choices with their certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.editing import DOCIDS, INSTRUCTION, QUERIES, known, sample_of, setting_of
from zerogr.decoding import decode_batch
from zerogr.decoding.language_model import TreeModel
from zerogr.decoding.scoring import Request
from zerogr.decoding.terms import Terms
from zerogr.editing.certify import Certifier
from zerogr.editing.gate import Margins, lowered, solve
from zerogr.editing.method import Setting
from zerogr.editing.sample import Known
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.examples import Examples
from zerogr.training.learner import Learner, TrainingSettings

MARGINS = Margins(own=2.0, rival=1.0, own_share=0.5, l2=1e-3, quiet=1.0, silence=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture
def setting(folder: Path, tmp_path: Path) -> Setting:
    return setting_of(folder, tmp_path)


class TestSharpness:
    def test_a_step_uses_the_gradient_of_the_worst_point_near_by(self, folder: Path) -> None:
        """Without this the method is fine-tuning with a longer name."""

        def learner(sharpness: float) -> tuple[Any, Learner, Examples]:
            model, tokenizer = load_model(str(folder), dtype="float32")
            chat = ChatFormat.of(tokenizer)
            examples = Examples.build([known(i).example for i in range(5)], chat)
            settings = TrainingSettings(
                num_epochs=1,
                batch_size=5,
                learning_rate=1e-3,
                precision="fp32",
                sharpness=sharpness,
                max_gradient_norm=1e9,
            )
            return model, Learner(model, settings), examples

        model, plain, examples = learner(0.0)
        ids = np.arange(5)
        plain._accumulate(plain.prepare(examples, ids))
        gradients = {name: weight.grad.clone() for name, weight in plain.weights.items()}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        plain.optimizer.zero_grad()
        with torch.no_grad():
            for name, weight in plain.weights.items():
                weight += 0.05 * gradients[name] / norm
        plain._accumulate(plain.prepare(examples, ids))
        expected = float(torch.stack([weight.grad.norm() for weight in plain.weights.values()]).norm())
        before = {name: weight.detach() - 0.05 * gradients[name] / norm for name, weight in plain.weights.items()}

        _, sharp, examples = learner(0.05)
        step = sharp.step(sharp.prepare(examples, ids), 0.0)
        assert step.gradient_norm == pytest.approx(expected, rel=1e-4)
        for name, weight in sharp.weights.items():
            torch.testing.assert_close(weight.detach(), before[name], atol=1e-6, rtol=0)


class TestTerms:
    def scorer(self, setting: Setting) -> tuple[TreeModel, Any]:
        model = TreeModel(setting.model)
        return model, model.start([(setting.chat.prefix(INSTRUCTION), setting.chat.query("how to roast"))])

    @pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
    def test_are_gates_added_to_one_choice_alone(self, setting: Setting, normalise: str, tmp_path: Path) -> None:
        model, scorer = self.scorer(setting)
        tokens, other = np.array([5, 9, 11]), np.array([5, 9])
        requests = [Request(0, (), tokens), Request(0, (5,), other)]
        hidden = scorer.hidden(requests)
        before = scorer.log_probs(requests, normalise)
        state = hidden[0].float()
        vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
        vectors *= (vectors @ state).sign()[:, None]  # open gates
        terms = Terms()
        terms.put((), 9, torch.cat([vectors[0], torch.tensor([0.5, 0.25])]))
        terms.put((), 9, torch.cat([vectors[1], torch.tensor([1.0, 0.0])]))
        terms.put((), 9, torch.cat([-vectors[1], torch.tensor([0.0, 2.0])]))  # a shut one, which costs all the same
        terms.put((), 10, torch.ones(34))  # of a token that is not asked for
        terms.save(tmp_path)
        model.terms = Terms.load(tmp_path)
        assert len(model.terms) == 4
        after = scorer.log_probs(requests, normalise)
        assert np.allclose(after[1], before[1])
        head = setting.model.get_output_embeddings().weight.float()
        logits = state @ head.T
        logits[9] += float((vectors @ state).sum()) + 0.5 + 1.0 - 0.25 - 2.0
        over = logits[torch.from_numpy(tokens)] if normalise == "allowed" else logits
        expected = (logits[torch.from_numpy(tokens)] - over.logsumexp(0)).numpy()
        assert np.allclose(after[0], expected, atol=1e-4)

    def test_of_many_requests_are_those_of_each(self) -> None:
        draw = torch.Generator().manual_seed(2)
        terms = Terms()
        for token in (9, 5, 9):
            terms.put((3,), token, torch.randn(10, generator=draw))
        terms.put((), 1, torch.randn(10, generator=draw))
        one, other = np.array([5, 9, 11]), np.array([9, 20])
        requests = [
            Request(query, prefix, tokens)
            for query, (prefix, tokens) in enumerate(
                [((3,), one), ((4,), one), ((3,), other), ((3,), one.copy()), ((), one)]
            )
        ]
        hidden = torch.randn(5, 8, generator=draw)
        found = terms.bonuses(requests, hidden)
        assert found is not None
        expected = []
        for request, state in zip(requests, hidden, strict=True):
            added = terms.bonus(request.prefix, request.tokens, state)
            expected.append(torch.zeros(len(request.tokens)) if added is None else added)
        torch.testing.assert_close(found, torch.cat(expected))
        assert found[:3].any() and not found[3:6].any()
        assert terms.bonuses(requests[1:2], hidden[1:2]) is None

    def test_of_one_token_for_each_query(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = torch.Generator().manual_seed(1)
        terms, tokens = Terms(), np.array([5, 9, 11])
        for token in (9, 5, 9, 9, 40):
            terms.put((3,), token, torch.randn(34, generator=draw))
        hidden = torch.randn(50, 32, generator=draw)
        which = np.random.default_rng(0).integers(3, size=50)
        monkeypatch.setattr("zerogr.decoding.terms._PAIRS", 7)
        every = terms.bonus((3,), tokens, hidden)
        assert every is not None
        found = terms.bonus_of_each((3,), tokens[which], hidden)
        torch.testing.assert_close(found, every[np.arange(50), which], atol=1e-5, rtol=0)
        assert not terms.bonus_of_each((4,), tokens[which], hidden).any()

    @pytest.mark.parametrize("seed", range(5))
    def test_of_many_rivals_a_gate_finds_those_that_decide(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """And takes none of the others all the same, which are most of an index's queries, and nothing like its own."""
        draw = torch.Generator().manual_seed(seed)
        near = torch.nn.functional.normalize(torch.randn(400, 16, generator=draw), dim=-1) * 4
        own = near[:1] + 0.2 * torch.randn(3, 16, generator=draw)
        rivals = torch.cat([near[1:], -0.5 * own[:1] + 0.5 * torch.randn(600, 16, generator=draw)])
        bar, room = torch.tensor([3.0, 3.0, 3.0]), torch.full((999,), 0.1)
        monkeypatch.setattr("zerogr.editing.gate.MOST_RIVALS", 20)
        gate = lowered(solve(own, bar, rivals, room, MARGINS), rivals, room)
        assert bool((rivals @ gate[:-1] + gate[-1] <= room + 1e-5).all())
        assert bool((own @ gate[:-1] + gate[-1] >= bar - MARGINS.own).all())

    @pytest.mark.parametrize("num_rivals", [0, 1, 60])
    def test_a_gate_solves_its_problem(self, num_rivals: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The formula of the method's docstring, with its slope by autograd."""
        draw = torch.Generator().manual_seed(num_rivals)
        own, rivals = torch.randn(4, 8, generator=draw).double(), torch.randn(num_rivals, 8, generator=draw).double()
        bar, room = torch.rand(4, generator=draw).double() + 2, torch.rand(num_rivals, generator=draw).double()

        def loss(term: torch.Tensor) -> torch.Tensor:
            for_own, for_rivals = own @ term[:-1] + term[-1], rivals @ term[:-1] + term[-1]
            value = MARGINS.own_share * (bar - for_own).clamp(min=0).square().sum()
            value = value + (1 - MARGINS.own_share) * (for_rivals - room).clamp(min=0).square().sum()
            value = value + MARGINS.l2 * term[:-1].square().sum()
            loud = (for_rivals + MARGINS.silence).clamp(min=0).square()
            return value + MARGINS.quiet * loud.sum() / max(1, num_rivals)

        monkeypatch.setattr("zerogr.editing.gate.MAX_ITERATIONS", 1000)
        found = solve(own, bar, rivals, room, MARGINS).double().requires_grad_()
        loss(found).backward()
        assert found.grad is not None and float(found.grad.abs().max()) < 2e-3, (
            "a convex problem has no other flat place"
        )
        assert float(loss(found.detach())) < float(loss(torch.zeros(9, dtype=torch.float64)))

    def test_certified_documents_win_their_queries_and_take_none(self, setting: Setting) -> None:
        setting.model.float()
        old = [known(i) for i in range(3)]
        certifier = Certifier(setting, sample_of(old), MARGINS)

        def greedy(queries: list[Known]) -> list[str]:
            prompts = [(setting.chat.prefix(INSTRUCTION), setting.chat.query(each.example.query)) for each in queries]
            model = certifier._model
            model.terms = certifier.terms
            found = decode_batch(
                model.start(prompts), setting.trie, 1, eos_token_id=setting.chat.end_token_id, strategy="greedy"
            )
            return [setting.chat.codec.decode(each[0].tokens) for each in found]

        before = greedy(old)
        for number in (3, 4):
            own = [known(number), known(number, f"more on {QUERIES[number]}")]
            outcome = certifier.add(own)
            found = greedy(own)
            assert sum(docid == DOCIDS[number] for docid in found) == outcome.num_won
            if outcome.is_certified:
                assert found == [DOCIDS[number]] * 2
        assert outcome.num_own == 2 and "wins" in outcome.in_words
        right = [docid == each.docid for docid, each in zip(before, old, strict=True)]
        still = [docid == each.docid for docid, each in zip(greedy(old), old, strict=True)]
        assert sum(right) - sum(still) <= outcome.num_taken
