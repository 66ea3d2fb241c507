"""Tracing: what the retriever's model thought of given documents, for an explanation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.decoding.trace import Step
from zerogr.ranking.ranker import Leaves, Ranker
from zerogr.search.answer import Documents, Traced
from zerogr.search.writer import Prompt, Writer


def trace(
    writer: Writer,
    ranker: Ranker,
    documents: Documents,
    queries: Sequence[str],
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
) -> list[list[Traced]]:
    """Returns what the model thought of the documents in `rows`, for each query, as `ranker` sees it."""
    if ranker.num_traced:
        steps: list[list[list[Step]]] = [[[]] * len(of_query) for of_query in rows]
        leaves = writer.write(prompts, ranker.num_traced, {"strategy": "beam", "normalise": "allowed"})
    else:
        docids = [[documents.docids[row].as_py() for row in of_query] for of_query in rows]
        steps = writer.score(prompts, docids)
        leaves = [_leaves_of(*of_query) for of_query in zip(rows, docids, steps, strict=True)]
    traced = []
    for query, of_query, found, paths in zip(queries, rows, leaves, steps, strict=True):
        parts = [ranker.parts(query, found, row) for row in of_query]
        traced.append([
            Traced(*documents.names(row), sum(part.score for part in of_row), of_row, path)
            for row, of_row, path in zip(of_query, parts, paths, strict=True)
        ])  # fmt: skip
    return traced


def _leaves_of(rows: Sequence[int], docids: list[str], paths: list[list[Step]]) -> Leaves:
    """Returns the docids of documents as leaves, from the steps of each."""
    scores = np.array([sum(step.log_prob for step in path) for path in paths], dtype=np.float64)
    return Leaves(np.array(rows, dtype=np.int64), scores, docids.__getitem__)
