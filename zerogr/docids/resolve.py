"""Collision resolution: afterwards only true duplicates share a docid.

Documents with equal content are one group, represented by its first row. Then, in rounds: every group without a docid
claims its next candidate; a candidate already taken is skipped, and of several claims the smallest row wins. Groups that
run out of candidates are told apart by their scheme, in row order: by words of their own that the docid's owner lacks, say,
and as a last resort by an ordinal.

Texts are compared by 64-bit keys. If two different texts ever share a key, one of them looks taken and its document gets
another docid; two documents never share a docid for it. Content is compared by 128 bits of a cryptographic hash.

The result is a function of the rows alone, whatever their shards and however many threads read them. The rounds are sorts over
all rows at once, of about 150 bytes per row with two candidates; terms are read only of groups that are to be told apart and of
the owners of their docids, `PART` groups at a time, and only these are visited one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.progress import Progress
from zerogr.ragged import offsets_of
from zerogr.text.words import key_of

PART = 2**18
"""Groups that are told apart at a time: about 200 MB of terms."""

Read = Callable[[int, list[str]], pa.Table]
"""Returns some columns of the n-th shard of proposals."""
_Result = TypeVar("_Result")


@dataclass(slots=True)
class Resolution:
    """The docid of every row, and how the collisions went."""

    docids: list[str]
    choice: np.ndarray
    """int64 [N]: number of the candidate that became the docid; -1 if it had to be told apart by terms or an ordinal."""
    counts: dict[str, int]
    """As in `Assignment`, and so is the last."""
    collisions_per_round: list[int]


@dataclass(slots=True)
class Assignment:
    """Which docid every row of many shards gets, in arrays."""

    starts: np.ndarray
    """int64 [shards + 1]: the first row of each shard, and the number of rows N."""
    group: np.ndarray
    """int64 [N]: the first row with the same content, whose docid it is."""
    choice: np.ndarray
    """int64 [N]: number of the candidate of row `group` that became the docid; -1 for one in `texts`."""
    told_apart: np.ndarray
    """int64 [W]: the groups, by their first rows, ascending, whose docid is none of their candidates."""
    texts: pa.Array
    """string [W]: those docids."""
    counts: dict[str, int]
    """`duplicates`: rows with the content of an earlier one; `collisions`: groups whose first candidate was taken;
    `resolved_by_candidate`, `resolved_by_terms`, `resolved_by_ordinal`: how those ended."""
    collisions_per_round: list[int]
    """Groups without a docid of their own after each round of candidates, after terms, and after ordinals, where it is 0."""


def content_of(title: str, text: str) -> bytes:
    """Returns 16 bytes that stand for a document's content."""
    return hashlib.sha256(f"{title}\x1f{text}".encode()).digest()[:16]


class TellsApart(Protocol):
    """What the resolution asks of a scheme; see `zerogr.docids.scheme.Scheme`."""

    def tell_apart(self, docid: str, own: Sequence[str], rival: Collection[str]) -> Iterator[str]: ...

    def numbered(self, docid: str, number: int) -> str: ...


def resolve(
    content: Sequence[str] | pa.Array, candidates: pa.ListArray, own: pa.ListArray, scheme: TellsApart
) -> Resolution:
    """Returns one docid per row, for rows in memory.

    Args:
        content: Content of each row [N], in row order, or what stands for it.
        candidates: Docids each row could have [N], best first; at least one each.
        own: What the scheme knows of each document [N], to tell colliding documents apart.
        scheme: Tells them apart.
    """
    hashes = [content_of("", str(text)) for text in content]
    table = pa.table(
        {
            "content": pa.array(hashes, pa.binary(16)),
            "keys": pa.array([[key_of(text) for text in texts] for texts in candidates.to_pylist()], pa.list_(pa.uint64())),
            "candidates": candidates,
            "own": own,
        }
    )  # fmt: skip
    assignment = resolve_shards(lambda _, columns: table.select(columns), 1, scheme)
    docids = pick(candidates, np.maximum(assignment.choice, 0)).to_pylist()
    for row, text in zip(assignment.told_apart.tolist(), assignment.texts.to_pylist(), strict=True):
        docids[row] = text
    return Resolution(
        [docids[row] for row in assignment.group.tolist()],
        assignment.choice,
        assignment.counts,
        assignment.collisions_per_round,
    )


