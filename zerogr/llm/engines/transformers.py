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
from zerogr.llm.engines.device import ON_GPU, DeviceSampler
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.rendering import ChatRenderer, cut_at_stop, end_token_ids, max_prompt_tokens_for
from zerogr.llm.engines.sampling import draw_tokens, uniforms
from zerogr.llm.models import fastest_dtype, load_model, resolve_model
from zerogr.llm.paths import sliding_window

_COMPACT_FRACTION = 0.25  # of finished rows at which the batch is compacted
_MIN_SHARED_PREFIX = 16  # tokens from which encoding a common prefix by itself is worth one more forward pass


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
        batch_size: int | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        on_device: bool | None = None,
    ) -> None:
        """Loads the model.

        Args:
            model: A model name or path as `zerogr.llm.models.resolve_model` takes it.
            batch_size: Sequences (prompts x samples) decoded together; a prompt with more samples is a batch alone. None =
                32, on a GPU 1,024.
            device: None = the GPU if there is one.
            dtype: Of weights and activations; None = what the device is fastest in (`fastest_dtype`).
            on_device: Whether samples are drawn without the host (`zerogr.llm.engines.device`); None = on a GPU.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = load_model(
            resolve_model(model), device=device, dtype=dtype or fastest_dtype(device)
        )
        is_gpu = torch.device(device).type == "cuda"
        self.batch_size = batch_size or (ON_GPU if is_gpu else 32)
        self._serving = threading.Lock()
        self._renderer = ChatRenderer(self.tokenizer)
        self._end_ids = end_token_ids(self.tokenizer, self.model.generation_config)
        self._device_sampler: DeviceSampler | None = None
        if is_gpu if on_device is None else on_device:
            self._device_sampler = DeviceSampler(self.model, self._decode)
        else:
            register_grouped_sdpa()
            self.model.set_attn_implementation(GROUPED_SDPA)

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
            longest = max(len(request.input_ids) for request in batch) + sampling.max_tokens
            if self._device_sampler and longest <= (sliding_window(self.model) or longest):
                samples = self._device_sampler.sample([(r.input_ids, r.seeds) for r in batch], sampling, self._end_ids)
                for request, found in zip(batch, samples, strict=True):
                    request.samples = found
            else:
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
        uniforms_RT = torch.from_numpy(uniforms(seeds, sampling.max_tokens)).to(logits_BV.device)
        expand = torch.tensor(prompt_of_row, device=logits_BV.device)
        _select_rows(cache, expand)
        logits_RV, mask_RT = logits_BV[expand], mask_BT[expand]
        alive = np.arange(len(rows))  # row of the whole batch behind each row of the cache
        is_done = np.zeros(len(rows), dtype=bool)
        for step in range(sampling.max_tokens):
            tokens = draw_tokens(logits_RV, uniforms_RT[torch.from_numpy(alive).to(logits_RV.device), step], sampling)
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
