"""The writer: a retriever's model, how it is prompted, and the trie of all that it may write."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from zerogr.decoding import Decoded, decode_batch
from zerogr.decoding.scoring import Request
from zerogr.decoding.terms import Terms
from zerogr.decoding.trace import Step, trace_batch
from zerogr.errors import UserError
from zerogr.llm.chat import ChatFormat
from zerogr.ranking.ranker import Filter, Leaves
from zerogr.search.record import Texts
from zerogr.trie.grown import GrownTrie

Prompt = tuple[list[int], list[int]]
"""What queries of one instruction have in common, and the rest."""
Instruction = str | Sequence[str | None] | None
"""For all queries, or one per query; None = the index's own."""

_SETTINGS_OF = {"reverse_annealing": ("max_temperature",), "nucleus": ("top_p",)}
"""Strategy -> settings of section decoding that mean something to it."""

logger = logging.getLogger(__name__)


def settings_of(decoding: dict[str, Any], strategy: str) -> dict[str, Any]:
    """Returns the settings of section decoding that mean something to a strategy."""
    return {key: decoding[key] for key in ("normalise", *_SETTINGS_OF.get(strategy, ()))}


class Writer:
    """Writes identifiers for queries."""

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        trie: Any,
        decoder: str | None = None,
        terms: Terms | None = None,
        scorer: torch.Tensor | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            model: A causal LM in eval mode.
            chat: How it is prompted.
            trie: Of all that it may write.
            decoder: `device`, `reference`, or None = `device` on a GPU.
            terms: Added to the scores of single choices; only the reference does that.
            scorer: [1, H], where the retriever was trained to score query and docid; [1, H + 1] where the score is added to
                so many times the docid's log-probability.

        Raises:
            UserError: Tree decoding does not support the model's architecture.
            ValueError: There is no such decoder.
        """
        if decoder not in (None, "device", "reference"):
            raise ValueError(f"decoder is {decoder!r}; it must be 'device', 'reference' or None")
        from zerogr.decoding.device.decoder import DeviceDecoder
        from zerogr.decoding.language_model import TreeModel

        self.model, self.chat, self.trie, self.scorer = TreeModel(model), chat, trie, scorer
        on_device = model.device.type == "cuda" if decoder is None else decoder == "device"
        if terms:
            self.model.terms = terms
            if on_device:
                logger.warning(
                    "the index has terms of single choices, which only the reference decoder adds: it is used"
                )
        self._device = DeviceDecoder(self.model) if on_device and not terms else None
        if self._device and isinstance(trie, GrownTrie):
            self.trie = trie.merged()  # tensors are made of one trie

    @property
    def is_on_device(self) -> bool:
        """Whether it decodes by array programs, a batch of one kind at a time."""
        return self._device is not None

    @property
    def captures_graphs(self) -> bool:
        """Whether the first search of a shape takes longer, because its rounds are captured as CUDA graphs."""
        return self._device is not None and bool(self.model.model.device.type == "cuda")

    def restricted(self, identifiers: Filter) -> Self:
        """Returns a writer of some identifiers, which shares the model with this one."""
        restricted = copy.copy(self)
        restricted.trie = self.trie.filter(allow=identifiers.allow, deny=identifiers.deny)
        return restricted

    def write(self, prompts: Sequence[Prompt], num_leaves: int, options: dict[str, Any]) -> list[Leaves]:
        """Returns what is written for each query, by one strategy for all of them; `options` are those of `decode`."""
        if not num_leaves:
            return [Leaves(np.empty(0, np.int64), np.empty(0), str)] * len(prompts)
        options = {"eos_token_id": self.chat.end_token_id, **options}
        decoded = self._device.decode(prompts, self.trie, num_leaves, **options) if self._device else None
        if decoded is None:
            decoded = decode_batch(self.model.start(prompts), self.trie, num_leaves, **options)
        return [self.leaves_of(found) for found in decoded]

    def leaves_of(self, found: Sequence[Decoded]) -> Leaves:
        """Returns what was decoded for a query as a ranker reads it."""
        return Leaves(
            np.array([each.row for each in found], dtype=np.int64),
            np.array([each.score for each in found], dtype=np.float64),
            partial(self._text_of, found),
        )

    def score(self, prompts: Sequence[Prompt], docids: Sequence[Sequence[str]]) -> list[list[list[Step]]]:
        """Returns what the model thinks of some docids of each query, token by token."""
        tokens = [[self.chat.docid(docid) for docid in of_query] for of_query in docids]
        return trace_batch(self.model.start(prompts), self.trie, tokens, eos_token_id=self.chat.end_token_id)

    def rate(self, prompts: Sequence[Prompt], docids: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Returns the retriever's scores (float64) of each query with some docids, by one forward pass behind the prompts.

        Raises:
            UserError: It was not trained to score them.
        """
        if self.scorer is None:
            raise UserError(
                "the retriever was not trained to score query and docid; train it with training.loss: {name: ranknet}, or "
                "search without rerank"
            )
        tokens = [[self.chat.docid(docid) for docid in of_query] for of_query in docids]
        nothing = np.empty(0, dtype=np.int64)
        requests = [
            Request(query, tuple(docid), nothing) for query, of_query in enumerate(tokens) for docid in of_query
        ]
        if not requests:
            return [np.empty(0) for _ in docids]
        begun = self.model.start(prompts)
        hidden = begun.hidden(requests).float()
        weight = self.scorer.to(hidden)[0]
        scores = (hidden @ weight[: hidden.shape[1]]).double().cpu().numpy()
        if len(weight) > hidden.shape[1]:  # the pass before has read all prefixes
            paths = trace_batch(begun, self.trie, tokens, eos_token_id=self.chat.end_token_id)
            scores += float(weight[-1]) * np.array(
                [sum(s.log_prob for s in path) for of_query in paths for path in of_query]
            )
        return np.split(scores, np.cumsum([len(of_query) for of_query in docids])[:-1])

    def batches(
        self, queries: Sequence[str], instruction: Instruction, default: str, size: int
    ) -> Iterator[tuple[slice, list[Prompt]]]:
        """Returns so many queries at a time: which they are, and the prompt of each.

        Raises:
            ValueError: `queries` is a bare string, or `size` is below 1.
        """
        if isinstance(queries, str):
            raise ValueError("queries must be a list of strings, not one string")
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        texts = [instruction] * len(queries) if isinstance(instruction, str | None) else instruction
        return self._batches(self.prompts(queries, [text or default for text in texts]), size)

    def prompts(self, queries: Sequence[str], instructions: Sequence[str]) -> list[Prompt]:
        """Returns the prompt of each query."""
        return [
            (self.chat.prefix(instruction), self.chat.query(query))
            for query, instruction in zip(queries, instructions, strict=True)
        ]

    def _batches(self, prompts: list[Prompt], size: int) -> Iterator[tuple[slice, list[Prompt]]]:
        for begin in range(0, len(prompts), size):
            yield slice(begin, begin + size), prompts[begin : begin + size]

    def token_text(self, token: int) -> str:
        """Returns a token as text; the one that ends a docid is `<end>`."""
        return "<end>" if token == self.chat.end_token_id else str(self.chat.tokenizer.decode([token]))

    @property
    def texts(self) -> Texts:
        """How tokens are read."""
        return Texts(self.token_text, self._tokens_text, self.chat.codec.decode)

    def _tokens_text(self, tokens: Sequence[int]) -> str:
        return str(self.chat.tokenizer.decode([token for token in tokens if token != self.chat.end_token_id]))

    def _text_of(self, found: Sequence[Decoded], leaf: int) -> str:
        return self.chat.codec.decode(found[leaf].tokens)
