"""Decoding on a device: the strategies of `zerogr.decoding` as array programs over all queries at once.

    decoder = DeviceDecoder(tree_model)               once
    decoder.decode(prompts, trie, k, ...)             what `decode_batch` answers, for the strategies that have a program

On CUDA the rounds are captured as graphs, one chain of them for every shape: what a search then costs the host is one launch
per round. Batches are filled up to the next power of two, prompts to the next multiple of `PROMPT_BUCKET`.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from zerogr.decoding.decoder import Decoded, DecodedList, checked_policy
from zerogr.decoding.device.graphs import Chain
from zerogr.decoding.device.model import Head, PathScorer, Scorer
from zerogr.decoding.device.programs import Found, Program, Setting, program
from zerogr.decoding.device.trie import DeviceTrie
from zerogr.decoding.language_model import Prompt, TreeModel
from zerogr.decoding.tree import ScoredTree, Trie
from zerogr.llm.paths import Prompts

PROMPT_BUCKET = 32
"""Tokens."""
MAX_CHAINS = 16
"""Captured at a time; each keeps the keys and values of its batch."""


class DeviceDecoder:
    """A language model with the tensors of the tries that it writes docids of. Not thread-safe."""

    def __init__(self, model: TreeModel) -> None:
        """Takes a model over; searches run on its device."""
        self._model = model
        self._tries: weakref.WeakKeyDictionary[Any, tuple[DeviceTrie, Head]] = weakref.WeakKeyDictionary()
        self._chains: OrderedDict[Hashable, Chain] = OrderedDict()

    @torch.inference_mode()
    def decode(
        self,
        prompts: Sequence[Prompt],
        trie: Trie,
        k: int,
        *,
        eos_token_id: int,
        strategy: str,
        seed: int = 0,
        normalise: str = "allowed",
        **options: Any,
    ) -> list[DecodedList] | None:
        """Returns what `zerogr.decoding.decode_batch` returns for the prompts; None if the reference has to do it.

        It has to where a strategy has no program, where nothing is left to choose, and where prompts and docids may be longer
        than the model's sliding window.

        Raises:
            ValueError: As `decode_batch`.
        """
        policy = checked_policy(trie, k, eos_token_id, strategy, normalise, options)
        if trie.num_docids < 2:
            return None
        policy(ScoredTree(trie, eos_token_id, normalise), k, seed, **options).send(None)  # checks its options
        if trie not in self._tries:
            device_trie = DeviceTrie(trie, eos_token_id, self._model.model.device)
            self._tries[trie] = device_trie, Head(self._model, device_trie)
        device_trie, head = self._tries[trie]
        setting = Setting(device_trie, k, normalise)
        texts = [[*shared, *own] for shared, own in prompts]
        longest = max(map(len, texts))
        if self._model.max_length is not None and longest + setting.num_rounds - 1 > self._model.max_length:
            return None
        if device_trie.device.type != "cuda":
            wanted = program(strategy, setting, options)
            if wanted is None:
                return None
            wanted.reseed(seed)
            padded = Prompts.of(texts, device_trie.device)
            scorer = PathScorer(self._model, head, device_trie, padded, setting.num_places(wanted.width))
            return search(wanted, setting, scorer)

        batch, length = 1 << (len(prompts) - 1).bit_length(), -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
        key = (id(device_trie), k, normalise, strategy, tuple(sorted(options.items())), batch, length)
        if key not in self._chains:
            wanted = program(strategy, setting, options)
            if wanted is None:
                return None
            example = Prompts.of(texts, device_trie.device, batch=batch, length=length)
            self._chains[key] = Chain(self._model, head, setting, wanted, example)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)
        self._chains.move_to_end(key)
        chain = self._chains[key]
        found = chain.run(Prompts.of(texts, torch.device("cpu"), batch=batch, length=length), seed)
        return documents(found, setting)[: len(prompts)]


def search(wanted: Program, setting: Setting, scorer: Scorer) -> list[DecodedList]:
    """Returns the documents that a program finds, query by query; on the CPU, where it costs nothing to look how far it is."""
    state = wanted.begin(scorer.num_queries)
    for depth in range(setting.num_rounds):
        state = wanted.round(state, depth, lambda options: scorer.log_probs(options, setting.normalise))
        if depth + 1 == setting.num_rounds or not wanted.is_underway(state):
            break
        scorer.extend(state.frontier)
    return documents(wanted.finish(state), setting)


def documents(found: Found, setting: Setting) -> list[DecodedList]:
    """Returns the documents of docids, in their order: those of one docid come out together, in row order."""
    docids, scores = found.docids.cpu().numpy(), found.scores.cpu().numpy()
    trie = setting.trie.trie
    is_there = np.isfinite(scores)
    distinct, inverse = np.unique(docids[is_there], return_inverse=True)
    tokens = [tuple(part.tolist()) for part in setting.trie.docid_tokens(distinct)]
    rows = [trie.docid_documents(int(docid)).tolist() for docid in distinct]
    answers, place = [], 0
    for of_query, scores_of_query in zip(is_there, scores, strict=True):
        answer = DecodedList()
        for score in scores_of_query[of_query].tolist():
            leaf = inverse[place]
            place += 1
            answer += [Decoded(row, tokens[leaf], score) for row in rows[leaf]]
        del answer[setting.k :]
        answer.num_rounds = setting.num_rounds
        answers.append(answer)
    return answers
