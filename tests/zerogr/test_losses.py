"""Losses that rank: each against a slow loop over pairs written from its formula, in fp64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerogr.config.base import LossSettings
from zerogr.config.owned import LOSS, settings_of
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.learner import Learner, SelectedTargets, TrainingSettings, greedy_hits
from zerogr.training.loss import Seen, load_loss
from zerogr.training.normalisation import NORMALISATIONS
from zerogr.training.packing import passes
from zerogr.trie import DocidTrie

DOCIDS = ["coffee roast beans", "coffee roast grind", "chess knight", "chess rook pawn", "bread flour yeast", "bread"]
GRADED = [
    ("how to roast", [(3.0, 0), (1.0, 1), (1.0, 4), (0.0, 2), (0.0, 3)]),
    ("a piece that jumps", [(1.0, 2), (0.0, 3), (0.0, 5)]),
    ("towers and pawns", [(2.0, 3), (2.0, 2), (0.0, 0)]),
    ("what rises", [(1.0, 4)]),
    ("bakery", [(4.0, 5), (2.0, 4), (1.0, 0), (0.0, 1)]),
]
"""Queries, and the grade of each document; grades have gaps, one query has no negative, one has one grade."""

pytestmark = pytest.mark.usefixtures("one_thread")
Reference = Callable[[list[dict[str, Any]]], torch.Tensor]


def text_examples() -> list[TextExample]:
    return [
        TextExample(
            "Find it.",
            query,
            [Relevant(grade, [(DOCIDS[i], grade)], teacher=1.5 * grade - 0.25 * i) for grade, i in documents],
        )
        for query, documents in GRADED
    ]


class Given:
    """A model in fp64, and examples of it."""

    def __init__(self, folder: Path, *, whole: bool) -> None:
        self.model, tokenizer = load_model(str(folder), dtype="float64")
        self.chat = ChatFormat.of(tokenizer)
        trie = DocidTrie.build([self.chat.docid(docid) for docid in DOCIDS])
        self.choices = Choices(trie, self.chat.end_token_id)
        self.examples = Examples.build(text_examples(), self.chat, None if whole else self.choices)

    def seen(self, ids: list[int], progress: float, row_tokens: int = 4096) -> Seen:
        normalisation = NORMALISATIONS["allowed"]
        (batch,) = passes(self.examples, np.array(ids), row_tokens, 10**9, self.choices, places=True)
        outputs = SelectedTargets(self.model, normalisation)(batch)
        kept = outputs.logits.float()
        log_probs = normalisation.log_probs(kept, batch)
        return Seen(batch, log_probs, outputs.states, progress)

    def alone(self, number: int) -> list[dict[str, Any]]:
        """Reads a query's documents one by one with the stock model; returns what each reference is made of."""
        query, documents = GRADED[number]
        prompt = self.chat.prompt("Find it.", query)
        found = []
        for grade, i in documents:
            docid = [*self.chat.docid(DOCIDS[i]), self.chat.end_token_id]
            with torch.no_grad():
                output = self.model(torch.tensor([[*prompt, *docid]]), output_hidden_states=True)
            states, logits = output.hidden_states[-1][0], output.logits[0].double()
            log_probs, num_open, node = [], 0, self.choices._trie.root
            for depth, token in enumerate(docid):
                tokens, children = self.choices._trie.children(node)
                allowed = [*tokens.tolist(), *([self.chat.end_token_id] if len(self.choices._trie.ends(node)) else [])]
                at = logits[len(prompt) + depth - 1]
                log_probs.append(float(at[token] - at[allowed].logsumexp(0)))
                num_open += len(allowed) > 1
                if token != self.chat.end_token_id:
                    node = int(children[tokens.tolist().index(token)])
            begin = len(self.chat.prefix("Find it."))
            found.append(
                {
                    "grade": grade,
                    "teacher": 1.5 * grade - 0.25 * i,
                    "log_probs": log_probs,
                    "query": states[begin : len(prompt)],
                    "docid": states[len(prompt) : len(prompt) + len(docid) - 1],
                    "weight": grade,
                    "num_open": num_open,
                }
            )
        return found


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> Path:
    return tiny_model


def settings_for(name: str, **changed: Any) -> LossSettings:
    return settings_of(LOSS, name).model_validate({"name": name, **changed})  # type: ignore[return-value]


