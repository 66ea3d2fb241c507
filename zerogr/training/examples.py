"""Training examples: (instruction, query) -> answers as token arrays, and batches of them packed into rows.

An answer is a docid, or a word of a document. An example with several answers has its query once and the answers behind it,
each of which sees the query and itself: the model learns all of them from one pass over the query. What no token is predicted
from, the last token of an answer, is not computed; a word of one token costs nothing but its place in the loss.

A row is the shared prefix (chat header and instruction) once, then whole examples one behind the other; an example sees the
prefix and itself, its positions restart behind the prefix, so a packed example is computed exactly as if it stood alone.
With a 25-token prefix and 30-token examples a row of 256 tokens holds 7 examples where padding to the longest would hold 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from zerogr.chat import ChatFormat
from zerogr.training.choices import Choices
from zerogr.trie_build import offsets_of

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


@dataclass(slots=True)
class PackedBatch:
    """R rows of L tokens. Padding is token 0 that nothing attends to and that is no target."""

    tokens: torch.Tensor
    """int64 [R, L]"""
    positions: torch.Tensor
    """int64 [R, L]"""
    segments: torch.Tensor
    """int64 [R, L]: 0 = the shared prefix, 1.. = an example, -1 = padding."""
    branches: torch.Tensor
    """int64 [R, L]: which of its example's answers a token belongs to, from 1; 0 = none."""
    places: torch.Tensor
    """int64 [P]: flat, in [R * L], where a hidden state predicts a target or several."""
    place: torch.Tensor
    """int64 [M]: which of the places a target is predicted at."""
    targets: torch.Tensor
    """int64 [M]"""
    weights: torch.Tensor
    """float32 [M]: what each target counts."""
    example: torch.Tensor
    """int64 [M]: which of the batch's examples, numbered from 0, a target belongs to."""
    answer: torch.Tensor
    """int64 [M]: which of the batch's answers, numbered from 0."""
    node: torch.Tensor
    """int64 [P]: which of the batch's trie nodes, numbered from 0, a place stands at; [0] if nothing constrains it."""
    columns: torch.Tensor
    """int64 [C]: the tokens, ascending, that the trie allows at any of the nodes."""
    column: torch.Tensor
    """int64 [M]: which of the columns a target is; [0] if nothing constrains it."""
    allowed: torch.Tensor
    """int64 [2, A]: the pairs (node, column) that the trie allows."""

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int((self.segments >= 0).sum())

    def mask(self) -> torch.Tensor:
        """Returns bool [R, 1, L, L]: True where a token may look: at the prefix, at what is asked and at its own answer."""
        length = self.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.tokens.device).tril()
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        own, other = self.branches[:, :, None], self.branches[:, None, :]
        return (causal & ((key == 0) | ((key == query) & ((other == 0) | (other == own)))))[:, None]

    def is_allowed(self) -> torch.Tensor:
        """Returns bool [P, C]: which of the columns the trie allows at each place."""
        table = torch.zeros(int(self.node.max()) + 1, len(self.columns), dtype=torch.bool, device=self.node.device)
        table[self.allowed[0], self.allowed[1]] = True
        return table[self.node]

    def to(self, device: torch.device | str) -> PackedBatch:
        """Returns the batch on a device."""
        return PackedBatch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(slots=True)
class _Row:
    task: int
    members: list[int]
    num_tokens: int


def passes(
    examples: Examples, ids: Iterable[int], row_tokens: int, pass_tokens: int, choices: Choices | None = None
) -> list[PackedBatch]:
    """Returns the examples packed into rows, and the rows, longest first, into batches of at most `pass_tokens` tokens.

    A batch is larger only for a row that needs it. With `choices` it says what the trie allows at each place.
    """
    found: list[list[_Row]] = []
    for row in sorted(_rows(examples, ids, row_tokens), key=lambda row: -row.num_tokens):
        if found and (len(found[-1]) + 1) * found[-1][0].num_tokens <= pass_tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return [_batch(examples, rows, choices) for rows in found]


