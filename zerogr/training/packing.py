"""Packing: examples of one optimiser step as rows without padding to each other's length.

A row is the shared prefix (chat header and instruction) once, then whole examples one behind the other; an example sees the
prefix and itself, its positions restart behind the prefix, so a packed example is computed exactly as if it stood alone.
With a 25-token prefix and 30-token examples a row of 256 tokens holds 7 examples where padding to the longest would hold 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from zerogr.training.choices import Choices
from zerogr.training.examples import Examples


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
