from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Row
from zerogr.training.learner import SelectedTargets, summed_loss
from zerogr.training.packing import PackedBatch, passes

WORDS = "coffee grind water keel mast wind knight rook pawn flour yeast oven gear chain brake".split()

pytestmark = pytest.mark.usefixtures("one_thread")


def load(folder: Path) -> tuple[Any, ChatFormat]:
    model, tokenizer = load_model(str(folder), device="cpu", dtype=torch.float32)
    return model, ChatFormat.of(tokenizer)


def make_examples(chat: ChatFormat, count: int = 19) -> Examples:
    """Returns examples of two tasks, of very different lengths, some with several answers of different weight."""
    draw = np.random.default_rng(0)
    return Examples.build(
        (
            Row(
                "Find the text." if i % 3 else "What is it about?",
                " ".join(draw.choice(WORDS, 1 + i % 7)),
                tuple((" ".join(draw.choice(WORDS, 1 + (i + j) % 4)), 1 + j) for j in range(1 + i % 3)),
                1.0,
            )
            for i in range(count)
        ),
        chat,
    )


def pack(examples: Examples, ids: Iterable[int], row_tokens: int, choices: Choices | None = None) -> PackedBatch:
    (batch,) = passes(examples, ids, row_tokens, 10**9, choices)
    return batch


def computed(examples: Examples, i: int) -> list[int]:
    """What is asked, and of each answer all tokens but the last."""
    place = slice(examples.offsets[i], examples.offsets[i + 1])
    own, answer = examples.tokens[place].tolist(), examples.answer[place].tolist()
    numbered = list(zip(own, answer, [*answer[1:], -1], strict=True))
    return [token for token, number, following in numbered if number == 0 or number == following]


def loss_alone(model: Any, examples: Examples, i: int) -> torch.Tensor:
    """The slow reference: the stock model on one sequence, logits everywhere, cross-entropy where a docid stands."""
    place = slice(examples.offsets[i], examples.offsets[i + 1])
    own, answer, counts = (array[place] for array in (examples.tokens, examples.answer, examples.counts))
    total = torch.zeros(())
    for number in range(1, int(answer.max()) + 1):
        before, targets = [*examples.prefixes[examples.task[i]], *own[answer == 0]], own[answer == number]
        tokens = torch.tensor([[*before, *targets]])
        logits = model(input_ids=tokens).logits[0, :-1]
        labels = tokens[0, 1:].clone()
        labels[: -len(targets)] = -100
        weight = float(examples.weights[i]) * int(counts[answer == number][0])
        total = total + weight * functional.cross_entropy(logits, labels, reduction="sum")
    return total


class TestPacking:
    """A packed example that sees its neighbour learns to copy from it: the loss falls and the retriever is worse."""

    @pytest.mark.parametrize("row_tokens", [1, 64, 128, 100_000])
    def test_loss_and_gradients_equal_those_of_whole_logits_one_by_one(self, tiny_model: Path, row_tokens: int) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        packed = pack(examples, range(len(examples)), row_tokens)
        loss = summed_loss(SelectedTargets(model)(packed), packed)
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
        assert found == Counter(
            (
                tuple(examples.prefixes[examples.task[i]]),
                tuple(computed(examples, i)),
            )
            for i in ids
        )
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
        examples = Examples(
            prefixes=[[9]],
            tokens=np.array([1, 2, 5, 6, 7, 8, 3, 4], dtype=np.int32),
            offsets=np.array([0, 6, 8]),
            answer=np.array([0, 1, 1, 2, 2, 3, 0, 1], dtype=np.uint8),
            counts=np.array([0, 3, 3, 1, 1, 2, 0, 1], dtype=np.uint8),
            num_targets=np.array([5, 1], dtype=np.int32),
            task=np.array([0, 0], dtype=np.int32),
            weights=np.array([1, 2], dtype=np.float32),
        )
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
        assert batch.places.tolist() == [1, 2, 3, 4]
        assert batch.place.tolist() == [0, 1, 0, 2, 0, 3]
        assert batch.weights.tolist() == [3, 3, 1, 1, 2, 2]
        assert batch.targets.tolist() == [2, 5, 6, 7, 8, 4]
        assert batch.example.tolist() == [0, 0, 0, 0, 0, 1]
        assert batch.answer.tolist() == [0, 0, 1, 1, 2, 3]
        assert examples.num_targets_of(np.array([0, 1])) == 3 + 3 + 1 + 1 + 2 + 2
        assert examples.num_places_of(np.array([0, 1])) == 4


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
