"""The engine that runs anywhere: batched sampling with Hugging Face transformers.

Prompts are sorted by length and cut into batches. A batch is encoded once, left-padded (its common first tokens only
once for all), and its KV cache is then copied n-fold, so that n samples of a prompt cost one prefill. Decoding is one
token per row and step. A row that meets an end token or a stop string is finished; once a quarter of the rows is, they
leave the batch and the cache.

Sample j of a prompt is drawn from its own stream of uniform numbers (Philox keyed with its seed, number t for token t)
by inverting the cumulative distribution. So a token is a function of seed and logits only; other prompts in the batch
move the logits by rounding and nothing else. The same calls on the same hardware give the same bytes.

Measured with SmolLM2-135M-Instruct, 16 prompts of 280 tokens, four samples each, batches of 32, AMD EPYC: bfloat16 on
two idle cores 1,800 prompt tokens/s and 516 new tokens/s (166 with the library's own attention and cache); on one core
1,100 and 304, float32 435 and 162. Two threads on cores that others use too crawl (7 new tokens/s), because OpenMP
threads wait for each other actively: set OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=0 (231 together) before torch is imported.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from zerogr.llm.attention import GROUPED_SDPA, growing_cache, register_grouped_sdpa
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.rendering import ChatRenderer, cut_at_stop, end_token_ids, max_prompt_tokens_for
from zerogr.llm.models import fastest_dtype, load_model, resolve_model

_COMPACT_FRACTION = 0.25  # of finished rows at which the batch is compacted
_CDF_BLOCK = 256  # tokens summed together while a cumulative distribution is inverted
_MIN_SHARED_PREFIX = 16  # tokens from which encoding a common prefix by itself is worth one more forward pass
_BELOW_ONE = 1 - 2.0**-40  # a share of the total that stays below the total in spite of rounding
_NUCLEUS_CANDIDATES = 256  # most likely tokens looked at before a full sort


@dataclass(slots=True)
class _Request:
    """A prompt on its way: where it came from and what it has become so far."""

    index: int
    input_ids: list[int]
    seeds: tuple[int, ...]
    samples: list[list[int]] = field(default_factory=list)


class TransformersEngine:
    """Causal language model of the transformers library behind the `Engine` protocol."""

    name = "transformers"

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 32,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Loads the model.

        Args:
            model: A model name or path as `zerogr.llm.models.resolve_model` takes it.
            batch_size: Sequences (prompts x samples) decoded together; a prompt with more samples is a batch alone.
            device: None = the GPU if there is one.
            dtype: Of weights and activations; None = what the device is fastest in (`fastest_dtype`).
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = load_model(
            resolve_model(model), device=device, dtype=dtype or fastest_dtype(device)
        )
        register_grouped_sdpa()
        self.model.set_attn_implementation(GROUPED_SDPA)
        self.batch_size = batch_size
        self._serving = threading.Lock()
        self._renderer = ChatRenderer(self.tokenizer)
        self._end_ids = end_token_ids(self.tokenizer, self.model.generation_config)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns one `Generation` per prompt, in the order of the prompts. Of several threads, one at a time is served.

        Raises:
            UserError: The model's context is too short for `max_tokens`.
        """
        with self._serving:
            return self._generate(prompts, sampling)

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        context_tokens = getattr(self.model.config, "max_position_embeddings", None)
        max_prompt_tokens = max_prompt_tokens_for(sampling, context_tokens)
        generations, token_ids = self._renderer.render_all(prompts, max_prompt_tokens)
        requests = [_Request(i, ids, prompts[i].seeds) for i, ids in token_ids.items()]
        for batch in _batches(requests, self.batch_size):
            self._sample(batch, sampling)
            for request in batch:
                generations[request.index] = Generation(
                    texts=[cut_at_stop(self._decode(sample), sampling.stop) for sample in request.samples],
                    num_prompt_tokens=len(request.input_ids),
                    num_output_tokens=sum(map(len, request.samples)),
                )
        return generations

    @torch.inference_mode()
    def _sample(self, batch: list[_Request], sampling: Sampling) -> None:
        """Fills `samples` of each request. B prompts, R rows (prompts x samples), T tokens, V vocabulary."""
        logits_BV, cache, mask_BT = self._prefill(batch)
        prompt_of_row = [b for b, request in enumerate(batch) for _ in request.seeds]
        rows: list[list[int]] = [[] for _ in prompt_of_row]
        seeds = [seed for request in batch for seed in request.seeds]
        uniforms_RT = np.stack(
            [np.random.Generator(np.random.Philox(key=s)).random(sampling.max_tokens) for s in seeds]
        )
        expand = torch.tensor(prompt_of_row, device=logits_BV.device)
        _select_rows(cache, expand)
        logits_RV, mask_RT = logits_BV[expand], mask_BT[expand]
        alive = np.arange(len(rows))  # row of the whole batch behind each row of the cache
        is_done = np.zeros(len(rows), dtype=bool)
        for step in range(sampling.max_tokens):
            tokens = draw_tokens(logits_RV, uniforms_RT[alive, step], sampling)
            for row, token in zip(alive, tokens.tolist(), strict=True):
                if not is_done[row]:
                    rows[row].append(token)
                    is_done[row] = token in self._end_ids or self._meets_stop(rows[row], sampling.stop)
            if is_done.all() or step + 1 == sampling.max_tokens:
                break
            if is_done[alive].mean() >= _COMPACT_FRACTION:
                keep = torch.from_numpy(np.flatnonzero(~is_done[alive])).to(tokens.device)
                alive = alive[~is_done[alive]]
                _select_rows(cache, keep)
                tokens, mask_RT = tokens[keep], mask_RT[keep]
            mask_RT = torch.nn.functional.pad(mask_RT, (0, 1), value=1)
            logits_RV = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask_RT,
                position_ids=mask_RT.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).logits[:, -1]
        for b, sample in zip(prompt_of_row, rows, strict=True):
            batch[b].samples.append(sample)

    def _prefill(self, batch: list[_Request]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Returns (logits after each prompt [B, V], KV cache, attention mask [B, T]).

        The first tokens that all prompts share are encoded once; the rest of each prompt is padded on its left.
        """
        device, cache = self.model.device, growing_cache()
        prefix = _common_prefix([request.input_ids for request in batch])
        if len(batch) > 1 and prefix >= _MIN_SHARED_PREFIX:
            self.model.base_model(torch.tensor([batch[0].input_ids[:prefix]], device=device), past_key_values=cache)
            _select_rows(cache, torch.zeros(len(batch), dtype=torch.int64, device=device))
        else:
            prefix = 0
        rests = [request.input_ids[prefix:] for request in batch]
        length = max(map(len, rests))
        ids_BT = torch.tensor([[self.tokenizer.pad_token_id] * (length - len(rest)) + rest for rest in rests])
        mask_BT = torch.tensor([[1] * prefix + [0] * (length - len(rest)) + [1] * len(rest) for rest in rests])
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        output = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0)[:, prefix:],
            past_key_values=cache,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache, mask_BT

    def _meets_stop(self, sample: list[int], stop: tuple[str, ...]) -> bool:
        text = self._decode(sample) if stop else ""
        return any(s in text for s in stop)

    def _decode(self, sample: list[int]) -> str:
        if sample and sample[-1] in self._end_ids:
            sample = sample[:-1]
        text: str = self.tokenizer.decode(sample, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _batches(requests: list[_Request], batch_size: int) -> Iterator[list[_Request]]:
    """Yields requests of similar length, longest first, with at most `batch_size` samples (or one request) each."""
    batch: list[_Request] = []
    num_rows = 0
    for request in sorted(requests, key=lambda request: (-len(request.input_ids), request.index)):
        if batch and num_rows + len(request.seeds) > batch_size:
            yield batch
            batch, num_rows = [], 0
        batch.append(request)
        num_rows += len(request.seeds)
    if batch:
        yield batch


def _common_prefix(sequences: list[list[int]]) -> int:
    """Returns how many first tokens all sequences share, leaving at least one token of each."""
    first, last = min(sequences), max(sequences)  # what the extremes of the lexicographic order share, all share
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(length, min(map(len, sequences)) - 1)


def _select_rows(cache: Any, rows: torch.Tensor) -> None:
    for layer in cache.layers:
        layer.batch_select_indices(rows)


def draw_tokens(logits_RV: torch.Tensor, uniforms_R: np.ndarray, sampling: Sampling) -> torch.Tensor:
    """Returns one token id per row [R]: the argmax at temperature 0, else the inverse of the CDF at `uniforms_R`.

    Nucleus sampling keeps the fewest most likely tokens whose mass reaches `top_p` (and all that tie with the last).
    Tokens stay in the order of their ids, so rounding that swaps two near-equal tokens does not change the draw.
    Cost: a few passes over [R, V]; with `top_p` < 1 also the 256 most likely, seldom a full sort.
    """
    if sampling.temperature == 0:
        return logits_RV.argmax(-1)
    probs_RV = logits_RV.to(torch.float32, copy=True)  # the one copy of this size; the rest happens in place
    probs_RV.div_(sampling.temperature)
    probs_RV.sub_(probs_RV.amax(-1, keepdim=True)).exp_()
    if sampling.top_p < 1:
        probs_RV.div_(probs_RV.sum(-1, keepdim=True))
        probs_RV.masked_fill_(probs_RV < _nucleus_threshold(probs_RV, sampling.top_p), 0)
    return _invert_cdf(probs_RV, torch.from_numpy(uniforms_R).to(probs_RV.device))


def _invert_cdf(probs_RV: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """Returns the first token of each row whose cumulative mass exceeds the uniform number's share of the total, [R].

    In two steps, first the block of tokens and then the token: a cumulative sum over the whole vocabulary is sequential
    (18 ms for 32 x 49,152 on one core), a sum per block is not (1 ms).
    """
    num_rows, vocabulary = probs_RV.shape
    uniforms_R = uniforms_R.clamp(max=_BELOW_ONE)
    if vocabulary % _CDF_BLOCK:
        probs_RV = torch.nn.functional.pad(probs_RV, (0, -vocabulary % _CDF_BLOCK))
    blocks_RNS = probs_RV.view(num_rows, -1, _CDF_BLOCK)
    mass_RN = blocks_RNS.sum(-1).double()
    cdf_RN = mass_RN.cumsum(-1)
    # right=True: what is found lies strictly above the target, so a block or token without mass is never chosen.
    target_R1 = uniforms_R[:, None] * cdf_RN[:, -1:]
    block_R1 = torch.searchsorted(cdf_RN, target_R1, right=True)
    before_R1 = torch.nn.functional.pad(cdf_RN, (1, 0)).gather(1, block_R1)
    rest_R1 = ((target_R1 - before_R1) / mass_RN.gather(1, block_R1)).clamp(max=_BELOW_ONE)
    cdf_RS = blocks_RNS[torch.arange(num_rows, device=block_R1.device), block_R1[:, 0]].double().cumsum(-1)
    token_R1 = torch.searchsorted(cdf_RS, rest_R1 * cdf_RS[:, -1:], right=True)
    return (block_R1 * _CDF_BLOCK + token_R1).squeeze(1)


def _nucleus_threshold(probs_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Returns the smallest probability inside each row's nucleus, [R, 1]."""
    top_RC = probs_RV.topk(min(_NUCLEUS_CANDIDATES, probs_RV.shape[-1]), dim=-1).values
    if bool((top_RC.sum(-1) < top_p).any()):
        top_RC = probs_RV.sort(dim=-1, descending=True).values
    # A token is inside if the mass before it has not reached top_p; the first always is.
    num_inside_R = (top_RC.cumsum(-1) - top_RC < top_p).sum(-1, keepdim=True)
    return top_RC.gather(-1, num_inside_R.clamp(min=1) - 1)
