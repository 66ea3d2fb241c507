"""Packing: examples of one optimiser step as rows without padding to each other's length.

A row is the shared prefix (chat header and instruction) once, then whole examples one behind the other; an example sees the
prefix and itself, its positions restart behind the prefix, so a packed example is computed exactly as if it stood alone.
With a 25-token prefix and 30-token examples a row of 256 tokens holds 7 examples where padding to the longest would hold 4.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from zerogr.ragged import before_in_group, offsets_of, ranges
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples


@dataclass(slots=True)
class PackedBatch:
    """R rows of L tokens, of which P positions predict M targets of A answers of D documents of several examples.

    Padding is token 0 that nothing attends to and that is no target. Answers, documents and examples are numbered from 0 within
    the batch.
    """

    tokens: torch.Tensor
    """int64 [R, L]"""
    positions: torch.Tensor
    """int64 [R, L]"""
    segments: torch.Tensor
    """int64 [R, L]: 0 = the shared prefix, 1.. = an example, -1 = padding."""
    branches: torch.Tensor
    """int64 [R, L]: which of its example's answers a token belongs to, from 1; 0 = none."""
    predicting: torch.Tensor
    """int64 [P]: flat, in [R * L], where a hidden state predicts a target or several."""
    predicted_by: torch.Tensor
    """int64 [M]: which of those positions predicts a target."""
    targets: torch.Tensor
    """int64 [M]"""
    weights: torch.Tensor
    """float32 [M]: what each target weighs in the loss."""
    answer: torch.Tensor
    """int64 [M]: the answer that a target belongs to."""
    document: torch.Tensor
    """int64 [A]: the document that an answer belongs to."""
    grades: torch.Tensor
    """float32 [D]: how relevant each document is to its query; 0 = it is not."""
    teacher: torch.Tensor
    """float32 [D]: what a teacher makes of each document and its query."""
    example: torch.Tensor
    """int64 [D]: the example that a document belongs to."""
    node: torch.Tensor
    """int64 [P]: the trie node, numbered from 0 in the batch, of each of those positions; [0] if nothing constrains it."""
    columns: torch.Tensor
    """int64 [C]: the tokens, ascending, that the trie allows at any of the nodes."""
    column: torch.Tensor
    """int64 [M]: which of the columns a target is; [0] if nothing constrains it."""
    allowed: torch.Tensor
    """int64 [2, B]: the pairs (node, column) that the trie allows."""
    pairs: torch.Tensor
    """int64 [2, K]: documents of one example, of which the first is more relevant."""
    level: torch.Tensor
    """int64 [D]: the number of the group of relevant documents of one grade of one example that a document is in; -1 = none."""
    above: torch.Tensor
    """int64 [D]: the group of the same example with the next higher grade; -1 = none."""
    asked: torch.Tensor
    """int64 [2, Q]: where a token of a query is, flat in [R * L], and whose; [2, 0] unless it is wanted."""
    written: torch.Tensor
    """int64 [2, W]: where a token of an answer is that goes through the model, and whose; [2, 0] unless it is wanted."""

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

    def blocks(self) -> Any:
        """Returns the same as a block mask of FlexAttention, in which blocks that nobody looks at cost nothing."""
        from torch.nn.attention.flex_attention import create_block_mask

        segments, branches = self.segments, self.branches

        def is_seen(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            is_own = (segments[row, key] == segments[row, query]) & (
                (branches[row, key] == 0) | (branches[row, key] == branches[row, query])
            )
            return (query >= key) & ((segments[row, key] == 0) | is_own)

        rows, length = self.tokens.shape
        return create_block_mask(is_seen, rows, None, length, length, device=str(self.tokens.device))

    def is_allowed(self) -> torch.Tensor:
        """Returns bool [P, C]: which of the columns the trie allows at each predicting position."""
        # There are at most as many nodes as positions; asking for their number would make the host wait.
        table = torch.zeros(len(self.node), len(self.columns), dtype=torch.bool, device=self.node.device)
        table[self.allowed[0], self.allowed[1]] = True
        return table[self.node]

    def pinned(self) -> PackedBatch:
        """Returns the batch where a GPU can fetch it from while the host goes on."""
        return PackedBatch(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    def to(self, device: torch.device | str) -> PackedBatch:
        """Returns the batch on a device."""
        return PackedBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(slots=True)
class _Row:
    task: int
    num_tokens: int
    members: list[int]


def passes(
    examples: Examples,
    ids: np.ndarray,
    row_tokens: int,
    pass_tokens: int,
    choices: Choices | None = None,
    *,
    places: bool = False,
    length_step: int = 1,
    row_step: int = 1,
) -> list[PackedBatch]:
    """Returns the examples packed into rows, and the rows, longest first, into batches of at most `pass_tokens` tokens.

    A batch is larger only for a row that needs it, and by what fills it up.

    Args:
        examples, ids: What is packed.
        row_tokens, pass_tokens: Tokens of a row and of a batch.
        choices: What the trie allows at each predicting position; None = that is not needed.
        places: Whether the batch says where queries and answers are.
        length_step, row_step: Rows are padded to a multiple of so many tokens, and batches to one of so many rows, so that
            there are few different shapes.
    """
    parts = _parts(examples, ids, row_tokens, pass_tokens)
    return [_batch(examples, rows, choices, places, length_step, row_step) for rows in parts]


def members_of(examples: Examples, ids: np.ndarray, row_tokens: int, pass_tokens: int) -> list[list[int]]:
    """Returns the examples of every batch that `passes` makes, in the order in which the batch numbers them."""
    parts = _parts(examples, ids, row_tokens, pass_tokens)
    return [[member for row in rows for member in row.members] for rows in parts]


def _parts(examples: Examples, ids: np.ndarray, row_tokens: int, pass_tokens: int) -> list[list[_Row]]:
    """Returns the rows of every batch."""
    found: list[list[_Row]] = []
    for row in sorted(_rows(examples, ids, row_tokens), key=lambda row: -row.num_tokens):
        if found and (len(found[-1]) + 1) * found[-1][0].num_tokens <= pass_tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _rows(examples: Examples, ids: np.ndarray, row_tokens: int) -> list[_Row]:
    """Best-fit decreasing: the longest example first, each into the row of its task that it fills best."""
    rows: list[_Row] = []
    rooms: dict[int, list[tuple[int, int]]] = defaultdict(list)
    """Task -> what is left of its rows, ascending, and which rows they are."""
    sizes = examples.num_computed(ids)
    order = np.lexsort((ids, -sizes))
    for i, size, task in zip(
        ids[order].tolist(), sizes[order].tolist(), examples.task[ids[order]].tolist(), strict=True
    ):
        open_rows = rooms[task]
        best = bisect_left(open_rows, (size, 0))
        if best < len(open_rows):
            room, number = open_rows.pop(best)
        else:
            room, number = row_tokens - len(examples.prefixes[task]), len(rows)
            rows.append(_Row(task, len(examples.prefixes[task]), []))
        rows[number].members.append(i)
        rows[number].num_tokens += size
        insort(open_rows, (room - size, number))
    return rows


class _Tokens:
    """The four arrays of tokens of a batch, while they are filled."""

    def __init__(self, num_rows: int, length: int) -> None:
        self.tokens = np.zeros(num_rows * length, dtype=np.int64)
        self.positions, self.branches = np.zeros_like(self.tokens), np.zeros_like(self.tokens)
        self.segments = np.full_like(self.tokens, -1)
        self._shape = (num_rows, length)

    def put(self, at: np.ndarray, tokens: np.ndarray, positions: np.ndarray, segments: np.ndarray | int) -> None:
        """Writes tokens at flat positions."""
        self.tokens[at], self.positions[at], self.segments[at] = tokens, positions, segments

    def arrays(self) -> list[np.ndarray]:
        """Returns them, int64 [R, L]."""
        flat = (self.tokens, self.positions, self.segments, self.branches)
        return [array.reshape(self._shape) for array in flat]


def _batch(
    examples: Examples, rows: list[_Row], choices: Choices | None, places: bool, length_step: int, row_step: int
) -> PackedBatch:
    length = -(-max(row.num_tokens for row in rows) // length_step) * length_step
    filled = _Tokens(-(-len(rows) // row_step) * row_step, length)
    for number, row in enumerate(rows):
        prefix = examples.prefixes[row.task]
        filled.put(number * length + np.arange(len(prefix)), np.array(prefix), np.arange(len(prefix)), 0)
    members = np.concatenate([row.members for row in rows])
    row_of = np.repeat(np.arange(len(rows)), [len(row.members) for row in rows])
    num_before = np.array([len(examples.prefixes[row.task]) for row in rows])[row_of]
    start = row_of * length + num_before + before_in_group(examples.num_computed(members), row_of)
    segment = before_in_group(np.ones_like(members), row_of) + 1

    num_asked = examples.query_offsets[members + 1] - examples.query_offsets[members]
    asked = ranges(examples.query_offsets[members], num_asked)
    asked_at = ranges(start, num_asked)
    filled.put(
        asked_at,
        examples.query_tokens[asked],
        ranges(num_before, num_asked),
        np.repeat(segment, num_asked),
    )

    documents, example = examples.documents_of(members)
    answers, document = examples.answers_of(documents)
    of_member = example[document]
    begin = examples.answer_offsets[answers]
    num_targets = examples.answer_offsets[answers + 1] - begin
    num_computed = num_targets - 1  # nothing is predicted from an answer's last token
    computed_at = ranges((start + num_asked)[of_member] + before_in_group(num_computed, of_member), num_computed)
    filled.put(
        computed_at,
        examples.answer_tokens[ranges(begin, num_computed)],
        ranges((num_before + num_asked)[of_member], num_computed),
        np.repeat(segment[of_member], num_computed),
    )
    filled.branches[computed_at] = np.repeat(before_in_group(np.ones_like(answers), of_member) + 1, num_computed)

    # An answer's first token is predicted from the last that is asked, the others each from the one before.
    depth = ranges(np.zeros_like(answers), num_targets)
    answer = np.repeat(np.arange(len(answers)), num_targets)
    behind = len(members) + offsets_of(num_computed)[answer] + depth - 1
    predicted_by = np.where(depth == 0, of_member[answer], behind)
    predicting = np.concatenate([start + num_asked - 1, computed_at])
    targets = examples.answer_tokens[ranges(begin, num_targets)].astype(np.int64)
    weights = examples.weights[answers][answer]
    constraints = _constraints(choices, targets, offsets_of(num_targets), predicted_by, len(predicting))
    grades, teacher = examples.grades[documents], examples.teacher[documents]
    asked_of = np.stack([asked_at, np.repeat(np.arange(len(members)), num_asked)])
    written_of = np.stack([computed_at, np.repeat(np.arange(len(answers)), num_computed)])
    arrays = [
        *filled.arrays(), predicting, predicted_by, targets, weights, answer, document, grades, teacher, example,
        *constraints, *_groups(grades, example), asked_of[:, : places * len(asked_at)],
        written_of[:, : places * len(computed_at)],
    ]  # fmt: skip
    return PackedBatch(*map(torch.from_numpy, arrays))


def _groups(grades: np.ndarray, example: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns pairs, level and above of a `PackedBatch`; documents stand by examples."""
    num_documents = np.bincount(example)[example]
    better = np.repeat(np.arange(len(example)), num_documents)
    worse = ranges(np.searchsorted(example, example), num_documents)
    pairs = np.stack([better, worse])[:, grades[better] > grades[worse]]
    order = np.lexsort((grades, example))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (np.diff(example[order]) != 0) | (np.diff(grades[order]) != 0)
    group = np.cumsum(is_first) - 1  # of the sorted documents
    level = np.empty_like(group)
    level[order] = group
    example_of = np.append(example[order][is_first], -1)
    above = np.where(example_of[level + 1] == example, level + 1, -1)
    return pairs, np.where(grades > 0, level, -1), np.where(grades > 0, above, -1)


def _constraints(
    choices: Choices | None, targets: np.ndarray, offsets: np.ndarray, predicted_by: np.ndarray, num_predicting: int
) -> tuple[np.ndarray, ...]:
    """Returns node, columns, column and allowed of a `PackedBatch`; empty where nothing constrains it."""
    if choices is None:
        empty = np.empty(0, np.int64)
        return empty, empty, empty, np.empty((2, 0), np.int64)
    node_of_target, (nodes, allowed_tokens) = choices.along(targets, offsets)
    columns, allowed_columns = np.unique(allowed_tokens, return_inverse=True)
    node = np.empty(num_predicting, np.int64)
    node[predicted_by] = node_of_target  # what one position predicts is chosen at one node
    return node, columns, np.searchsorted(columns, targets), np.stack([nodes, allowed_columns])
