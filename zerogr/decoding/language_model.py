"""Hugging Face causal language models as scorers: one KV cache holds every query's prompt and its tree of prefixes.

    model = TreeModel(hf_model)                        once
    scorer = model.start([(instruction, query), ...])  once per batch of queries: encodes the prompts
    decode_batch(scorer, trie, k, ...)

A prompt is encoded once, and its first part, the instruction that all queries of a task share, once per model. Every
evaluated prefix adds its last token to the cache, in any order; see `tree_attention`. Position ids are given by depth, so
the result is that of plain decoding, which `TreeModel` checks on the loaded weights before it is used.

The output head is computed for the allowed tokens alone. `vocabulary` needs the log-sum over all V besides.

Cost: one token per prefix, one forward pass per round for all queries together; keys and values of every evaluated
prefix stay until the scorer is dropped. For models of the Llama, Qwen and Mistral kind.

Shapes: T new tokens, R prefixes asked for, U different tokens allowed after them, V vocabulary, D hidden size.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from zerogr.decoding.scoring import Prefix, Request, checked, split_log_softmax
from zerogr.decoding.terms import Terms
from zerogr.decoding.tree_attention import (
    TREE_ATTENTION,
    ForwardPass,
    KeysValues,
    NewTokens,
    TreeCache,
    register_tree_attention,
)
from zerogr.errors import UserError
from zerogr.llm.paths import sliding_window

Prompt = tuple[Sequence[int], Sequence[int]]
"""The tokens that many queries share (may be empty), and the query's own up to where the docid begins (at least one)."""

MAX_KEPT_BEGINNINGS = 16
_LOGITS_AT_ONCE = 2**24
_VOCABULARY_AT_ONCE = 2**14


