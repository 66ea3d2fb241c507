"""Building the arrays of a docid trie from unsorted token sequences; see `zerogr.trie` for what they mean.

A radix sort from the front, then one comparison of neighbours: the length of the prefix that each sorted docid shares with
the one before it says where every node begins. All of it is numpy over the whole corpus, a part at a time where temporaries
would otherwise outgrow the trie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from zerogr.ragged import offsets_of

PART = 2**16
"""Items that one step handles at a time: temporaries as long as the input would take several times the trie's memory."""

Sequences = Sequence[Sequence[int]] | tuple[np.ndarray, np.ndarray]


def as_ragged(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """The sequences as (tokens [T], offsets int64 [N + 1]), checked."""
    if isinstance(sequences, tuple) and len(sequences) == 2 and isinstance(sequences[0], np.ndarray):
        tokens, offsets = sequences[0], np.asarray(sequences[1], dtype=np.int64)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(tokens) or np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the number of tokens, {len(tokens)}")
    else:
        offsets = offsets_of(map(len, sequences))
        flat: Iterator[int] = chain.from_iterable(sequences)
        tokens = np.fromiter(flat, dtype=np.int64, count=int(offsets[-1]))
    if len(tokens) and (tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max):
        raise ValueError(f"token ids must be in 0 … 2^31 - 1, got {tokens.min()} … {tokens.max()}")
    return tokens, offsets


def build_arrays(tokens: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of `DocidTrie` for the ragged sequences (tokens [T], offsets [N + 1])."""
    vocabulary, codes = _encode(tokens)
    order = _sort(codes, offsets)
    begin, length = _narrow(offsets[order]), _narrow(np.diff(offsets)[order])
    lcp = _common_prefixes(codes, begin, length)

    # Documents that share a docid are neighbours now: keep the first of each.
    is_distinct = np.ones(len(order), dtype=bool)
    is_distinct[1:] = (lcp[1:] != length[1:]) | (length[1:] != length[:-1])
    docid_rows = _narrow(np.append(np.flatnonzero(is_distinct), len(order)))
    begin = begin[is_distinct]
    length = length[is_distinct]
    lcp = lcp[is_distinct]

    # A docid is stored in the head down to the first depth at which it is alone, or to its end.
    lcp_next = np.full_like(lcp, -1)
    lcp_next[:-1] = lcp[1:]
    head_depth = np.minimum(length, np.maximum(lcp, lcp_next) + 1)
    edge_token, first_child, first_docid = _build_head(codes, begin, lcp, head_depth)

    tail_begin, tail_length = begin + head_depth, length - head_depth
    tail_offsets = offsets_of(tail_length)
    tail_tokens = np.empty(tail_offsets[-1], dtype=codes.dtype)
    for part in parts(len(begin)):
        offsets_here = tail_offsets[part.start : part.stop + 1]
        first, last = offsets_here[0], offsets_here[-1]
        source = np.repeat(tail_begin[part] - offsets_here[:-1], tail_length[part]) + np.arange(first, last)
        tail_tokens[first:last] = codes[source]
    if len(order) == 0:  # the root's range of docids is then one docid without tokens or documents
        docid_rows = tail_offsets = np.zeros(2, dtype=np.int64)
    return {
        "vocabulary": vocabulary,
        "edge_token": edge_token,
        "first_child": _narrow(first_child),
        "first_docid": _narrow(first_docid),
        "tail_tokens": tail_tokens,
        "tail_offsets": _narrow(tail_offsets),
        "docid_rows": _narrow(docid_rows),
        "row_order": _narrow(order),
    }


def _encode(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the sorted tokens that occur int32, every token's index among them uint16 or uint32 [T])."""
    occurs = np.zeros(int(tokens.max()) + 1 if len(tokens) else 0, dtype=bool)
    for part in parts(len(tokens)):
        occurs[tokens[part]] = True
    vocabulary = np.flatnonzero(occurs).astype(np.int32)
    code_of_token = np.zeros(len(occurs), dtype=np.uint16 if len(vocabulary) < 2**16 else np.uint32)
    code_of_token[vocabulary] = np.arange(len(vocabulary))
    codes = np.empty(len(tokens), dtype=code_of_token.dtype)
    for part in parts(len(tokens)):
        codes[part] = code_of_token[tokens[part]]
    return vocabulary, codes


def _sort(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rows (int32 or int64 [N]) in the lexicographic order of their codes; equal sequences stay in row order.

    A radix sort from the front: as many codes as fit in 64 bits are packed into one key, and only rows that are still
    tied, where not all of them are at their end, go on to the next key.
    """
    codes_per_key = 8 // codes.dtype.itemsize
    length = _narrow(np.diff(offsets))
    order = _narrow(np.arange(len(length)))
    tied = order.copy()  # places in `order` whose rows are not yet told apart from a neighbour
    group = np.zeros_like(order)  # ties are among places of one group
    depth = 0
    while len(tied):
        rows = order[tied]
        key = np.empty(len(rows), dtype=np.uint64)
        for part in parts(len(rows)):
            key[part] = _packed(codes, offsets[rows[part]] + depth, length[rows[part]] - depth, codes_per_key)
        by_key = np.lexsort((key, group))
        rows = rows[by_key]
        key = key[by_key]
        group = group[by_key]
        del by_key
        order[tied] = rows

        like_previous = np.zeros(len(rows), dtype=bool)
        like_previous[1:] = (key[1:] == key[:-1]) & (group[1:] == group[:-1])
        depth += codes_per_key
        np.cumsum(~like_previous, dtype=group.dtype, out=group)
        group -= 1
        has_more = np.zeros(len(rows), dtype=bool)  # by group; its rows that are at their end stay, to come first
        has_more[group[length[rows] > depth]] = True
        goes_on = (like_previous | np.append(like_previous[1:], False)) & has_more[group]
        group = group[goes_on]
        tied = tied[goes_on]
    return order


def _packed(codes: np.ndarray, begin: np.ndarray, num_left: np.ndarray, codes_per_key: int) -> np.ndarray:
    """The next codes of sequences (from `begin`, `num_left` of them; both [n]) as one sort key each (uint64 [n])."""
    key = np.zeros(len(begin), dtype=np.uint64)
    for position in range(codes_per_key):
        has_code = num_left > position
        code = np.zeros(len(begin), dtype=np.uint64)  # 0 = past the end, so that a prefix comes first
        code[has_code] = codes[begin[has_code] + position] + np.uint64(1)
        key = (key << np.uint64(codes.dtype.itemsize * 8)) | code
    return key


def _common_prefixes(codes: np.ndarray, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Length (int [N]) of the prefix that each sorted sequence shares with the one before it; -1 for the first."""
    lcp = np.zeros_like(length)
    for part in parts(len(begin)):
        alike = np.arange(max(part.start, 1), part.stop)
        depth = 0
        while len(alike):
            alike = alike[(length[alike] > depth) & (length[alike - 1] > depth)]
            alike = alike[codes[begin[alike] + depth] == codes[begin[alike - 1] + depth]]
            depth += 1
            lcp[alike] = depth
    lcp[:1] = -1
    return lcp


def _build_head(
    codes: np.ndarray, begin: np.ndarray, lcp: np.ndarray, head_depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(edge_token [M], first_child [M + 1], first_docid [M]) of the stored nodes in level order.

    The docid d is the first below a node of depth l exactly if `lcp[d] < l <= head_depth[d]`, so each level is a
    selection of docids, already sorted, and the children of a node lie between its own first docid and that of the next
    node.
    """
    reaching = _narrow(np.arange(len(begin)))  # docids with head nodes at this depth or below
    edge_tokens, first_children, first_docids = [np.zeros(1, codes.dtype)], [], [np.zeros(1, reaching.dtype)]
    num_nodes = 1
    depth = 0
    while len(first_docids[-1]):
        depth += 1
        reaching = reaching[head_depth[reaching] >= depth]
        level = reaching[lcp[reaching] < depth]
        first_children.append(_narrow(num_nodes + np.searchsorted(level, first_docids[-1])))
        first_docids.append(level)
        edge_tokens.append(codes[begin[level] + depth - 1])
        num_nodes += len(level)
    first_children.append(_narrow(np.array([num_nodes])))
    return np.concatenate(edge_tokens), np.concatenate(first_children), np.concatenate(first_docids)


def parts(length: int) -> Iterator[slice]:
    """Slices of `PART` items that together cover `length` items."""
    for start in range(0, length, PART):
        yield slice(start, min(start + PART, length))


def _narrow(array: np.ndarray) -> np.ndarray:
    """The same non-negative integers in four bytes each where they fit."""
    return array.astype(np.int32 if array.max(initial=0) <= np.iinfo(np.int32).max else np.int64, copy=False)
