from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.examples import answers, asked, of_tokens
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.learner import SelectedTargets
from zerogr.training.loss import Seen
from zerogr.training.losses.cross_entropy import CrossEntropy, CrossEntropySettings
from zerogr.training.normalisation import Vocabulary
from zerogr.training.packing import PackedBatch, passes

WORDS = "coffee grind water keel mast wind knight rook pawn flour yeast oven gear chain brake".split()

pytestmark = pytest.mark.usefixtures("one_thread")


def load(folder: Path) -> tuple[Any, ChatFormat]:
    model, tokenizer = load_model(str(folder), device="cpu", dtype=torch.float32)
    return model, ChatFormat.of(tokenizer)


def make_examples(chat: ChatFormat, count: int = 19) -> Examples:
    """Returns examples of two tasks, of very different lengths, some with several documents and answers of different weight."""
    draw = np.random.default_rng(0)
    return Examples.build(
        (
            TextExample(
                "Find the text." if i % 3 else "What is it about?",
                " ".join(draw.choice(WORDS, 1 + i % 7)),
                [
                    Relevant(
                        2.0 - document,
                        [(" ".join(draw.choice(WORDS, 1 + (i + j) % 4)), (1 + j) / 3) for j in range(1 + i % 3)],
                    )
                    for document in range(1 + i % 2)
                ],
            )
            for i in range(count)
        ),
        chat,
    )


def pack(examples: Examples, ids: Iterable[int], row_tokens: int, choices: Choices | None = None) -> PackedBatch:
    (batch,) = passes(examples, np.array(ids), row_tokens, 10**9, choices)
    return batch


def computed(examples: Examples, i: int) -> list[int]:
    """What is asked, and of each answer all tokens but the last."""
    query = asked(examples, i)[len(examples.prefixes[examples.task[i]]) :]
    return [*query, *(token for tokens, _ in answers(examples, i) for token in tokens[:-1])]


def loss_alone(model: Any, examples: Examples, i: int) -> torch.Tensor:
    """The slow reference: the stock model on one sequence, logits everywhere, cross-entropy where a docid stands."""
    total = torch.zeros(())
    for targets, weight in answers(examples, i):
        tokens = torch.tensor([[*asked(examples, i), *targets]])
        logits = model(input_ids=tokens).logits[0, :-1]
        labels = tokens[0, 1:].clone()
        labels[: -len(targets)] = -100
        total = total + weight * functional.cross_entropy(logits, labels, reduction="sum")
    return total


