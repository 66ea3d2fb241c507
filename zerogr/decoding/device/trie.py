"""A docid trie as tensors: what may follow a prefix, for the prefixes of all queries at once.

The head of the trie (`zerogr.trie.trie`) becomes a table of *options*: everything that may follow a stored node, the end of a
docid included, in the order of the tokens. The options of a node are consecutive.

    nodes     [M, 2]  where the node's options end, and how many there are
    options   [O, 4]  token, node it leads to, first docid below, how many docids are below

Tokens are places in the trie's sorted vocabulary; `num_tokens` stands for the end. Nodes with one docid have no options: its
tail is forced, and only the normalisation `vocabulary` has to look at it. A filter changes the last column alone.

Memory: 16 bytes per node and 32 per option, of which there are little more than docids. Made once per trie.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from zerogr.ragged import offsets_of
from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.nodes import StoredTrie

TOKEN, NODE, DOCID, BELOW = range(4)
"""Columns of `options`."""


class Levels(NamedTuple):
    """The nodes of a head, depth by depth."""

    begins: list[int]
    """First node of every depth, and the number of nodes."""
    max_docid_tokens: int
    """Of the longest docid."""


class DeviceTrie:
    """The tensors of a trie on one device."""

    def __init__(self, trie: StoredTrie, eos_token_id: int, device: torch.device) -> None:
        """Copies a trie to a device.

        Args:
            trie: With at least one docid.
            eos_token_id: Ends a docid.
            device: Of the tensors.
        """
        self.trie: StoredTrie | FilteredTrie = trie
        self.device = device
        self.num_docids, self.num_tokens, self.num_nodes = trie.num_docids, len(trie.vocabulary), trie.num_nodes
        self.levels = _levels(trie)
        nodes, options, ends_at = _options(trie, eos_token_id, self.levels.begins)
        self._counts = nodes[:, 1].copy()
        self.nodes = torch.from_numpy(nodes).to(device)
        self.options = torch.from_numpy(np.append(options, np.zeros((1, 4), dtype=np.int64), axis=0)).to(device)
        """And one row more, so that there always is one."""
        self.tokens = torch.from_numpy(np.append(trie.vocabulary, eos_token_id).astype(np.int64)).to(device)
        """Token id of every place, int64 [num_tokens + 1]."""
        self.root = torch.tensor([-1, 0, 0, trie.num_docids], device=device)
        """As a row of `options`; no token leads to it."""
        self.is_filtered = False
        """Whether some options lead to no docid."""
        self._stored, self._ends_at = trie, ends_at
        self._constants: dict[tuple[Any, ...], torch.Tensor] = {}
        self._capacities: dict[tuple[int, int, bool], int] = {}

    def restricted(self, view: FilteredTrie) -> DeviceTrie:
        """Returns the tensors of a view of the trie, which shares all but `options` with this one."""
        restricted = copy.copy(self)
        restricted.trie, restricted.num_docids, restricted.is_filtered = view, view.num_docids, True
        restricted.root = torch.tensor([-1, 0, 0, view.num_docids], device=self.device)
        # How many docids that may be found come before each place of the sorted order, and which they are.
        counted = view._num_allowed_before(np.arange(self._stored.num_docids + 1, dtype=view._docids.dtype))
        before = torch.from_numpy(counted.astype(np.int64)).to(self.device)
        places = torch.cat([torch.nonzero(before.diff())[:, 0], before.new_zeros(1)])
        first, last = self.options[:, DOCID], self.options[:, DOCID] + self.options[:, BELOW]
        below = before[last] - before[first]
        restricted.options = self.options.clone()
        restricted.options[:, BELOW] = below
        restricted.options[:, DOCID] = torch.where(below > 0, places[before[first].clamp(max=len(places) - 1)], first)
        return restricted

    def capacity(self, depth: int, num_nodes: int, with_forced: bool) -> int:
        """Returns how many options `num_nodes` different prefixes of a depth have at most.

        Args:
            depth: Tokens of the prefixes.
            num_nodes: Of one query.
            with_forced: Whether a prefix without options counts for one.
        """
        key = (depth, num_nodes, with_forced)
        if key not in self._capacities:
            begins = self.levels.begins
            counts = self._counts[begins[depth] : begins[depth + 1]] if depth + 1 < len(begins) else self._counts[:0]
            num_stored = min(num_nodes, len(counts))
            if num_stored < len(counts):
                counts = np.partition(counts, len(counts) - num_stored)[-num_stored:]
            forced = num_nodes - num_stored + int((counts == 0).sum()) if with_forced else 0
            self._capacities[key] = max(1, forced + int(counts.sum(dtype=np.int64)))
        return self._capacities[key]

    def places(self, num_queries: int, num_places: int) -> torch.Tensor:
        """Returns 0, 1, 2, ... for every query, int64 [B, n]; not to be written to."""
        key = ("places", num_queries, num_places)
        if key not in self._constants:
            places = torch.arange(num_places, device=self.device)
            self._constants[key] = places.expand(num_queries, num_places).contiguous()
        return self._constants[key]

    def filled(self, shape: Sequence[int], value: float) -> torch.Tensor:
        """Returns one number everywhere, as float64, or int64 if it is one; not to be written to."""
        key = (value, type(value), *shape)
        if key not in self._constants:
            dtype = torch.int64 if isinstance(value, int) else torch.float64
            self._constants[key] = torch.full(tuple(shape), value, dtype=dtype, device=self.device)
        return self._constants[key]

    def docid_tokens(self, docids: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of some docids, given by their places in the sorted order (int64 [n])."""
        return self._stored.docid_tokens(docids)

    @property
    def head_depth(self) -> int:
        """Tokens of the longest prefix that has options."""
        return len(self.levels.begins) - 3 if len(self.levels.begins) > 2 else 0

    @cached_property
    def tail_tokens(self) -> torch.Tensor:
        """Tokens of all tails, as places in the vocabulary (int32), and one more that is never used."""
        return torch.from_numpy(np.append(self._stored.tail_tokens, 0).astype(np.int32)).to(self.device)

    @cached_property
    def tail_offsets(self) -> torch.Tensor:
        """Where the tail of every docid begins, int64 [D + 1]."""
        return torch.from_numpy(np.asarray(self._stored.tail_offsets, dtype=np.int64)).to(self.device)

    @cached_property
    def path_ranks(self) -> torch.Tensor | None:
        """The place of every docid (int64 [D]) in the order of the paths, their ends included; None = its own place.

        Docids are sorted without their ends. One that is the beginning of others comes before them there; with the end token it
        may come after some.
        """
        nodes, num_smaller = self._ends_at
        if not num_smaller.any():
            return None
        first = np.asarray(self._stored.first_docid, dtype=np.int64)[nodes]
        moves = np.zeros(self._stored.num_docids + 1, dtype=np.int64)
        np.add.at(moves, first + 1, -1)
        np.add.at(moves, first + 1 + num_smaller, 1)
        ranks = np.arange(self._stored.num_docids) + np.cumsum(moves)[:-1]
        ranks[first] += num_smaller
        return torch.from_numpy(ranks).to(self.device)


