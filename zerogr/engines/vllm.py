"""The engine for GPUs: vLLM, offline and synchronous (its CPU build works too, for tests).

One request per prompt with n = the number of its seeds, so that the prompt is encoded once; prefixes common to several
prompts (template, instruction) are shared by vLLM's prefix cache. The prompt's token ids are made by us, exactly as for
the transformers engine.

vLLM takes one seed per request: the first. Sample i then draws from seed + i; `seeds[1:]` only count. Its batches form
by arrival and finish, so rounding differs from run to run: the same rows come out, not the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from zerogr.engines import Generation, Prompt, Sampling
from zerogr.engines.rendering import ChatRenderer, cut_at_stop, max_prompt_tokens_for
from zerogr.errors import UserError
from zerogr.models import load_tokenizer, resolve_model


class VLLMEngine:
    """`vllm.LLM` behind the `Engine` protocol."""

    name = "vllm"

    def __init__(self, model: str, **options: Any) -> None:
        """Loads the model.

        Args:
            model: A model name or path as `zerogr.models.resolve_model` takes it.
            **options: Passed on to `vllm.LLM` (`tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len`, ...).
                Our defaults: prefix caching on; without a GPU eager mode (compiling takes minutes) and whole prompts.

        Raises:
            UserError: vLLM is not installed.
        """
        if not is_vllm_installed():
            raise UserError(
                "engine is 'vllm', but vLLM is not installed; run `pip install 'zerogr[vllm]'` on a machine with a GPU "
                "or set the engine to 'transformers'"
            )
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # read when vllm is imported
        import torch
        import vllm

        folder = resolve_model(model)
        defaults: dict[str, Any] = {"enable_prefix_caching": True}
        if not torch.cuda.is_available():
            # A seeded request whose prompt is encoded in two chunks kills the CPU worker ("CPU Generator does not use
            # offset", vLLM 0.32). Source: gpu_model_runner._bookkeeping_sync rewinds the generator of such a request.
            defaults |= {"enforce_eager": True, "enable_chunked_prefill": False}
        self._llm = vllm.LLM(model=folder, tokenizer=folder, **(defaults | options))
        self._renderer = ChatRenderer(load_tokenizer(folder))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns one `Generation` per prompt, in the order of the prompts.

        Raises:
            UserError: The model's context is too short for `max_tokens`.
        """
        max_prompt_tokens = max_prompt_tokens_for(sampling, self._llm.model_config.max_model_len)
        generations, token_ids = self._renderer.render_all(prompts, max_prompt_tokens)
        params = [_sampling_params(prompts[i], sampling) for i in token_ids]
        requests = [{"prompt_token_ids": ids} for ids in token_ids.values()]
        outputs = self._llm.generate(requests, params, use_tqdm=False) if requests else []
        for i, output in zip(token_ids, outputs, strict=True):
            copies = len(prompts[i].seeds) if sampling.temperature == 0 else 1  # one sample stands for all
            generations[i].texts = [cut_at_stop(sample.text, sampling.stop) for sample in output.outputs] * copies
            generations[i].num_prompt_tokens = len(output.prompt_token_ids)
            generations[i].num_output_tokens = sum(len(sample.token_ids) for sample in output.outputs) * copies
        return generations


def is_vllm_installed() -> bool:
    """Returns whether vLLM can be imported, without importing it (a mere folder of that name has no origin)."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def _sampling_params(prompt: Prompt, sampling: Sampling) -> Any:
    from vllm import SamplingParams

    is_greedy = sampling.temperature == 0  # vLLM refuses n > 1 then: all samples would be the same
    return SamplingParams(
        n=1 if is_greedy else len(prompt.seeds),
        seed=prompt.seeds[0],
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
    )
