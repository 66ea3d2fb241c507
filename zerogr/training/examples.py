"""Training examples: (instruction, query) -> answers as token arrays.

An answer is a docid, or a word of a document. An example with several answers has its query once and the answers behind it,
each of which sees the query and itself: the model learns all of them from one pass over the query. What no token is predicted
from, the last token of an answer, is not computed; a word of one token costs nothing but its place in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zerogr.llm.chat import ChatFormat
from zerogr.ragged import offsets_of
from zerogr.training.choices import Choices

MOST_HELD_OUT = 1000
"""Examples that are kept from training, of any number."""


@dataclass(slots=True)
class Examples:
    """N examples as ragged token arrays; example i belongs to the task `task[i]`."""

    prefixes: list[list[int]]
    """Tokens that all examples of a task share, one list per task."""
    tokens: np.ndarray
    """int32 [T]: of all examples the query, the turn marks, and the answers one behind the other."""
    offsets: np.ndarray
    """int64 [N+1] into `tokens`."""
    answer: np.ndarray
    """uint8 [T]: which of its example's answers a token belongs to, from 1; 0 = what is asked."""
    counts: np.ndarray
    """uint8 [T]: how often the token's answer counts; 0 = what is asked."""
    num_targets: np.ndarray
    """int32 [N]: how many tokens at the end of an example are to be learnt: those of its answers."""
    task: np.ndarray
    """int32 [N]."""
    weights: np.ndarray
    """float32 [N]: what an answer that counts once weighs in the loss; as a rule the answers of an example weigh 1 together."""

    def __len__(self) -> int:
        return len(self.num_targets)

    @classmethod
    def build(cls, rows: Iterable[Row], chat: ChatFormat, choices: Choices | None = None) -> Examples:
        """Returns the examples of some rows, in their order.

        With `choices` an answer ends with its last token that the trie leaves open: what it forces is never asked of the
        model, and not computed.

        Raises:
            UserError: An answer is not in the trie.
        """
        rows = list(rows)
        tasks: dict[str, int] = {}
        targets: dict[str, list[int]] = {}
        queries = chat.queries([row.query for row in rows])

        def examples() -> Iterator[_Example]:
            for row, query in zip(rows, queries, strict=True):
                answers = [
                    (targets.get(text) or targets.setdefault(text, _target(text, chat, choices)), count)
                    for text, count in row.answers
                ]
                task = tasks.setdefault(row.instruction, len(tasks))
                yield _Example(query, answers, task, row.weight / sum(count for _, count in row.answers))

        return cls._of(examples(), lambda: [chat.prefix(instruction) for instruction in tasks])

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[list[int], list[int]]]) -> Examples:
        """Returns the examples of (prompt, completion) token lists, the end token included; they share no prefix."""
        examples = (_Example(prompt, [(completion, 1)], 0, 1.0) for prompt, completion in pairs)
        return cls._of(examples, lambda: [[]])

    @classmethod
    def _of(cls, examples: Iterable[_Example], prefixes: Callable[[], list[list[int]]]) -> Examples:
        """Returns the examples as arrays; `prefixes` is asked when all are read."""
        tokens, lengths, answer, counts, num_targets, task, weights = [], [], [], [], [], [], []
        for example in examples:
            asked = np.zeros(len(example.before), dtype=np.uint8)
            sizes = [len(target) for target, _ in example.answers]
            tokens.append(np.array(sum((target for target, _ in example.answers), example.before), dtype=np.int32))
            answer += [asked, np.repeat(np.arange(1, len(sizes) + 1, dtype=np.uint8), sizes)]
            counts += [asked, np.repeat(np.array([count for _, count in example.answers], dtype=np.uint8), sizes)]
            lengths.append(len(tokens[-1]))
            num_targets.append(sum(sizes))
            task.append(example.task)
            weights.append(example.weight)
        empty = np.empty(0, dtype=np.uint8)
        return cls(
            prefixes(),
            np.concatenate(tokens or [empty.astype(np.int32)]),
            offsets_of(np.array(lengths, dtype=np.int64)),
            np.concatenate([empty, *answer]),
            np.concatenate([empty, *counts]),
            np.array(num_targets, dtype=np.int32),
            np.array(task, dtype=np.int32),
            np.array(weights, dtype=np.float32),
        )

    def num_targets_of(self, ids: np.ndarray) -> float:
        """Returns the target tokens of some examples, each as often as it counts."""
        counted = [self.counts[self.offsets[i] : self.offsets[i + 1]].sum(dtype=np.int64) for i in ids]
        return float((np.array(counted) * self.weights[ids]).sum(dtype=np.float64))

    def num_tokens_of(self, ids: np.ndarray) -> int:
        """Returns the tokens of some examples as each stands alone, its task's prefix included."""
        prefix_tokens = np.array([len(prefix) for prefix in self.prefixes], dtype=np.int64)
        return int((self.offsets[ids + 1] - self.offsets[ids] + prefix_tokens[self.task[ids]]).sum())

    def num_computed(self, i: int) -> int:
        """Returns the tokens of an example that go through the model: all but the last of each answer."""
        begin, end = int(self.offsets[i]), int(self.offsets[i + 1])
        return end - begin - int(self.answer[end - 1])

    def num_places_of(self, ids: np.ndarray) -> int:
        """Returns at how many places targets of some examples are predicted; the first tokens of all answers share one."""
        num_answers = self.answer[self.offsets[ids + 1] - 1].astype(np.int64)
        return int((self.num_targets[ids] - num_answers + 1).sum())

    def split(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (training ids, held-out ids), int64, each ascending; at least one example stays for training.

        No more than `MOST_HELD_OUT` are held out: of so many the mean loss is known well enough, and each is computed often.
        """
        order = np.random.default_rng([seed, 0xE7A1]).permutation(len(self))
        num_held_out = min(int(round(fraction * len(self))), MOST_HELD_OUT, len(self) - 1)
        return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def epoch_order(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the ids in the order of an epoch: a function of seed and epoch alone, so a position is a resumable state."""
    return np.random.default_rng([seed, epoch]).permutation(ids)


class Row(NamedTuple):
    """One example as text."""

    instruction: str
    query: str
    answers: tuple[tuple[str, int], ...]
    """Docids or words, at most 255, and how often each counts, 1 to 255."""
    weight: float
    """Of all answers together."""


class _Example(NamedTuple):
    before: list[int]
    """Tokens between the task's prefix and the answers."""
    answers: list[tuple[list[int], int]]
    """The tokens of each, and how often it counts."""
    task: int
    weight: float
    """Of an answer that counts once."""


def _target(answer: str, chat: ChatFormat, choices: Choices | None) -> list[int]:
    """Returns the tokens of an answer with its end, or up to its last choice."""
    tokens = chat.docid(answer)
    return choices.open_part(tokens) if choices else [*tokens, chat.end_token_id]


def batches(order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the ids of one optimiser step after the other, from position `start` of the epoch's order."""
    for position in range(start, len(order), batch_size):
        yield order[position : position + batch_size]
