"""Decoding on a device: the strategies of `zerogr.decoding` as array programs over all queries at once.

    decoder = DeviceDecoder(tree_model)               once
    decoder.decode(prompts, trie, k, ...)             what `decode_batch` answers, for the strategies that have a program

On CUDA the rounds are captured as graphs, one chain of them for every shape: what a search then costs the host is one launch
per round. Batches are filled up to the next power of two, prompts to the next multiple of `PROMPT_BUCKET`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from zerogr.decoding.decoder import Decoded, DecodedList, checked_policy
from zerogr.decoding.device.exact import most_probable
from zerogr.decoding.device.graphs import Chain
from zerogr.decoding.device.model import Head, PathScorer, Scorer
from zerogr.decoding.device.programs import Found, Program, Setting, program
from zerogr.decoding.device.trie import DeviceTrie
from zerogr.decoding.language_model import Prompt, TreeModel
from zerogr.decoding.tree import ScoredTree, Trie
from zerogr.llm.paths import Prompts
from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie

PROMPT_BUCKET = 32
"""Tokens."""
MAX_EXPANSIONS = 10_000
"""Of best first, unless something else is wanted; as `zerogr.decoding.strategies.best_first`."""
EXACT_AT_ONCE = 8
"""Queries that are searched exactly together: each may look at thousands of prefixes, whose keys and values take room."""
MAX_TRIES = 16
"""Kept at a time: views of some documents each have a table of options of their own."""
MAX_CHAINS = 16
"""Captured at a time; each keeps the keys and values of its batch."""


class DeviceDecoder:
    """A language model with the tensors of the tries that it writes docids of. Not thread-safe."""

    def __init__(self, model: TreeModel) -> None:
        """Takes a model over; searches run on its device."""
        self._model = model
        self._tries: OrderedDict[int, tuple[DeviceTrie, Head]] = OrderedDict()
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

        It has to where a strategy has no program (reverse annealing with exact removal), where nothing is left to choose, and
        where prompts and docids may be longer than the model's sliding window.

        Raises:
            ValueError: As `decode_batch`.
        """
        policy = checked_policy(trie, k, eos_token_id, strategy, normalise, options)
        if trie.num_docids < 2:
            return None
        policy(ScoredTree(trie, eos_token_id, normalise), k, seed, **options).send(None)  # checks its options
        device_trie, head = self._on_device(trie, eos_token_id)
        setting = Setting(device_trie, k, normalise)
        texts = [[*shared, *own] for shared, own in prompts]
        longest = max(map(len, texts)) + setting.num_rounds - 1
        if longest > (self._model.max_length or longest):
            return None
        if strategy == "best_first":
            return self._most_probable(texts, setting, head, options.get("max_expansions", MAX_EXPANSIONS))
        found = self._found(texts, setting, head, strategy, seed, options)
        return None if found is None else documents(found, setting)[: len(texts)]

    def _on_device(self, trie: Trie, eos_token_id: int) -> tuple[DeviceTrie, Head]:
        """Returns a trie's tensors, and the head's rows for it; those that were used last are kept."""
        if id(trie) not in self._tries:
            if isinstance(trie, FilteredTrie):
                whole, head = self._on_device(cast(DocidTrie, trie.whole), eos_token_id)
                made = whole.restricted(trie), head
            else:
                device_trie = DeviceTrie(cast(DocidTrie, trie), eos_token_id, self._model.model.device)
                made = device_trie, Head(self._model, device_trie)
            self._tries[id(trie)] = made  # which keeps the trie itself, so that nothing else gets its id
            if len(self._tries) > MAX_TRIES:
                _, (dropped, _) = self._tries.popitem(last=False)
                for key in [key for key, chain in self._chains.items() if chain.trie is dropped]:
                    del self._chains[key]
        self._tries.move_to_end(id(trie))
        return self._tries[id(trie)]

    def _found(
        self, texts: list[list[int]], setting: Setting, head: Head, strategy: str, seed: int, options: dict[str, Any]
    ) -> Found | None:
        """Returns what a strategy finds, for a batch that may be filled up; None if it has no program."""
        device = setting.trie.device
        if device.type != "cuda":
            wanted = program(strategy, setting, options)
            if wanted is None:
                return None
            wanted.reseed(seed)
            num_places = setting.num_places(wanted.width)
            return search(
                wanted, setting, PathScorer(self._model, head, setting.trie, Prompts.of(texts, device), num_places)
            )

        batch, length = 1 << (len(texts) - 1).bit_length(), -(-max(map(len, texts)) // PROMPT_BUCKET) * PROMPT_BUCKET
        key = (id(setting.trie), setting.k, setting.normalise, strategy, tuple(sorted(options.items())), batch, length)
        if key not in self._chains:
            wanted = program(strategy, setting, options)
            if wanted is None:
                return None
            example = Prompts.of(texts, device, batch=batch, length=length)
            self._chains[key] = Chain(self._model, head, setting, wanted, example)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)
        self._chains.move_to_end(key)
        return self._chains[key].run(Prompts.of(texts, torch.device("cpu"), batch=batch, length=length), seed)

    def _most_probable(
        self, texts: list[list[int]], setting: Setting, head: Head, max_expansions: int
    ) -> list[DecodedList]:
        answers: list[DecodedList] = []
        for begin in range(0, len(texts), EXACT_AT_ONCE):
            part = texts[begin : begin + EXACT_AT_ONCE]
            known = self._found(part, setting, head, "beam", 0, {})
            assert known is not None, "a beam search has a program"
            known = Found(*(each[: len(part)] for each in known))
            scorer_of = partial(PathScorer, self._model, head, setting.trie, Prompts.of(part, setting.trie.device))
            found, is_bounded = most_probable(setting, scorer_of, known, max_expansions)
            for answer, bound_hit in zip(documents(found, setting), is_bounded.tolist(), strict=True):
                answer.bound_hit = bound_hit
                answers.append(answer)
        return answers


def search(wanted: Program, setting: Setting, scorer: Scorer) -> Found:
    """Returns what a program finds; on the CPU, where it costs nothing to look how far it is."""
    state = wanted.begin(scorer.num_queries)
    for depth in range(setting.num_rounds):
        state = wanted.round(state, depth, lambda options: scorer.log_probs(options, setting.normalise))
        if depth + 1 == setting.num_rounds or not wanted.is_underway(state):
            break
        scorer.extend(state.frontier)
    return wanted.finish(state)


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