def loss_of(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Returns the cross-entropy of a batch over the whole vocabulary."""
    found = SelectedTargets(model)(batch)
    seen = Seen(batch, Vocabulary().log_probs(found.logits, batch), found.states, 0.0)
    return CrossEntropy(CrossEntropySettings(), model)(seen)


class TestPacking:
    """A packed example that sees its neighbour learns to copy from it: the loss falls and the retriever is worse."""

    @pytest.mark.parametrize("row_tokens", [1, 64, 128, 100_000])
    def test_loss_and_gradients_equal_those_of_whole_logits_one_by_one(self, tiny_model: Path, row_tokens: int) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        packed = pack(examples, range(len(examples)), row_tokens)
        loss = loss_of(model, packed)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

        reference, _ = load(tiny_model)
        total = sum(loss_alone(reference, examples, i) for i in range(len(examples)))
        total.backward()
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        for name, parameter in reference.named_parameters():
            assert gradients[name].abs().max() > 0, name
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("row_tokens", [1, 64, 128])
    def test_every_example_is_in_one_row_of_its_task(self, tiny_model: Path, row_tokens: int) -> None:
        examples = make_examples(load(tiny_model)[1])
        ids = [3, 0, 18, 7, 11, 4]
        batch = pack(examples, ids, row_tokens)
        found = Counter((tuple(prefix), tuple(piece)) for prefix, piece in self.pieces(batch))
        assert found == Counter((tuple(examples.prefixes[examples.task[i]]), tuple(computed(examples, i))) for i in ids)
        for row, segments in enumerate(batch.segments.tolist()):
            num_tokens = sum(segment >= 0 for segment in segments)
            assert num_tokens <= row_tokens or max(segments) == 1, row  # longer only for one that needs it

    @staticmethod
    def pieces(batch: PackedBatch) -> Iterator[tuple[list[int], list[int]]]:
        """Yields (prefix, example) of every example of the batch, and checks its positions."""
        arrays = (batch.tokens, batch.positions, batch.segments, batch.branches)
        for tokens, positions, segments, branches in zip(*arrays, strict=True):
            prefix = tokens[segments == 0].tolist()
            for segment in range(1, int(segments.max()) + 1):
                piece = tokens[segments == segment].tolist()
                where, own = positions[segments == segment], branches[segments == segment]
                start, middle = len(prefix), len(prefix) + int((own == 0).sum())
                assert where[own == 0].tolist() == list(range(start, middle))
                for answer in range(1, int(own.max()) + 1):
                    assert where[own == answer].tolist() == list(range(middle, middle + int((own == answer).sum())))
                yield prefix, piece

    def test_the_mask_by_hand(self) -> None:
        examples = of_tokens([[9]], [(0, [1], [([2, 5], 3), ([6, 7], 1), ([8], 2)]), (0, [3], [([4], 2)])])
        batch = pack(examples, [0, 1], 64)
        assert batch.tokens.tolist() == [[9, 1, 2, 6, 3]]  # 5, 7, 8 and 4 end their answers
        assert batch.positions.tolist() == [[0, 1, 2, 2, 1]]
        assert batch.mask()[0, 0].int().tolist() == [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 0, 0, 0, 1],
        ]
        assert batch.predicting.tolist() == [1, 4, 2, 3]
        assert batch.predicted_by.tolist() == [0, 2, 0, 3, 0, 1]
        assert batch.weights.tolist() == [3, 3, 1, 1, 2, 2]
        assert batch.targets.tolist() == [2, 5, 6, 7, 8, 4]
        assert batch.answer.tolist() == [0, 0, 1, 1, 2, 3]
        assert batch.document.tolist() == [0, 0, 0, 1] and batch.example.tolist() == [0, 1]
        assert examples.num_targets_of(np.array([0, 1])) == 3 + 3 + 1 + 1 + 2 + 2
        assert examples.num_predicting_of(np.array([0, 1])) == 4

    def test_documents_of_a_query_stay_together(self, tiny_model: Path) -> None:
        examples = make_examples(load(tiny_model)[1])
        batch = pack(examples, range(len(examples)), 64)
        grades: dict[int, list[float]] = {}
        for grade, number in zip(batch.grades.tolist(), batch.example.tolist(), strict=True):
            grades.setdefault(number, []).append(grade)
        assert Counter(map(tuple, grades.values())) == {(2.0,): 10, (2.0, 1.0): 9}
        assert len(batch.document) == len(examples.weights) and batch.weights.sum() == pytest.approx(
            examples.num_targets_of(np.arange(len(examples)))
        )


class TestExamples:
    @pytest.mark.parametrize(("fraction", "num_held_out"), [(0, 0), (0.1, 2), (0.49, 9), (1.0, 18)])
    def test_split(self, tiny_model: Path, fraction: float, num_held_out: int) -> None:
        examples = make_examples(load(tiny_model)[1])
        training, held_out = examples.split(fraction, seed=0)
        assert len(held_out) == num_held_out
        assert sorted([*training, *held_out]) == list(range(19))
        assert (np.diff(training) > 0).all() and (np.diff(held_out) > 0).all()
        again = examples.split(fraction, seed=0)
        assert np.array_equal(again[0], training)
        if 1 < num_held_out < 10:
            assert not np.array_equal(examples.split(fraction, seed=1)[1], held_out)