def _levels(trie: StoredTrie) -> Levels:
    begins, longest = [0, 1], 0
    while True:
        begin, end = begins[-2:]
        childless = np.arange(begin, end)[trie.first_child[begin + 1 : end + 1] == trie.first_child[begin:end]]
        docids = trie.first_docid[childless]
        if len(docids):
            tails = np.asarray(trie.tail_offsets)[docids + 1] - np.asarray(trie.tail_offsets)[docids]
            longest = max(longest, len(begins) - 2 + int(tails.max()))
        following = int(trie.first_child[end])
        if following == end:
            return Levels(begins, longest)
        begins.append(following)


def _options(
    trie: StoredTrie, eos_token_id: int, begins: list[int]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the tables of nodes and options, and where docids end: (nodes, docids below their smaller tokens)."""
    num_nodes = trie.num_nodes
    first_child = np.asarray(trie.first_child, dtype=np.int64)
    first_docid = np.asarray(trie.first_docid, dtype=np.int64)
    num_children = np.diff(first_child)
    last_docid = first_docid + 1  # one past; of a node with children that of its last child
    for begin, end in zip(begins[-2::-1], begins[:0:-1], strict=True):
        inner = begin + np.flatnonzero(num_children[begin:end])
        last_docid[inner] = last_docid[first_child[inner + 1] - 1]

    inner = np.flatnonzero(num_children)
    ends = inner[first_docid[first_child[inner]] != first_docid[inner]]
    num_smaller = np.concatenate(
        [[0], np.cumsum(np.append(trie.vocabulary, eos_token_id)[trie.edge_token] < eos_token_id)]
    )
    place = np.full(num_nodes, -1, dtype=np.int64)
    place[ends] = num_smaller[first_child[ends + 1]] - num_smaller[first_child[ends]]

    counts = num_children.copy()
    counts[ends] += 1
    offsets = offsets_of(counts)
    nodes = np.stack([offsets[1:], counts], axis=1)
    options = np.empty((offsets[-1], 4), dtype=np.int64)
    ending = offsets[ends] + place[ends]
    options[ending] = np.stack(
        [np.full(len(ends), len(trie.vocabulary)), ends, first_docid[ends], np.ones(len(ends), dtype=np.int64)], axis=1
    )
    is_child = np.ones(len(options), dtype=bool)
    is_child[ending] = False
    children = np.arange(1, num_nodes)
    options[is_child] = np.stack(
        [trie.edge_token[1:], children, first_docid[1:], last_docid[1:] - first_docid[1:]], axis=1
    )
    after = first_child[ends] + place[ends]  # the first child with a larger token
    has_larger = after < first_child[ends + 1]
    behind = np.where(has_larger, first_docid[np.minimum(after, num_nodes - 1)], last_docid[ends])
    return nodes, options, (ends, behind - first_docid[ends] - 1)
