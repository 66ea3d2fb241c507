"""Inverted files: postings in the order of the documents are dealt out to groups, within a group by document.

A part of the documents is turned into postings as it comes, so that the documents themselves are never all in memory. When all
have come, each part is dealt out to its groups' places in the final arrays and forgotten; a count of postings per group is
enough for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zerogr.ragged import offsets_of


@dataclass(slots=True)
class Postings:
    """p postings of some documents, in the order of the documents."""

    group: np.ndarray
    """int32 [p]"""
    row: np.ndarray
    """int32 [p], never falling"""
    values: dict[str, np.ndarray]
    """What each posting holds, [p] each."""


def deal_out(parts: list[Postings], num_groups: int) -> dict[str, np.ndarray]:
    """Returns all postings by group, within a group by row: `group_begin` int64 [G + 1], `rows` int32 [P], and the values.

    The list of parts, whose rows ascend, is emptied.
    """
    size = np.zeros(num_groups, dtype=np.int64)
    for part in parts:
        groups, counts = np.unique(part.group, return_counts=True)
        size[groups] += counts
    group_begin = offsets_of(size)
    kinds = {
        "rows": np.dtype(np.int32),
        **{name: values.dtype for name, values in (parts[0].values if parts else {}).items()},
    }
    arrays = {name: np.empty(group_begin[-1], dtype) for name, dtype in kinds.items()}
    filled = group_begin[:-1].copy()
    parts.reverse()
    while parts:
        part = parts.pop()
        by_group = np.argsort(part.group, kind="stable")
        group = part.group[by_group]
        at = filled[group] + position_in_run(group)
        for name, values in {"rows": part.row, **part.values}.items():
            arrays[name][at] = values[by_group]
        filled[group] = at + 1  # the last of each group stays
    return {"group_begin": group_begin, **arrays}


def postings_of(group_begin: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all postings (int64 [p]) of groups (int [g]), and the number in `groups` of each."""
    begin = group_begin[groups]
    count = group_begin[groups + 1] - begin
    number = np.arange(len(groups)).repeat(count)
    return (begin - offsets_of(count)[:-1])[number] + np.arange(len(number)), number


def posting_of(group_begin: np.ndarray, rows: np.ndarray, group: int, row: int) -> int | None:
    """Returns the posting of a group for a row; None if there is none."""
    begin, end = int(group_begin[group]), int(group_begin[group + 1])
    at = begin + int(np.searchsorted(rows[begin:end], np.int32(row)))
    return at if at < end and rows[at] == row else None


def position_in_run(values: np.ndarray) -> np.ndarray:
    """Returns how many equal values (int [n], never falling) stand before each (int64 [n])."""
    begin = np.flatnonzero(np.diff(values, prepend=-1))
    return np.arange(len(values)) - begin.repeat(np.diff(begin, append=len(values)))
