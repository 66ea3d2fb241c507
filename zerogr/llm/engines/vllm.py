"""The engine for GPUs: vLLM, offline (its CPU build works too, for tests).

One request per prompt with n = the number of its seeds, so that the prompt is encoded once; prefixes common to several
prompts (template, instruction) are shared by vLLM's prefix cache. The prompt's token ids are made by us, exactly as for
the transformers engine.

vLLM's asynchronous engine computes in processes of its own; its event loop runs in a thread of ours. Threads that call
`generate` at the same time feed one running batch: while one shard's last samples finish, the next one's are decoded.

vLLM takes one seed per request: the first. Sample i then draws from seed + i; `seeds[1:]` only count. Each sample has its
own stream of random numbers, so a token is a function of seed and logits only, whatever else is in the batch. But batches
form by arrival and finish, and they move the logits by rounding: the same rows come out, not the same bytes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from zerogr.errors import UserError
from zerogr.llm.engines.engine import EngineDied, Generation, Prompt, Sampling
from zerogr.llm.engines.rendering import ChatRenderer, cut_at_stop, max_prompt_tokens_for
from zerogr.llm.models import load_tokenizer, resolve_model


class VLLMEngine:
    """vLLM's `AsyncLLM` behind the `Engine` protocol."""

    name = "vllm"

    def __init__(self, model: str, **options: Any) -> None:
        """Loads the model.

        Args:
            model: A model name or path as `zerogr.llm.models.resolve_model` takes it.
            **options: Passed on to `vllm.AsyncEngineArgs` (`tensor_parallel_size`, `gpu_memory_utilization`,
                `max_model_len`, ...). Our defaults: prefix caching on, no statistics; without a GPU eager mode (compiling
                takes minutes) and whole prompts.

        Raises:
            UserError: vLLM is not installed.
        """
        if not is_vllm_installed():
            raise UserError(
                "engine is 'vllm', but vLLM is not installed; run `pip install 'zerogr[vllm]'` on a machine with a GPU "
                "or set the engine to 'transformers'"
            )
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # read when vllm is imported
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # we start it from a thread, which must not fork
        import torch

        folder = resolve_model(model)
        defaults: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
        if not torch.cuda.is_available():
            # A seeded request whose prompt is encoded in two chunks kills the CPU worker ("CPU Generator does not use
            # offset", vLLM 0.32). Source: gpu_model_runner._bookkeeping_sync rewinds the generator of such a request.
            defaults |= {"enforce_eager": True, "enable_chunked_prefill": False}
        self._renderer = ChatRenderer(load_tokenizer(folder))
        # One thread at a time: whether special tokens are split is a setting of the tokenizer, not of the call.
        self._rendering = threading.Lock()
        started: Future[tuple[Any, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        arguments = {"model": folder, "tokenizer": folder, **defaults, **options}
        thread = threading.Thread(target=_run, args=(arguments, started), name="vllm", daemon=True)
        thread.start()
        self._llm, self._loop, stop = started.result()
        self._model_config = self._llm.model_config
        # Runs once: on `close`, when the engine is collected, or at the interpreter's exit.
        self._close = weakref.finalize(self, _stop, self._loop, stop, thread)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns one `Generation` per prompt, in the order of the prompts. Several threads may call it at once.

        Raises:
            UserError: The model's context is too short for `max_tokens`.
            EngineDied: A process of vLLM has ended; the engine answers no more.
        """
        max_prompt_tokens = max_prompt_tokens_for(sampling, self._model_config.max_model_len)
        with self._rendering:
            generations, token_ids = self._renderer.render_all(prompts, max_prompt_tokens)
        requests = [(prompts[i], input_ids, generations[i]) for i, input_ids in token_ids.items()]
        answering = asyncio.run_coroutine_threadsafe(_answer_all(self._llm, requests, sampling), self._loop)
        try:
            answering.result()
        finally:
            answering.cancel()  # aborts the requests if we were interrupted; what is done stays done
        return generations

    def close(self) -> None:
        """Ends vLLM's processes; the engine answers no more, and calls that wait for an answer raise."""
        self._close()


def is_vllm_installed() -> bool:
    """Returns whether vLLM can be imported, without importing it (a mere folder of that name has no origin)."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


# ---- the thread with the event loop ------------------------------------------------------------------------------


def _run(arguments: dict[str, Any], started: Future[Any]) -> None:
    try:
        asyncio.run(_serve(arguments, started))
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _serve(arguments: dict[str, Any], started: Future[Any]) -> None:
    """Makes (engine, event loop, event that stops it) the result of `started`, and keeps the loop until the event."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    # The usage decides the default sizes of a batch: ours is that of `vllm.LLM`, not that of a server.
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
    stop = asyncio.Event()
    started.set_result((weakref.proxy(llm), asyncio.get_running_loop(), stop))
    try:
        await stop.wait()
    finally:
        llm.shutdown()
        del llm  # the only reference: one that lives to the interpreter's last moments complains while it is collected


def _stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(stop.set)
    if thread is not threading.current_thread():  # the garbage collector runs in any thread
        thread.join()


async def _answer_all(llm: Any, requests: list[tuple[Prompt, list[int], Generation]], sampling: Sampling) -> None:
    await asyncio.gather(*(_answer(llm, *request, sampling) for request in requests))


async def _answer(llm: Any, prompt: Prompt, input_ids: list[int], generation: Generation, sampling: Sampling) -> None:
    """Fills `generation`; what vLLM rejects is its error."""
    from vllm.inputs import tokens_input

    try:
        params = _sampling_params(prompt, sampling)
        outputs = [output async for output in llm.generate(tokens_input(input_ids), params, uuid.uuid4().hex)]
    except Exception as error:
        if llm.errored:
            raise EngineDied(f"vLLM has died, its log says why: {error}") from error
        cause = error.__cause__ or error  # vLLM wraps what it did not expect, and says nothing itself
        generation.error = f"{type(cause).__name__}: {cause}"
        return
    [output] = outputs  # FINAL_ONLY
    if any(sample.finish_reason == "error" for sample in output.outputs):
        generation.error = "vLLM ended a sample with finish_reason 'error'"
        return
    copies = len(prompt.seeds) if sampling.temperature == 0 else 1  # one sample stands for all
    generation.texts = [cut_at_stop(sample.text, sampling.stop) for sample in output.outputs] * copies
    generation.num_prompt_tokens = len(input_ids)
    generation.num_output_tokens = sum(len(sample.token_ids) for sample in output.outputs) * copies


def _sampling_params(prompt: Prompt, sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    is_greedy = sampling.temperature == 0  # vLLM refuses n > 1 then: all samples would be the same
    return SamplingParams(
        n=1 if is_greedy else len(prompt.seeds),
        seed=prompt.seeds[0],
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
