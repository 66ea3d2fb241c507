"""Collision resolution: afterwards only true duplicates share a docid.

Documents with equal content are one group, represented by its first row. Then, in rounds: every group without a docid
claims its next candidate; a candidate already taken is skipped, and of several claims the smallest row wins. Groups that
run out of candidates are told apart by terms of their own that the docid's owner lacks, and as a last resort by an ordinal.

The result is a function of the rows alone, whatever the order or number of shards. The rounds are array operations over
integer codes (a sort per round); only groups whose candidates are all taken are visited one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(slots=True)
class Resolution:
    """The docid of every row, and how the collisions went."""

    docids: list[str]
    choice: np.ndarray
    """int64 [N]: number of the candidate that became the docid; -1 if it had to be told apart by terms or an ordinal."""
    counts: dict[str, int] = field(default_factory=dict)
    """`duplicates`: rows with the content of an earlier one; `collisions`: groups whose first candidate was taken;
    `resolved_by_candidate`, `resolved_by_terms`, `resolved_by_ordinal`: how those ended."""


def resolve(
    content: Sequence[str] | pa.Array, candidates: pa.ListArray, terms: pa.ListArray, max_words: int
) -> Resolution:
    """Returns one docid per row.

    Args:
        content: Content hash of each row [N], in row order.
        candidates: Docids each row could have [N], best first; at least one each.
        terms: Words of each document [N], heaviest first, to tell colliding documents apart.
        max_words: Most words of a docid.
    """
    num_rows = len(candidates)
    offsets = candidates.offsets.to_numpy()
    encoded = candidates.values.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    group = _first_row_of_equal(pa.array(content))
    representatives = np.flatnonzero(group == np.arange(num_rows))

    owner = np.full(len(encoded.dictionary), -1, dtype=np.int64)  # code of a docid -> the row that has it
    choice = np.full(num_rows, -1, dtype=np.int64)
    waiting = representatives
    num_candidates = np.diff(offsets)
    for number in range(int(num_candidates.max(initial=0))):
        claimants = waiting[num_candidates[waiting] > number]
        claims = codes[offsets[claimants] + number]
        is_free = owner[claims] < 0
        won, first = np.unique(
            claims[is_free], return_index=True
        )  # rows ascend, so the first claim is the smallest row's
        winners = claimants[is_free][first]
        owner[won] = winners
        choice[winners] = number
        waiting = waiting[choice[waiting] < 0]

    dictionary = encoded.dictionary
    texts: list[str | None] = [None] * num_rows
    for row in representatives[choice[representatives] >= 0].tolist():
        texts[row] = dictionary[int(codes[offsets[row] + choice[row]])].as_py()
    taken = {text for text in texts if text is not None}
    num_by_terms = num_by_ordinal = 0
    for row in waiting.tolist():
        first_choice = dictionary[int(codes[offsets[row]])].as_py()
        rival = int(owner[codes[offsets[row]]])
        variants = _told_apart(first_choice.split(" "), terms[row].as_py(), set(terms[rival].as_py()), max_words)
        text = next((variant for variant in variants if variant not in taken), None)
        if text is None:
            text = next(variant for variant in _numbered(first_choice.split(" "), max_words) if variant not in taken)
            num_by_ordinal += 1
        else:
            num_by_terms += 1
        texts[row] = text
        taken.add(text)

    docids = [text for row in group.tolist() if (text := texts[row]) is not None]
    choice = choice[group]
    counts = {
        "duplicates": num_rows - len(representatives),
        "collisions": int((choice[representatives] != 0).sum()),
        "resolved_by_candidate": int((choice[representatives] > 0).sum()),
        "resolved_by_terms": num_by_terms,
        "resolved_by_ordinal": num_by_ordinal,
    }
    return Resolution(docids, choice, counts)


def _first_row_of_equal(content: pa.Array) -> np.ndarray:
    """Returns int64 [N]: the first row that holds the same content."""
    codes = content.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse]


def _told_apart(docid: list[str], own: list[str], rival: set[str], max_words: int) -> Iterator[str]:
    """Yields the docid with one word of the document added (or put last), words that the rival lacks first."""
    spare = [term for term in own if term not in docid]
    for term in sorted(spare, key=lambda term: term in rival):
        yield " ".join([*docid[: max_words - 1], term])


def _numbered(docid: list[str], max_words: int) -> Iterator[str]:
    number = 2
    while True:
        yield " ".join([*docid[: max_words - 1], str(number)])
        number += 1