class TreeModel:
    """A causal language model that scores trees of prefixes. Not thread-safe."""

    def __init__(self, model: PreTrainedModel):
        """Takes over the model, on its device and in its dtype, and checks that it can do this.

        Args:
            model: In eval mode. Its attention implementation is replaced; plain forward passes still work.

        Raises:
            UserError: On this architecture, tree decoding would not give what plain decoding gives.
        """
        register_tree_attention()
        self.model = model
        self.max_length = sliding_window(model)
        """Most tokens of a prompt and a docid together; None = no limit."""
        self.forward_s = 0.0
        """Seconds inside the model so far: body, output head, and waiting for its results."""
        self.terms = Terms()
        """What is added to the scores of single choices."""
        self._beginnings: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()
        try:
            model.set_attn_implementation(TREE_ATTENTION)
            self._check()
        except UserError:
            raise
        except Exception as error:  # whatever a foreign architecture fails with, the advice is the same
            raise UserError(_unsupported(model, f"it failed with {type(error).__name__}: {error}")) from error

    def start(self, prompts: Sequence[Prompt]) -> TreeScorer:
        """Encodes the prompts of a batch of queries.

        Raises:
            ValueError: There is no prompt, or one without tokens of its own.
        """
        return TreeScorer(self, prompts)

    @torch.inference_mode()
    def forward(self, cache: TreeCache, new: Sequence[NewTokens]) -> torch.Tensor:
        """Runs new tokens against the cache, which grows by them; returns their hidden states [T, D]."""
        model = self.model
        num_groups = model.config.num_attention_heads // model.config.num_key_value_heads
        layout, mask = cache.place(new, model.device, model.dtype)
        mask = mask[:, None].repeat(1, 1, num_groups, 1)
        tokens, positions = (
            torch.from_numpy(np.concatenate(parts))[None].to(model.device)
            for parts in ([part.tokens for part in new], [part.positions for part in new])
        )
        start = time.perf_counter()
        output = model.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            tree_layout=layout,
        )
        self.forward_s += time.perf_counter() - start
        hidden_TD: torch.Tensor = output.last_hidden_state[0]
        return hidden_TD

    @torch.inference_mode()
    def head_log_probs(
        self,
        hidden_RD: torch.Tensor,
        tokens: Sequence[np.ndarray],
        normalise: str,
        bonus_C: torch.Tensor | None = None,
    ) -> list[np.ndarray]:
        """Log-probabilities (float64 [C] each) of the tokens that are wanted after each of R hidden states.

        The head's rows of the tokens that are wanted by any of them are gathered and multiplied with all of them: at most
        the whole head's work, mostly a small part of it. In fp32, whatever the model is in. `bonus_C` is added to the logits.
        """
        head: Any = self.model.get_output_embeddings()
        num_vocabulary = head.weight.shape[0]
        lengths = [len(part) for part in tokens]
        flat = np.concatenate(tokens)
        is_wanted = np.zeros(num_vocabulary, dtype=bool)
        is_wanted[flat] = True
        wanted = np.flatnonzero(is_wanted)
        column_of = np.empty(num_vocabulary, dtype=np.int64)
        column_of[wanted] = np.arange(len(wanted))
        owner, column = (
            torch.from_numpy(part).to(hidden_RD.device)
            for part in (np.repeat(np.arange(len(lengths)), lengths), column_of[flat])
        )
        start = time.perf_counter()
        hidden_RD = hidden_RD.float()
        logits_C = _logits_of(head, hidden_RD, torch.from_numpy(wanted).to(hidden_RD.device), owner, column)
        if normalise == "vocabulary":
            sums_R = log_sums(head, hidden_RD)
            if bonus_C is not None:  # the tokens that get something count with it
                more_C = (logits_C + bonus_C - sums_R[owner]).exp() - (logits_C - sums_R[owner]).exp()
                sums_R = sums_R + torch.zeros_like(sums_R).index_add_(0, owner, more_C).log1p()
            logits_C = logits_C - sums_R[owner]
        if bonus_C is not None:
            logits_C = logits_C + bonus_C
        values_C = logits_C.cpu().numpy()
        self.forward_s += time.perf_counter() - start
        if normalise == "allowed":
            return split_log_softmax(values_C, lengths)
        return np.split(checked(values_C.astype(np.float64)), np.cumsum(lengths)[:-1])

    def beginning(self, tokens: tuple[int, ...]) -> KeysValues:
        """Keys and values of a beginning that prompts share, encoded when it is first seen."""
        kept = self._beginnings
        if tokens not in kept:
            cache = TreeCache(1)
            self.forward(cache, [text_tokens(0, tokens, 0)])
            kept[tokens] = cache.first(0, len(tokens))
            if len(kept) > MAX_KEPT_BEGINNINGS:
                kept.popitem(last=False)
        kept.move_to_end(tokens)
        return kept[tokens]

    @torch.inference_mode()
    def _check(self) -> None:
        """Compares a small tree under prompts of two lengths with plain forward passes.

        A wrong mask, position or output head fails nothing: it only makes retrieval worse.

        Raises:
            UserError: They differ by more than rounding.
        """
        random = np.random.default_rng(0)
        num_tokens = self.model.config.vocab_size
        shared, first, second = (random.integers(num_tokens, size=n).tolist() for n in (3, 2, 4))
        a, b, c, d = random.integers(num_tokens, size=4).tolist()
        wanted = np.unique(random.integers(num_tokens, size=64))
        scorer = self.start([(shared, first), (shared, second)])
        worst, spread = 0.0, 1.0
        for asked in ([(0, ()), (1, (a,)), (1, (b,))], [(1, (a, c)), (0, (b, a, d)), (1, (b, c))]):
            requests = [Request(query, prefix, wanted) for query, prefix in asked]
            for request, found in zip(requests, scorer.log_probs(requests, "vocabulary"), strict=True):
                text = [*shared, *(first, second)[request.query], *request.prefix]
                logits = self.model(torch.tensor([text], device=self.model.device), use_cache=False).logits[0, -1]
                expected = logits.float().log_softmax(-1).cpu().numpy()[wanted]
                worst = max(worst, float(np.abs(found - expected).max()))
                spread = max(spread, float(expected.std()))
        self._beginnings.clear()
        # Rounding stays well below this; attending to the wrong tokens moves scores by their spread.
        limit = spread * (1e-3 if self.model.dtype == torch.float32 else 0.1)
        if worst > limit:
            raise UserError(_unsupported(self.model, f"scores differ by {worst:.2g}, more than rounding ({limit:.2g})"))


