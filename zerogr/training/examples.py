"""Training examples: what a query teaches, as token arrays.

An example is an instruction, a query and the documents that are relevant to it, each with its grade and with the answers that
it teaches: its docid, or terms of it. The query stands once and the answers behind it, each of which sees the query and itself:
the model learns all of them from one pass over the query. What no token is predicted from, the last token of an answer, is not
computed; an answer of one token costs nothing but its place in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from zerogr.llm.chat import ChatFormat
from zerogr.ragged import offsets_of, ranges
from zerogr.training.choices import Choices

MOST_HELD_OUT = 1000
"""Examples that are kept from training, of any number."""


class Relevant(NamedTuple):
    """A document that is relevant to a query, as text."""

    grade: float
    """Above 0; of a document that is not relevant 0."""
    answers: Sequence[tuple[str, float]]
    """What the query teaches of it, and what each answer weighs in the loss."""
    teacher: float = 0.0
    """What a teacher makes of query and document; 0 where there is none."""


class TextExample(NamedTuple):
    """One example as text."""

    instruction: str
    query: str
    documents: Sequence[Relevant]


@dataclass(slots=True)
class Examples:
    """N examples of D documents with A answers, as ragged arrays; example i belongs to the task `task[i]`."""

    prefixes: list[list[int]]
    """Tokens that all examples of a task share, one list per task."""
    task: np.ndarray
    """int32 [N]"""
    query_tokens: np.ndarray
    """int32: what is asked, with the turn marks."""
    query_offsets: np.ndarray
    """int64 [N + 1] into the tokens of queries."""
    first_document: np.ndarray
    """int64 [N + 1]: the documents of each example."""
    grades: np.ndarray
    """float32 [D]"""
    teacher: np.ndarray
    """float32 [D]: a teacher's scores."""
    first_answer: np.ndarray
    """int64 [D + 1]: the answers of each document."""
    weights: np.ndarray
    """float32 [A]: what each token of an answer weighs in the loss."""
    answer_tokens: np.ndarray
    """int32: what is to be written."""
    answer_offsets: np.ndarray
    """int64 [A + 1] into the tokens of answers."""

    def __len__(self) -> int:
        return len(self.task)

    @classmethod
    def build(cls, examples: Iterable[TextExample], chat: ChatFormat, choices: Choices | None = None) -> Examples:
        """Returns examples as arrays, in their order.

        With `choices` an answer ends with its last token that the trie leaves open: what it forces is never asked of the
        model, and not computed.

        Raises:
            UserError: An answer is not in the trie.
        """
        examples = list(examples)
        tasks: dict[str, int] = {}
        queries = chat.queries([example.query for example in examples])
        texts = dict.fromkeys(
            text for example in examples for document in example.documents for text, _ in document.answers
        )
        targets = dict(zip(texts, _targets(list(texts), chat, choices), strict=True))

        def tokenised() -> Iterator[_Example]:
            for example, query in zip(examples, queries, strict=True):
                documents = [
                    _Document(grade, [(targets[text], weight) for text, weight in answers], teacher)
                    for grade, answers, teacher in example.documents
                ]
                yield _Example(query, documents, tasks.setdefault(example.instruction, len(tasks)))

        return cls._of(tokenised(), lambda: [chat.prefix(instruction) for instruction in tasks])

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[list[int], list[int]]]) -> Examples:
        """Returns the examples of (prompt, completion) token lists, the end token included; they share no prefix."""
        examples = (_Example(prompt, [_Document(1.0, [(completion, 1.0)], 0.0)], 0) for prompt, completion in pairs)
        return cls._of(examples, lambda: [[]])

    @classmethod
    def of_groups(cls, asked: list[int], groups: Iterable[Sequence[Sequence[tuple[list[int], float]]]]) -> Examples:
        """Returns examples that all ask the same.

        Args:
            asked: Its tokens.
            groups: Of each example its documents, of each document its answers: tokens, and the weight of each token.
        """
        examples = (_Example(asked, [_Document(1.0, [*answers], 0.0) for answers in group], 0) for group in groups)
        return cls._of(examples, lambda: [[]])

    @classmethod
    def _of(cls, examples: Iterable[_Example], prefixes: Callable[[], list[list[int]]]) -> Examples:
        """Returns the examples as arrays; `prefixes` is asked when all are read."""
        examples = list(examples)
        documents = [document for example in examples for document in example.documents]
        answers = [answer for document in documents for answer in document.answers]
        query_offsets = offsets_of(len(example.query) for example in examples)
        answer_offsets = offsets_of(len(tokens) for tokens, _ in answers)
        return cls(
            prefixes(),
            np.array([example.task for example in examples], dtype=np.int32),
            _flat((example.query for example in examples), query_offsets),
            query_offsets,
            offsets_of(len(example.documents) for example in examples),
            np.array([document.grade for document in documents], dtype=np.float32),
            np.array([document.teacher for document in documents], dtype=np.float32),
            offsets_of(len(document.answers) for document in documents),
            np.array([weight for _, weight in answers], dtype=np.float32),
            _flat((tokens for tokens, _ in answers), answer_offsets),
            answer_offsets,
        )

    def documents_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the documents (int64) of some examples, and the number in `ids` of the example that each is of."""
        return _members(self.first_document, ids)

    def answers_of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the answers (int64) of some documents, and the number in `documents` of the one that each is of."""
        return _members(self.first_answer, documents)

    def take(self, ids: np.ndarray) -> Examples:
        """Returns some examples, in the order of `ids`."""
        documents, _ = self.documents_of(ids)
        answers, _ = self.answers_of(documents)
        num_asked, num_targets = self._num_asked(ids), np.diff(self.answer_offsets)[answers]
        return Examples(
            self.prefixes,
            self.task[ids],
            self.query_tokens[ranges(self.query_offsets[ids], num_asked)],
            offsets_of(num_asked),
            offsets_of(np.diff(self.first_document)[ids]),
            self.grades[documents],
            self.teacher[documents],
            offsets_of(np.diff(self.first_answer)[documents]),
            self.weights[answers],
            self.answer_tokens[ranges(self.answer_offsets[answers], num_targets)],
            offsets_of(num_targets),
        )

    def num_targets_of(self, ids: np.ndarray) -> float:
        """Returns the target tokens of some examples, each as often as it weighs."""
        answers, _ = self.answers_of(self.documents_of(ids)[0])
        lengths = self.answer_offsets[answers + 1] - self.answer_offsets[answers]
        return float((lengths * self.weights[answers]).sum(dtype=np.float64))

    def num_tokens_of(self, ids: np.ndarray) -> int:
        """Returns the tokens of some examples as each stands alone, its task's prefix included."""
        prefix_tokens = np.array([len(prefix) for prefix in self.prefixes], dtype=np.int64)
        return int((self._num_asked(ids) + self._num_targets(ids) + prefix_tokens[self.task[ids]]).sum())

    def num_computed(self, ids: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each example (int64) go through the model: all but the last of each answer."""
        return self._num_asked(ids) + self._num_targets(ids) - self._num_answers(ids)

    def num_predicting_of(self, ids: np.ndarray) -> int:
        """Returns how many positions predict targets of some examples; the first tokens of all answers share one."""
        return int((self._num_targets(ids) - self._num_answers(ids) + 1).sum())

    def _num_asked(self, ids: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = self.query_offsets[ids + 1] - self.query_offsets[ids]
        return lengths

    def _num_answers(self, ids: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = (
            self.first_answer[self.first_document[ids + 1]] - self.first_answer[self.first_document[ids]]
        )
        return lengths

    def _num_targets(self, ids: np.ndarray) -> np.ndarray:
        begin = self.answer_offsets[self.first_answer[self.first_document[ids]]]
        end: np.ndarray = self.answer_offsets[self.first_answer[self.first_document[ids + 1]]]
        return end - begin

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


def batches(order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the ids of one optimiser step after the other, from position `start` of the epoch's order."""
    for position in range(start, len(order), batch_size):
        yield order[position : position + batch_size]


class _Document(NamedTuple):
    """A document that is relevant or not, as tokens."""

    grade: float
    answers: list[tuple[list[int], float]]
    """The tokens and the weight of each."""
    teacher: float


class _Example(NamedTuple):
    """One example as tokens."""

    query: list[int]
    """Between the task's prefix and the answers."""
    documents: list[_Document]
    task: int


def _targets(answers: list[str], chat: ChatFormat, choices: Choices | None) -> list[list[int]]:
    """Returns the tokens of each answer with its end, or up to its last choice."""
    tokens, offsets = chat.docids(answers)
    if choices:
        return choices.open_parts(tokens, offsets)
    return [[*answer.tolist(), chat.end_token_id] for answer in np.split(tokens, offsets[1:-1])[: len(answers)]]


def _flat(tokens: Iterable[list[int]], offsets: np.ndarray) -> np.ndarray:
    return np.fromiter(chain.from_iterable(tokens), np.int32, int(offsets[-1]))


def _members(offsets: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members of some groups of a ragged array, and the number in `groups` of the one that each is of."""
    lengths = offsets[groups + 1] - offsets[groups]
    return ranges(offsets[groups], lengths), np.repeat(np.arange(len(groups)), lengths)
