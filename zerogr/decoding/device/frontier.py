"""The prefixes of one depth, of all queries, as arrays; what may follow them, and the choice of the best.

Every query has W places for prefixes, in the order of their paths. Options of all prefixes of a query are laid out one behind
the other, in the order of their paths as well, in as many places as the trie has options for W prefixes of that depth at most.
So all shapes are known before a search begins, and nothing asks the device how far it is.

Shapes: B queries, W prefixes, C options, d tokens of a prefix. Scores are natural-log probabilities in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from zerogr.decoding.device.trie import BELOW, DOCID, NODE, TOKEN, DeviceTrie

NEVER = float("-inf")
LOWEST = -1e300
"""Less than any score, and a number: taken from another one it never gives NaN."""


class Frontier(NamedTuple):
    """The prefixes of a depth."""

    info: torch.Tensor
    """int64 [B, W, 4]: the rows of `DeviceTrie.options` that led here."""
    score: torch.Tensor
    """float64 [B, W]; -inf where there is no prefix."""
    is_open: torch.Tensor
    """bool [B, W]: what is to be looked at further."""
    ancestors: torch.Tensor
    """int64 [B, W, d]: places of the prefixes' tokens among all that were evaluated, the own one last."""


class Options(NamedTuple):
    """What may follow the prefixes of a frontier."""

    info: torch.Tensor
    """int64 [B, C, 4]: rows of `DeviceTrie.options`."""
    owner: torch.Tensor
    """int64 [B, C]: the prefix that each follows."""
    is_valid: torch.Tensor
    """bool [B, C]: whether there is an option, with a docid that may be found."""
    ends: torch.Tensor
    """int64 [B, W]: one past the last option of each prefix."""
    is_forced: torch.Tensor
    """bool [B, C]: the only option of a prefix with one docid left; looked at under `vocabulary` alone."""


def root(trie: DeviceTrie, num_queries: int) -> Frontier:
    """Returns the empty prefix of every query."""
    info = trie.root.expand(num_queries, 1, 4)
    score = torch.zeros(num_queries, 1, dtype=torch.float64, device=trie.device)
    ancestors = torch.empty(num_queries, 1, 0, dtype=torch.int64, device=trie.device)
    return Frontier(info, score, torch.ones_like(score, dtype=torch.bool), ancestors)


def forced(trie: DeviceTrie, frontier: Frontier) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which prefixes have one docid left in the trie (bool [B, W]), and the one option of each (int64 [B, W, 4])."""
    node, docid = frontier.info[..., NODE], frontier.info[..., DOCID]
    is_virtual = node >= trie.num_nodes
    is_forced = is_virtual | (trie.nodes[node.masked_fill(is_virtual, 0)][..., 1] == 0)
    position = torch.where(is_virtual, node - trie.num_nodes + 1, trie.tail_offsets[docid])
    is_over = position == trie.tail_offsets[docid + 1]
    token = trie.tail_tokens[position.clamp(max=len(trie.tail_tokens) - 1)].masked_fill(is_over, trie.num_tokens)
    return is_forced, torch.stack([token, position + trie.num_nodes, docid, torch.ones_like(docid)], dim=-1)


def options_of(
    trie: DeviceTrie, frontier: Frontier, capacity: int, instead: tuple[torch.Tensor, torch.Tensor] | None = None
) -> Options:
    """Returns what may follow the prefixes.

    Args:
        trie: Of the docids.
        frontier: The prefixes.
        capacity: C, at least as many as there are.
        instead: For some prefixes (bool [B, W]) one option (int64 [B, W, 4]) in the place of the trie's.
    """
    num_queries, width = frontier.score.shape
    node = frontier.info[..., NODE]
    if instead is not None:
        node = node.masked_fill(instead[0], 0)
    last, count = trie.nodes[node].unbind(-1)
    if instead is not None:
        count = count.masked_fill(instead[0], 1)
    ends = (count * frontier.is_open).cumsum(-1)
    places = trie.places(num_queries, capacity)
    owner = torch.searchsorted(ends, places, right=True)
    is_valid = owner < width
    owner = owner.clamp(max=width - 1)
    option = (last - ends).gather(1, owner) + places
    info = trie.options[option.clamp(max=len(trie.options) - 1)]
    is_instead = is_valid
    if instead is not None:
        is_instead = instead[0].gather(1, owner) & is_valid
        info = torch.where(is_instead[..., None], instead[1].gather(1, _wide(owner)), info)
    if trie.is_filtered:
        is_valid = is_valid & (info[..., BELOW] > 0)
    return Options(info, owner, is_valid, ends, is_instead)


def log_softmax(trie: DeviceTrie, logits: torch.Tensor, options: Options) -> torch.Tensor:
    """Returns the logarithms of the softmax over the valid options of each prefix; -inf for the others."""
    logits = torch.where(options.is_valid, logits, NEVER)
    lowest = trie.filled(options.ends.shape, LOWEST)
    logits = logits - lowest.scatter_reduce(1, options.owner, logits, "amax").gather(1, options.owner)
    # Sums are differences of running sums, so that they are the same in every run on every device.
    running = torch.nn.functional.pad(logits.exp().cumsum(1), (1, 0)).gather(1, options.ends)
    sums = running - torch.nn.functional.pad(running[:, :-1], (1, 0))
    # The largest counts for 1; where there is no option, nothing becomes NaN.
    return logits - sums.clamp(min=1).log().gather(1, options.owner)


def best(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Returns the places of the `width` best scores (int64 [B, width]), in the order of the places; of equal ones the first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :width].sort(dim=1).values


def step_to(
    trie: DeviceTrie,
    frontier: Frontier,
    options: Options,
    chosen: torch.Tensor,
    scores: torch.Tensor,
    first_place: int,
    is_open: torch.Tensor | None = None,
) -> Frontier:
    """Returns the frontier of the chosen options.

    Args:
        trie: Of the docids.
        frontier: The prefixes that they follow.
        options: What may follow them.
        chosen: int64 [B, W'], places among the options.
        scores: float64 [B, C].
        first_place: Of the new prefixes' tokens among all that are evaluated.
        is_open: bool [B, W']; None = those with a score.
    """
    num_queries, width = chosen.shape
    score = scores.gather(1, chosen)
    owner = options.owner.gather(1, chosen)
    before = frontier.ancestors.gather(1, owner[..., None].expand(-1, -1, frontier.ancestors.shape[2]))
    end = first_place + width
    own = trie.places(num_queries, 1 << (end - 1).bit_length())[
        :, first_place:end
    ]  # of few sizes, because all are kept
    ancestors = torch.cat([before, own[..., None]], dim=2)
    is_open = score > NEVER if is_open is None else is_open
    return Frontier(options.info.gather(1, _wide(chosen)), score, is_open, ancestors)


def is_final(info: torch.Tensor, trie: DeviceTrie, normalise: str) -> torch.Tensor:
    """Whether nothing is left to ask the model (bool [B, W]): one docid is left, or it has ended."""
    if normalise == "allowed":
        return info[..., BELOW] == 1
    return info[..., TOKEN] == trie.num_tokens


def _wide(places: torch.Tensor) -> torch.Tensor:
    return places[..., None].expand(-1, -1, 4)