class TreeScorer:
    """Scores prefixes after the prompts of a batch of queries. Made by `TreeModel.start`."""

    def __init__(self, tree_model: TreeModel, prompts: Sequence[Prompt]):
        if not prompts or not all(len(own) for _, own in prompts):
            raise ValueError("every query needs a prompt with at least one token of its own")
        self.num_queries = len(prompts)
        self.forwards: list[ForwardPass] = []
        """Every forward pass, the prompts' included."""
        self._tree_model = tree_model
        self._queries = [QueryState(row, len(shared) + len(own)) for row, (shared, own) in enumerate(prompts)]
        self._cache = TreeCache(self.num_queries)
        self._forward_s_before = tree_model.forward_s
        for row, (shared, _) in enumerate(prompts):
            if len(shared):
                self._cache.put(row, tree_model.beginning(tuple(shared)))
        hidden_TD = self._forward([text_tokens(row, own, len(shared)) for row, (shared, own) in enumerate(prompts)])
        last = torch.from_numpy(np.cumsum([len(own) for _, own in prompts]) - 1)
        self._hidden_ND = hidden_TD[last.to(hidden_TD.device)]
        """The hidden state of every prefix so far; the first are those of the prompts' last tokens."""

    @property
    def num_forwards(self) -> int:
        """Forward passes so far, the prompts' included."""
        return len(self.forwards)

    @property
    def forward_s(self) -> float:
        """Seconds inside the model since the start."""
        return self._tree_model.forward_s - self._forward_s_before

    @property
    def num_evaluated(self) -> int:
        """Prefixes evaluated after the prompts, of all queries."""
        return len(self._hidden_ND) - self.num_queries

    def log_probs(self, requests: Sequence[Request], normalise: str) -> list[np.ndarray]:
        """Log-probabilities (float64 [C] each) of the wanted tokens after each prefix, in at most one forward pass.

        Raises:
            ValueError: Prompt and docid are longer than the model's sliding window, or a score is not finite.
        """
        hidden_RD, model = self.hidden(requests), self._tree_model
        bonus_C = model.terms.bonuses(requests, hidden_RD) if len(model.terms) else None
        return model.head_log_probs(hidden_RD, [request.tokens for request in requests], normalise, bonus_C)

    def hidden(self, requests: Sequence[Request]) -> torch.Tensor:
        """Returns the hidden state behind each prefix, [R, D], in at most one forward pass; raises as `log_probs`."""
        new: list[NewTokens] = []
        num_hidden = len(self._hidden_ND)
        by_query = sorted(requests, key=lambda request: request.query)
        for query, group in groupby(by_query, key=lambda request: request.query):
            state = self._queries[query]
            added = state.add((request.prefix for request in group), num_hidden)
            if added:
                num_hidden += len(added)
                new.append(state.new_tokens(added, self._tree_model.max_length))
        places = [self._queries[request.query].hidden_of[request.prefix] for request in requests]
        if new:
            self._hidden_ND = torch.cat([self._hidden_ND, self._forward(new)])
        hidden_RD: torch.Tensor = self._hidden_ND[torch.tensor(places, device=self._hidden_ND.device)]
        return hidden_RD

    def _forward(self, new: Sequence[NewTokens]) -> torch.Tensor:
        self.forwards.append(
            ForwardPass(sum(len(part.tokens) for part in new), len(new), max(part.is_visible.shape[1] for part in new))
        )
        return self._tree_model.forward(self._cache, new)