def pairs_of(documents: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(a, b) for a, b in itertools.permutations(documents, 2) if a["grade"] > b["grade"]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def margin(documents: list[dict[str, Any]], loss: Any, progress: float) -> float:
    lost = [max(0.0, 2.0 - sum(a["log_probs"]) + sum(b["log_probs"])) for a, b in pairs_of(documents)]
    return mean(lost)


def prefix_margin(documents: list[dict[str, Any]], loss: Any, progress: float) -> float:
    stages = [(1, 0.5), (2, 0.75), (4, 0.875), (99, 1.0)][: min(1 + int(4 * progress), 4)]

    def lost(a: dict[str, Any], b: dict[str, Any]) -> float:
        wanted = a["teacher"] - b["teacher"]
        each = [
            (sum(a["log_probs"][:length]) - sum(b["log_probs"][:length]) - share * wanted) ** 2
            for length, share in stages
        ]
        return mean(each)

    return 0.1 * mean([lost(a, b) for a, b in pairs_of(documents)])


def ranknet(documents: list[dict[str, Any]], loss: Any, progress: float) -> float:
    def score(document: dict[str, Any]) -> float:
        weight = loss.scorer.weight[0].detach()
        added = float(document["docid"][-1] @ weight[: document["docid"].shape[1]])
        return added + (float(weight[-1]) * sum(document["log_probs"]) if loss._settings.residual else 0.0)

    return mean([math.log1p(math.exp(score(b) - score(a))) for a, b in pairs_of(documents)])


def graded(documents: list[dict[str, Any]], loss: Any, progress: float) -> float:
    def pooled(states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = loss.layer(states).mean(0)
        return found / found.norm()

    settings = loss._settings
    scores = [float((pooled(each["query"]) @ pooled(each["docid"])).detach()) / 0.1 for each in documents]
    costs = [math.log(sum(math.exp(other - score) for other in scores)) for score in scores]
    grades = sorted({document["grade"] for document in documents if document["grade"] > 0})
    total = 0.0
    for number, grade in enumerate(grades, start=1):
        of_grade = [cost for cost, document in zip(costs, documents, strict=True) if document["grade"] == grade]
        above = grades[number] if number < len(grades) else None
        floor = max(
            (cost for cost, document in zip(costs, documents, strict=True) if document["grade"] == above),
            default=-math.inf,
        )
        if not settings.constrained:
            floor = -math.inf
        share = 1 / number**2 if settings.penalty == "grade" else 1 / (1 + len(grades) - number) ** 2
        total += share / len(of_grade) * sum(max(cost, floor) for cost in of_grade)
    return total / len(grades)


REFERENCES: dict[str, Any] = {
    "margin": margin,
    "prefix_margin": prefix_margin,
    "ranknet": ranknet,
    "graded": graded,
}
CASES = [
    ("margin", {}, 0.0), ("prefix_margin", {}, 0.0), ("prefix_margin", {}, 0.3), ("prefix_margin", {}, 1.0),
    ("ranknet", {}, 0.0), ("ranknet", {"residual": True}, 0.0), ("graded", {}, 0.0), ("graded", {"penalty": "grade"}, 0.0),
    ("graded", {"constrained": False}, 0.0),
]  # fmt: skip


def made(name: str, given: Given, **changed: Any) -> Any:
    torch.manual_seed(0)
    loss = load_loss(settings_for(name, **changed), given.model)
    if changed.get("residual"):  # begins with nothing but the log-probability
        torch.nn.init.normal_(loss.scorer.weight)
    given.model.double()
    return loss


def expected(name: str, given: Given, loss: Any, progress: float, ids: list[int]) -> float:
    total = 0.0
    for i in ids:
        documents = given.alone(i)
        weight = sum(document["weight"] * document["num_open"] for document in documents)
        likelihood = -sum(document["weight"] * sum(document["log_probs"]) for document in documents)
        total += likelihood + weight * REFERENCES[name](documents, loss, progress)
    return total


@pytest.mark.parametrize(("name", "changed", "progress"), CASES)
class TestAgainstItsFormula:
    def test_value(self, folder: Path, name: str, changed: dict[str, Any], progress: float) -> None:
        given = Given(folder, whole=settings_for(name).needs_whole_docids)
        loss = made(name, given, **changed)
        ids = list(range(len(GRADED)))
        found = loss(given.seen(ids, progress)).item()
        assert found == pytest.approx(expected(name, given, loss, progress, ids), rel=1e-4)

    def test_packing_changes_nothing(self, folder: Path, name: str, changed: dict[str, Any], progress: float) -> None:
        given = Given(folder, whole=settings_for(name).needs_whole_docids)
        loss = made(name, given, **changed)
        whole = float(loss(given.seen([3, 0, 4, 2, 1], progress, row_tokens=64)))
        one_by_one = sum(float(loss(given.seen([i], progress))) for i in range(len(GRADED)))
        assert whole == pytest.approx(one_by_one, rel=1e-5)

    def test_gradients(self, folder: Path, name: str, changed: dict[str, Any], progress: float) -> None:
        """Of the log-probabilities, the states and the loss's own parameters, by finite differences."""
        given = Given(folder, whole=settings_for(name).needs_whole_docids)
        loss = made(name, given, **changed)
        seen = given.seen([0, 2, 4], progress)
        draw = torch.Generator().manual_seed(1)

        own = list(given.model.of_loss.parameters()) if hasattr(given.model, "of_loss") else []
        log_probs = seen.log_probs.detach().double().requires_grad_()
        states = seen.states.detach().clone().requires_grad_()
        loss(replace(seen, log_probs=log_probs, states=states)).backward()
        wanted = (log_probs, states, *own)
        if changed.get("residual"):  # the ranking learns nothing through the log-probabilities
            assert log_probs.grad is not None and torch.equal(log_probs.grad, -seen.batch.weights.double())
            wanted = (states, *own)
        for tensor in [each for each in wanted if each.grad is not None]:
            direction = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
            slope = float((tensor.grad * direction).sum())
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    tensor += sign * 1e-6 * direction
                    ends.append(float(loss(replace(seen, log_probs=log_probs, states=states))))
                    tensor -= sign * 1e-6 * direction
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


class TestGraded:
    def test_one_grade_is_supervised_contrast(self, folder: Path) -> None:
        """Khosla et al. 2020, L_out: the mean over positives of -log softmax."""
        given = Given(folder, whole=True)
        loss = made("graded", given)
        documents = given.alone(2)
        pooled = [torch.nn.functional.normalize(loss.layer(each["docid"]).mean(0), dim=0) for each in documents]
        query = torch.nn.functional.normalize(loss.layer(documents[0]["query"]).mean(0), dim=0)
        scores = torch.stack(pooled) @ query / 0.1
        contrast = float(-(scores - scores.logsumexp(0))[:2].mean())
        seen = given.seen([2], 0.0)
        weight = sum(document["weight"] * document["num_open"] for document in documents)
        found = float(loss(seen) - seen.cross_entropy())
        assert found == pytest.approx(weight * contrast, rel=1e-5)

    def test_a_better_document_that_costs_more_is_what_counts(self, folder: Path) -> None:
        given = Given(folder, whole=True)
        constrained, free = made("graded", given), made("graded", given, constrained=False)
        seen = given.seen([0, 4], 0.0)
        assert float(constrained(seen)) >= float(free(seen))


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_learning_with_it_ranks_better(folder: Path, name: str) -> None:
    """Forty steps on five queries: what the loss asks for becomes true."""
    model, tokenizer = load_model(str(folder), dtype="float32")
    chat = ChatFormat.of(tokenizer)
    trie = DocidTrie.build([chat.docid(docid) for docid in DOCIDS])
    choices = Choices(trie, chat.end_token_id)
    settings = TrainingSettings(
        num_epochs=1, batch_size=5, learning_rate=3e-3, precision="fp32", normalise="allowed", loss=settings_for(name)
    )
    examples = Examples.build(text_examples(), chat, None if settings.loss.needs_whole_docids else choices)
    learner, ids = Learner(model, settings), np.arange(len(examples))
    losses = []
    for number in range(40):
        learner.progress = number / 40
        losses.append(learner.step(learner.prepare(examples, ids, choices), 3e-3).loss)
    if name != "prefix_margin":  # its later prefixes come on the way
        assert losses[-1] < losses[0] / 2
    assert learner.evaluate(examples, ids, choices)["evaluation_acc@1"] >= 0.8


def test_negatives_are_never_right(folder: Path) -> None:
    """A query whose negative is the likeliest docid is not answered."""
    given = Given(folder, whole=False)
    learner = Learner(
        given.model.float(), TrainingSettings(num_epochs=1, batch_size=5, learning_rate=1e-3, precision="fp32")
    )
    every = [TextExample("Find it.", "x", [Relevant(1.0, [(docid, 1.0)]) for docid in DOCIDS])]
    none = [TextExample("Find it.", "x", [Relevant(0.0, [(docid, 0.0)]) for docid in DOCIDS])]

    def accuracy(texts: list[TextExample]) -> float:
        examples = Examples.build(texts, given.chat, given.choices)
        work = learner.prepare(examples, np.arange(1), given.choices)
        [packed] = work.passes
        return greedy_hits(learner.normalisation.over_columns(learner._module(packed).logits, packed), packed)

    assert accuracy(every) == 1 and accuracy(none) == 0