def resolve_shards(
    read: Read,
    num_shards: int,
    scheme: TellsApart,
    *,
    num_workers: int = 1,
    has: Callable[[str], bool] = lambda docid: False,
) -> Assignment:
    """Returns the docid of every row of all shards.

    Args:
        read: Gives the columns `content` (binary(16)), `keys` (list of uint64: `key_of` each candidate), `candidates` and
            `own` (lists of strings) of a shard's rows; called from several threads.
        num_shards: Their order is that of the rows.
        scheme: Tells documents apart whose candidates are all taken.
        num_workers: Threads that read.
        has: Whether a document that is not among these rows has a docid. Candidates are not asked about.
    """
    heads = map_shards("resolution", partial(_head, read), range(num_shards), num_workers)
    starts = offsets_of([len(num_candidates) for _, num_candidates, _ in heads])
    group = _first_of_equal(_joined([content for content, _, _ in heads], np.uint64).reshape(-1, 2))
    offsets = offsets_of(_joined([num_candidates for _, num_candidates, _ in heads], np.int64))
    keys = _joined([keys for _, _, keys in heads], np.uint64)
    del heads
    groups = np.flatnonzero(group == np.arange(len(group)))

    choice, taken, owner, num_waiting = _claim(keys, offsets, groups)
    waiting = groups[choice[groups] < 0]
    rivals = owner[np.searchsorted(taken, keys[offsets[waiting]])]
    num_by_candidate = len(groups) - int((choice[groups] == 0).sum()) - len(waiting)
    del keys, offsets, owner
    docids = _Docids(taken, scheme, has)
    gathered = partial(gather, read, starts, num_workers=num_workers)
    texts = [
        pa.array(docids.tell_apart(_with_rivals(gathered, waiting[part], rivals[part])), pa.string())
        for part in (slice(start, start + PART) for start in range(0, len(waiting), PART))
    ]
    return Assignment(
        starts,
        group,
        choice[group],
        waiting,
        pa.concat_arrays([pa.array([], pa.string()), *texts]),
        {
            "duplicates": len(group) - len(groups),
            "collisions": num_by_candidate + len(waiting),
            "resolved_by_candidate": num_by_candidate,
            "resolved_by_terms": len(waiting) - docids.num_ordinals,
            "resolved_by_ordinal": docids.num_ordinals,
        },
        [*num_waiting, docids.num_ordinals, len(groups) - len(docids)],
    )


def gather(read: Read, starts: np.ndarray, rows: np.ndarray, columns: list[str], *, num_workers: int = 1) -> pa.Table:
    """Returns columns of some rows (at least one), in the order given.

    Every shard concerned is read once, and nothing but the rows wanted is kept of it.
    """
    wanted, inverse = np.unique(rows, return_inverse=True)
    places, begins = np.unique(np.searchsorted(starts, wanted, side="right") - 1, return_index=True)
    ends = np.append(begins[1:], len(wanted))

    def take(number: int) -> pa.Table:
        place = int(places[number])
        return read(place, columns).take(wanted[begins[number] : ends[number]] - starts[place])

    tables = map_shards("resolution", take, range(len(places)), num_workers)
    return pa.concat_tables(tables).combine_chunks().take(inverse)


def pick(lists: pa.ListArray, numbers: np.ndarray) -> pa.Array:
    """Returns one value of each list, the one of that number."""
    return lists.values.take(lists.offsets.to_numpy()[:-1] + numbers)


def map_shards(name: str, function: Callable[[int], _Result], shards: Sequence[int], num_workers: int) -> list[_Result]:
    """Returns what a function makes of every shard, in their order; `num_workers` threads call it."""
    progress = Progress(name, total=len(shards), unit="shards")
    results = []
    try:
        with ThreadPoolExecutor(num_workers) as threads:  # starts none before it is given work
            for result in (threads.map if min(num_workers, len(shards)) > 1 else map)(function, shards):
                results.append(result)
                progress.advance(1)
    finally:
        progress.close()
    return results