class QueryState:
    """Which prefixes of one query are in the cache, and where."""

    def __init__(self, row: int, prompt_length: int):
        self._row = row
        self.hidden_of: dict[Prefix, int] = {(): row}
        """Prefix -> place of its hidden state."""
        self._prompt_length = prompt_length
        self._slot_of: dict[Prefix, int] = {}
        self._parents: list[int] = []
        """Per slot after the prompt: the parent's, counted from there too; -1 = the prompt."""

    def add(self, wanted: Iterable[Prefix], num_hidden: int) -> list[Prefix]:
        """Gives the wanted prefixes and their ancestors slots; returns those that had none, in the order of their paths."""
        missing: set[Prefix] = set()
        for prefix in wanted:
            while prefix and prefix not in self._slot_of and prefix not in missing:
                missing.add(prefix)
                prefix = prefix[:-1]
        added = sorted(missing)
        for place, prefix in enumerate(added, start=num_hidden):
            self._slot_of[prefix] = len(self._parents)
            self._parents.append(self._slot_of[prefix[:-1]] if len(prefix) > 1 else -1)
            self.hidden_of[prefix] = place
        return added

    def new_tokens(self, added: list[Prefix], max_length: int | None) -> NewTokens:
        """The last tokens of the prefixes just added: each sees the prompt, its ancestors and itself."""
        depths = np.array([len(prefix) for prefix in added])
        length = self._prompt_length + int(depths.max())
        if max_length is not None and length > max_length:
            raise ValueError(f"prompt and docid have {length} tokens, the model's sliding window {max_length}")
        parents = np.array(self._parents)
        is_visible = np.zeros((len(added), self._prompt_length + len(parents)), dtype=bool)
        is_visible[:, : self._prompt_length] = True
        place, seen = np.arange(len(added)), np.arange(len(parents) - len(added), len(parents))
        while len(seen):
            is_visible[place, self._prompt_length + seen] = True
            seen = parents[seen]
            place, seen = place[seen >= 0], seen[seen >= 0]
        tokens = np.array([prefix[-1] for prefix in added])
        return NewTokens(self._row, tokens, self._prompt_length + depths - 1, is_visible)


def text_tokens(row: int, tokens: Sequence[int], begin: int) -> NewTokens:
    """Plain text after the first `begin` tokens of a cache row."""
    is_visible = np.tri(len(tokens), begin + len(tokens), begin, dtype=bool)
    return NewTokens(row, np.array(tokens), begin + np.arange(len(tokens)), is_visible)


def _logits_of(
    head: Any, hidden_RD: torch.Tensor, wanted_U: torch.Tensor, owner: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """Logits (fp32 [C]) of the pairs (owner, column), where column c stands for the token `wanted_U[c]`."""
    weight_UD, bias_U = _head_rows(head, wanted_U)
    rows_at_once = max(1, _LOGITS_AT_ONCE // len(wanted_U))
    if len(hidden_RD) <= rows_at_once:
        return torch.nn.functional.linear(hidden_RD, weight_UD, bias_U)[owner, column]
    logits = []
    for begin in range(0, len(hidden_RD), rows_at_once):
        logits_RU = torch.nn.functional.linear(hidden_RD[begin : begin + rows_at_once], weight_UD, bias_U)
        is_here = (owner >= begin) & (owner < begin + rows_at_once)
        logits.append(logits_RU[owner[is_here] - begin, column[is_here]])
    return torch.cat(logits)  # owners ascend


def log_sums(head: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    """The log of the sum of exp(logit) over the vocabulary (fp32 [R]), a piece of the vocabulary at a time."""
    log_sums = []
    for begin in range(0, head.weight.shape[0], _VOCABULARY_AT_ONCE):
        weight, bias = _head_rows(head, slice(begin, begin + _VOCABULARY_AT_ONCE))
        log_sums.append(torch.nn.functional.linear(hidden_RD, weight, bias).logsumexp(-1))
    return torch.stack(log_sums).logsumexp(0)


def _head_rows(head: Any, rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = getattr(head, "bias", None)
    return head.weight[rows].float(), None if bias is None else bias[rows].float()


def _unsupported(model: PreTrainedModel, reason: str) -> str:
    return (
        f"tree decoding does not work with {type(model).__name__}: {reason}; "
        "use a causal language model of the Llama, Qwen or Mistral kind"
    )
