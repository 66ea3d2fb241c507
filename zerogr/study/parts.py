"""Parts: a corpus that grows. D0, what an index begins with, and increments D1, D2, ..., each a folder that can be indexed.

Which document belongs to which part is a function of the corpus and a seed, or of a date in the documents' metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from zerogr.config.tree import Config
from zerogr.corpus.document import Document
from zerogr.corpus.stage import checked_documents
from zerogr.errors import UserError
from zerogr.store import storage


def split(num_documents: int, num_increments: int, initial_fraction: float, seed: int) -> list[np.ndarray]:
    """Returns the documents (int64, ascending) of D0 and of each increment, drawn by `seed`."""
    order = np.random.default_rng([seed, 0xD0]).permutation(num_documents)
    return [np.sort(part) for part in _cut(order, num_increments, initial_fraction)]


def split_by_date(dates: Sequence[Any], num_increments: int, initial_fraction: float) -> list[np.ndarray]:
    """Returns the same by the documents' dates, the oldest first; of equal dates, the earlier row."""
    order = np.array(sorted(range(len(dates)), key=lambda row: (dates[row], row)), dtype=np.int64)
    return [np.sort(part) for part in _cut(order, num_increments, initial_fraction)]


def _cut(order: np.ndarray, num_increments: int, initial_fraction: float) -> list[np.ndarray]:
    num_initial = round(initial_fraction * len(order))
    if not 0 < num_initial <= len(order) - num_increments:
        raise UserError(
            f"{len(order)} documents cannot be cut into {initial_fraction:.0%} and {num_increments} increments of one or more"
        )
    return [order[:num_initial], *np.array_split(order[num_initial:], num_increments)]


def write_parts(config: Config, out: str) -> list[set[str]]:
    """Writes the corpus of every part below `out` as `D<i>/corpus.jsonl`, and returns the documents of each.

    Raises:
        UserError: There are fewer documents than parts, or one has no date where dates are asked for.
    """
    study = config.study
    documents = [row for row in checked_documents(config) if isinstance(row, Document)]
    if study.date_key is None:
        parts = split(len(documents), study.num_increments, study.initial_fraction, config.seed)
    else:
        parts = split_by_date(_dates(documents, study.date_key), study.num_increments, study.initial_fraction)
    for number, part in enumerate(parts):
        lines = [
            json.dumps(
                {"_id": row.doc_id, "title": row.title, "text": row.text, "kind": row.kind, "metadata": row.metadata},
                ensure_ascii=False,
            )
            for row in (documents[i] for i in part)
        ]
        storage.write_bytes(storage.join(out, f"D{number}", "corpus.jsonl"), ("\n".join(lines) + "\n").encode())
    return [{documents[i].doc_id for i in part} for part in parts]


def _dates(documents: Sequence[Document], key: str) -> list[Any]:
    dates = [document.metadata.get(key) for document in documents]
    if missing := [document.doc_id for document, date in zip(documents, dates, strict=True) if date is None]:
        raise UserError(
            f"study.date_key is '{key}', and the metadata of {len(missing)} documents lacks it; first {missing[0]!r}"
        )
    return dates
