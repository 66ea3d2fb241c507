"""Training examples in tests: made in a line, and read back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.training.examples import Examples, Relevant, TextExample


def example(instruction: str, query: str, *answers: tuple[str, float]) -> TextExample:
    """Returns the example of one relevant document of grade 1."""
    return TextExample(instruction, query, [Relevant(1.0, answers)])


def asked(examples: Examples, i: int) -> list[int]:
    """Returns the tokens before the answers of an example, its task's prefix first."""
    query = examples.query_tokens[examples.query_offsets[i] : examples.query_offsets[i + 1]]
    return [*examples.prefixes[examples.task[i]], *query.tolist()]


def answers(examples: Examples, i: int) -> list[tuple[list[int], float]]:
    """Returns tokens and weight of the answers of an example."""
    numbers, _ = examples.answers_of(examples.documents_of(np.array([i]))[0])
    return [
        (
            examples.answer_tokens[examples.answer_offsets[a] : examples.answer_offsets[a + 1]].tolist(),
            float(examples.weights[a]),
        )
        for a in numbers
    ]


def targets(examples: Examples, i: int) -> list[int]:
    """Returns the tokens of an example's only answer."""
    [(tokens, _)] = answers(examples, i)
    return tokens


def of_tokens(
    prefixes: list[list[int]], rows: Sequence[tuple[int, list[int], list[tuple[list[int], float]]]]
) -> Examples:
    """Returns examples of (task, query, answers with their weights), one document each."""
    pieces = [piece for _, _, of_example in rows for piece in of_example]

    def flat(lists: list[list[int]]) -> np.ndarray:
        return np.array([token for tokens in lists for token in tokens], dtype=np.int32)

    return Examples(
        prefixes=prefixes,
        task=np.array([task for task, _, _ in rows], dtype=np.int32),
        query_tokens=flat([query for _, query, _ in rows]),
        query_offsets=np.cumsum([0, *(len(query) for _, query, _ in rows)]),
        first_document=np.arange(len(rows) + 1),
        grades=np.ones(len(rows), dtype=np.float32),
        teacher=np.zeros(len(rows), dtype=np.float32),
        first_answer=np.cumsum([0, *(len(of_example) for _, _, of_example in rows)]),
        weights=np.array([weight for _, weight in pieces], dtype=np.float32),
        answer_tokens=flat([tokens for tokens, _ in pieces]),
        answer_offsets=np.cumsum([0, *(len(tokens) for tokens, _ in pieces)]),
    )
