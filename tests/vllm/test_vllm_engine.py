"""The vLLM engine against a random, tiny model; run by `make test-vllm` in an environment of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment for it")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zerogr.errors import UserError
from zerogr.llm.engines.engine import EngineDied, Prompt, Sampling
from zerogr.llm.engines.loading import load_engine
from zerogr.llm.engines.rendering import cut_at_stop
from zerogr.llm.engines.transformers import TransformersEngine
from zerogr.llm.engines.vllm import VLLMEngine

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a vocabulary of bytes; 32 is the smallest head that vLLM's CPU attention takes."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    with running(folder) as engine:
        yield engine


@contextmanager
def running(folder: Path) -> Iterator[VLLMEngine]:
    engine = load_engine("vllm", str(folder), dtype="float32", max_num_seqs=16, max_num_batched_tokens=512)
    assert isinstance(engine, VLLMEngine)
    yield engine
    engine.close()


def prompts(num_samples: int) -> list[Prompt]:
    return [
        Prompt(user=f"Name the topic: {tail}", prefill="It is", seeds=tuple(range(100 * i, 100 * i + num_samples)))
        for i, tail in enumerate(["wing", "a slipstream behind a propeller", "x"])
    ]


def test_n_samples_come_from_one_request(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    generate = engine._llm.generate

    def recording(prompt, params, request_id):
        requests.append(params.n)
        return generate(prompt, params, request_id)

    monkeypatch.setattr(engine._llm, "generate", recording)
    generations = engine.generate(prompts(5), Sampling(max_tokens=12))
    assert requests == [5, 5, 5]
    for generation in generations:
        assert len(set(generation.texts)) == 5
        assert 5 <= generation.num_output_tokens <= 60


def test_seeds_decide_the_samples(engine: VLLMEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.9, top_p=0.95)
    first, again = (engine.generate(prompts(3), sampling) for _ in range(2))
    assert [generation.texts for generation in again] == [generation.texts for generation in first]
    others = [Prompt(user=p.user, prefill=p.prefill, seeds=tuple(s + 7 for s in p.seeds)) for p in prompts(3)]
    assert all(a.texts != b.texts for a, b in zip(engine.generate(others, sampling), first, strict=True))


def test_the_largest_seed_is_taken(engine: VLLMEngine) -> None:
    [generation] = engine.generate([Prompt(user="x", seeds=(2**63 - 1, 1, 2))], Sampling(max_tokens=4))
    assert len(generation.texts) == 3


def test_more_prompt_tokens_than_fit_into_one_step(engine: VLLMEngine) -> None:
    """With chunked prefill, a seeded prompt cut in two would kill the CPU worker."""
    many = [Prompt(user=f"{i}: " + "lift and drag " * 25, seeds=(i, i + 1)) for i in range(40)]
    generations = engine.generate(many, Sampling(max_tokens=3))
    assert [len(generation.texts) for generation in generations] == [2] * 40


def test_temperature_0_equals_the_transformers_engine(engine: VLLMEngine, folder: Path) -> None:
    sampling = Sampling(max_tokens=15, temperature=0)
    expected = TransformersEngine(str(folder), device="cpu", dtype="float32").generate(prompts(2), sampling)
    assert engine.generate(prompts(2), sampling) == expected


def test_a_stop_string_ends_a_sample(engine: VLLMEngine) -> None:
    free = engine.generate(prompts(4), Sampling(max_tokens=30))
    stop = next(c for c in free[0].texts[0][2:] if c.isascii() and c.isprintable())
    stopped = engine.generate(prompts(4), Sampling(max_tokens=30, stop=(stop,)))
    assert all(stop not in text for generation in stopped for text in generation.texts)
    assert stopped[0].texts[0] == cut_at_stop(free[0].texts[0], (stop,))


def test_long_prompts_are_cut(engine: VLLMEngine) -> None:
    long = Prompt(user="abcdefghij" * 100, prefill="It is", seeds=(1,))
    [generation] = engine.generate([long], Sampling(max_tokens=2, max_prompt_tokens=60))
    assert generation.num_prompt_tokens == 60
    [generation] = engine.generate([long], Sampling(max_tokens=20, max_prompt_tokens=10_000))
    assert generation.num_prompt_tokens == 492
    with pytest.raises(UserError, match="max_tokens is 512"):
        engine.generate([long], Sampling(max_tokens=512))


def test_a_bad_prompt_gets_an_error_and_the_others_an_answer(engine: VLLMEngine) -> None:
    bad = Prompt(user="x", prefill="y" * 80, seeds=(1,))
    results = engine.generate([bad, prompts(2)[0]], Sampling(max_tokens=5, max_prompt_tokens=80))
    assert results[0].texts == [] and "max_prompt_tokens is 80" in results[0].error
    assert len(results[1].texts) == 2 and results[1].error == ""
    assert engine.generate([bad], Sampling(max_tokens=5, max_prompt_tokens=80))[0].error


def test_what_vllm_rejects_is_an_error_and_the_others_get_their_answers(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = engine._renderer.render
    broken = {"no token": [], "an unknown token": [10**6], "more than the context": [65] * 513}
    monkeypatch.setattr(
        engine._renderer,
        "render",
        lambda prompt, limit: broken[prompt.user] if prompt.user in broken else render(prompt, limit),
    )
    good = prompts(2)
    bad = [Prompt(user=user, seeds=(1, 2)) for user in broken]
    mixed = [good[0], bad[0], bad[1], good[1], bad[2], Prompt(user="no sample", seeds=()), good[2]]
    results = engine.generate(mixed, Sampling(max_tokens=5))
    assert [len(result.texts) for result in results] == [2, 0, 0, 2, 0, 0, 2]
    assert [bool(result.error) for result in results] == [False, True, True, False, True, True, False]
    assert "empty" in results[1].error and "10000" in results[2].error and "513" in results[4].error


def test_an_empty_user_turn_is_answered(engine: VLLMEngine) -> None:
    [generation] = engine.generate([Prompt(user="", seeds=(1, 2))], Sampling(max_tokens=5))
    assert len(generation.texts) == 2 and not generation.error


def test_threads_share_a_batch_and_get_their_own_answers(engine: VLLMEngine) -> None:
    sampling = Sampling(max_tokens=4)
    shards = [
        [Prompt(user=f"{shard} and {i}: {'x' * (7 * i % 40)}", seeds=(100 * shard + i, 0)) for i in range(12)]
        for shard in range(3)
    ]
    expected = [engine.generate(shard, sampling) for shard in shards]
    barrier = threading.Barrier(len(shards))

    def work(shard: list[Prompt]) -> list:
        barrier.wait()
        return [engine.generate(shard, sampling) for _ in range(3)]

    with ThreadPoolExecutor(len(shards)) as threads:
        for answers, alone in zip(threads.map(work, shards), expected, strict=True):
            assert answers == [alone] * 3


def test_a_killed_engine_process_raises_and_does_not_hang(folder: Path) -> None:
    before = set(multiprocessing.active_children())
    many = [Prompt(user=f"Name the topic {i}", seeds=tuple(range(8))) for i in range(100)]
    with running(folder) as engine, ThreadPoolExecutor(2) as threads:
        [core] = set(multiprocessing.active_children()) - before
        calls = [threads.submit(engine.generate, many, Sampling(max_tokens=400)) for _ in range(2)]
        time.sleep(1)
        assert not any(call.done() for call in calls), "the engine was done before it was killed"
        os.kill(core.pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(EngineDied, match="vLLM has died"):
                call.result(timeout=60)
        with pytest.raises(EngineDied, match="vLLM has died"):
            engine.generate(many, Sampling(max_tokens=4))


def test_close_ends_the_processes_and_what_is_running(folder: Path) -> None:
    before = set(multiprocessing.active_children())
    many = [Prompt(user=f"Name the topic {i}", seeds=tuple(range(8))) for i in range(100)]
    with running(folder) as engine, ThreadPoolExecutor(1) as threads:
        started = set(multiprocessing.active_children()) - before
        call = threads.submit(engine.generate, many, Sampling(max_tokens=400))
        time.sleep(1)
        engine.close()
        with pytest.raises((EngineDied, CancelledError)):
            call.result(timeout=60)
    assert started
    for process in started:
        process.join(timeout=60)
        assert not process.is_alive()


def test_a_process_that_never_closes_its_engine_ends(folder: Path) -> None:
    program = f"""
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.loading import load_engine
if __name__ == "__main__":
    engine = load_engine("vllm", {str(folder)!r}, dtype="float32", max_num_seqs=16, max_num_batched_tokens=512)
    [generation] = engine.generate([Prompt(user="x", seeds=(1, 2))], Sampling(max_tokens=4))
    print("samples:", len(generation.texts))
"""
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "samples: 2" in done.stdout
    assert "Traceback" not in done.stderr