def _rows(examples: Examples, ids: Iterable[int], row_tokens: int) -> list[_Row]:
    """First-fit decreasing: the longest example first, each into the first row of its task with room for it."""
    rows: list[_Row] = []
    sizes = {int(i): examples.num_computed(int(i)) for i in ids}
    for i in sorted(sizes, key=lambda i: (-sizes[i], i)):
        task = int(examples.task[i])
        room = (row for row in rows if row.task == task and row.num_tokens + sizes[i] <= row_tokens)
        row = next(room, None)
        if row is None:
            row = _Row(task, [], len(examples.prefixes[task]))
            rows.append(row)
        row.members.append(i)
        row.num_tokens += sizes[i]
    return rows


def _batch(examples: Examples, rows: list[_Row], choices: Choices | None) -> PackedBatch:
    length = max(row.num_tokens for row in rows)
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    positions, branches = np.zeros_like(tokens), np.zeros_like(tokens)
    segments = np.full_like(tokens, -1)
    places, place, targets, weights = [], [], [], []
    num_places = 0
    numbers: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    paths: list[list[int]] = []
    for number, row in enumerate(rows):
        prefix = examples.prefixes[row.task]
        start = len(prefix)
        tokens[number, :start], positions[number, :start], segments[number, :start] = prefix, np.arange(start), 0
        for segment, i in enumerate(row.members, 1):
            begin, end = examples.offsets[i], examples.offsets[i + 1]
            piece, branch = examples.tokens[begin:end], examples.answer[begin:end].astype(np.int64)
            is_target = branch > 0
            num_asked = len(piece) - int(is_target.sum())
            # How far each token is from the first of its answer, or of what is asked.
            first = np.flatnonzero(np.diff(branch, prepend=-1))
            depth = np.arange(len(piece)) - np.repeat(first, np.diff(first, append=len(piece)))
            is_computed = (branch == 0) | (branch == np.append(branch[1:], -1))
            at = slice(start, start + int(is_computed.sum()))
            tokens[number, at], segments[number, at] = piece[is_computed], segment
            branches[number, at] = branch[is_computed]
            positions[number, at] = len(prefix) + (np.where(is_target, num_asked, 0) + depth)[is_computed]
            # An answer's first token is predicted from the last that is asked, the others each from the one before.
            before = np.where(depth == 0, num_asked - 1, np.arange(len(piece)) - 1)[is_target]
            before, own_place = np.unique((np.cumsum(is_computed) - 1)[before], return_inverse=True)
            places.append(number * length + start + before)
            place.append(num_places + own_place)
            num_places += len(before)
            targets.append(piece[is_target].astype(np.int64))
            weights.append(examples.weights[i] * examples.counts[begin:end][is_target].astype(np.float32))
            numbers.append(np.full(len(own_place), len(numbers), dtype=np.int64))
            answers.append(len(paths) + branch[is_target] - 1)
            paths += [path.tolist() for path in np.split(targets[-1], np.flatnonzero(np.diff(branch[is_target])) + 1)]
            start = at.stop
    arrays = [tokens, positions, segments, branches]
    arrays += [np.concatenate(each) for each in (places, place, targets, weights, numbers, answers)]
    node = columns = column = np.empty(0, np.int64)
    allowed = np.empty((2, 0), np.int64)
    if choices:
        node_of_target, (nodes, allowed_tokens) = choices.along(paths)
        columns, allowed_columns = np.unique(allowed_tokens, return_inverse=True)
        column = np.searchsorted(columns, np.concatenate(targets))
        allowed = np.stack([nodes, allowed_columns])
        node = np.empty(num_places, np.int64)
        node[np.concatenate(place)] = node_of_target  # all that is chosen at a place is chosen at one node
    return PackedBatch(*map(torch.from_numpy, [*arrays, node, columns, column, allowed]))


def batches(order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the ids of one optimiser step after the other, from position `start` of the epoch's order."""
    for position in range(start, len(order), batch_size):
        yield order[position : position + batch_size]