def _head(read: Read, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns content (uint64 [2n]), number of candidates (int64 [n]) and their keys of a shard's rows."""
    table = read(shard, ["content", "keys"])
    content, keys = (table.column(name).combine_chunks() for name in ("content", "keys"))
    # Copies: the table and what else it holds can go.
    hashes = np.frombuffer(content.buffers()[1], dtype="<u8")[2 * content.offset :][: 2 * len(content)]
    return hashes.copy(), np.diff(keys.offsets.to_numpy()).astype(np.int64), keys.flatten().to_numpy().copy()


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _first_of_equal(content: np.ndarray) -> np.ndarray:
    """Returns int64 [N]: the first row that holds the same content, of content uint64 [N, 2]."""
    order = np.lexsort((content[:, 0], content[:, 1]))  # stable: of equal rows, the first comes first
    is_first = np.ones(len(order), dtype=bool)
    in_order = content[order]
    is_first[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = order[is_first][np.cumsum(is_first) - 1]
    return group


def _claim(
    keys: np.ndarray, offsets: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Gives out candidates in rounds, to groups of rows that are their first rows, ascending.

    Returns:
        choice: int64 [N], -1 for none.
        taken: uint64 [T], sorted keys of the docids given out.
        owner: int64 [T], their rows.
        num_waiting: Groups without a docid after each round.
    """
    num_candidates = np.diff(offsets)
    choice = np.full(len(num_candidates), -1, dtype=np.int64)
    taken, owner = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    waiting, num_waiting = groups, []
    for number in range(int(num_candidates.max(initial=0))):
        claimants = waiting[num_candidates[waiting] > number]
        claims = keys[offsets[claimants] + number]
        is_free = ~_contains(taken, claims)
        # Rows ascend, so the first of equal claims is the smallest row's.
        won, first = np.unique(claims[is_free], return_index=True)
        winners = claimants[is_free][first]
        place = np.searchsorted(taken, won)
        taken, owner = np.insert(taken, place, won), np.insert(owner, place, winners)
        choice[winners] = number
        waiting = waiting[choice[waiting] < 0]
        num_waiting.append(len(waiting))
    return choice, taken, owner, num_waiting


def _contains(taken: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns which of the keys are in a sorted array (bool)."""
    place = np.searchsorted(taken, keys)
    found = np.zeros(len(keys), dtype=bool)
    inside = place < len(taken)
    found[inside] = taken[place[inside]] == keys[inside]
    return found


def _with_rivals(
    gathered: Callable[[np.ndarray, list[str]], pa.Table], rows: np.ndarray, rivals: np.ndarray
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields the first candidate, the terms (`own`), and those of the rival of each row."""
    own = gathered(rows, ["candidates", "own"])
    table = pa.table(
        [
            pc.list_element(own.column("candidates"), 0),
            own.column("own"),
            gathered(rivals, ["own"]).column("own"),
        ],
        names=["docid", "own", "rival"],
    )
    for batch in table.to_batches(max_chunksize=1024):  # Python lists take ten times the memory
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Docids:
    """The docids given out so far, and new ones for groups whose candidates are all taken.

    Attributes:
        num_ordinals: Docids that end with an ordinal.
    """

    def __init__(self, taken: np.ndarray, scheme: TellsApart, has: Callable[[str], bool]) -> None:
        """`taken` are the sorted keys of the docids given out before; of those given out elsewhere `has` knows."""
        self._taken, self._scheme, self._has = taken, scheme, has
        self._recent: set[int] = set()  # keys that are not yet in `_taken`
        self._next_number: dict[int, int] = {}  # by key of the docid numbered 0; smaller ones are taken
        self.num_ordinals = 0

    def __len__(self) -> int:
        return len(self._taken) + len(self._recent)

    def tell_apart(self, rows: Iterable[tuple[str, list[str], list[str]]]) -> list[str]:
        """Returns a docid for each row of (first candidate, own terms, terms of the candidate's owner), given out in order."""
        texts = [self._new(docid, own, set(rival)) for docid, own, rival in rows]
        recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        recent.sort()
        self._taken = np.insert(self._taken, np.searchsorted(self._taken, recent), recent)
        self._recent.clear()
        return texts

    def _new(self, docid: str, own: list[str], rival: set[str]) -> str:
        for text in self._scheme.tell_apart(docid, own, rival):
            if self._add(text):
                return text
        self.num_ordinals += 1
        key = key_of(self._scheme.numbered(docid, 0))
        number = self._next_number.get(key, 2)
        while not self._add(text := self._scheme.numbered(docid, number)):
            number += 1
        self._next_number[key] = number + 1
        return text

    def _add(self, text: str) -> bool:
        key = key_of(text)
        place = int(self._taken.searchsorted(np.uint64(key)))
        if key in self._recent or (place < len(self._taken) and int(self._taken[place]) == key) or self._has(text):
            return False
        self._recent.add(key)
        return True
