"""How close does a generating stage come to its bare engine, and what does a further sample cost?

`python -m benchmarks.generation [--quick]`. Real documents (Python's own reference text), the stages' own prompts, a real
language model; one engine in one process does everything.

    stage against engine    the stage's worker, shard after shard, from the corpus' Parquet to the stage's, against one call
                            of the same engine with the same prompts; `ratio_vs_bare_engine`, the worse stage
    n samples               one request with n samples per prompt against n requests with one sample each that share nothing;
                            `n_samples_cost_ratio`, seconds over seconds

vLLM's CPU build is measured in the environment of `make test-vllm` with pyarrow added, its variables set. The last line
printed is one JSON object. Tokens of a prompt count once, however many samples it has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.report import report
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus
from zerogr.docids.stage import DocidProposer
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Engine, Generation, Prompt, Sampling
from zerogr.llm.engines.fake import FakeEngine
from zerogr.llm.engines.loading import ENGINES, load_engine
from zerogr.llm.generation import ShardReport
from zerogr.queries.stage import QueryWriter

WORKERS: dict[str, Callable[[Config, Index, Engine], Callable[[int], ShardReport]]] = {
    "docids": DocidProposer,
    "queries": QueryWriter,
}
PARTS = [*WORKERS, "samples"]
NOTES = """
- Sampling is the paper's: temperature 1, the whole distribution, 16 queries a document.
- `<stage>_ratio_vs_bare_engine`: documents/s of the stage's worker over documents/s of one `engine.generate` with all of its
  prompts; the median over rounds of both, one after the other, in turns first. Loading the model is in neither.
- The worker is the stage's own and is called as an actor calls it, `shards_in_flight` at a time; Ray is not part of it.
- `n_samples_cost_ratio`: prompts of the query stage. The separate requests, all in one call too, have the seeds that the
  samples have, so both sides write the same texts (`n_samples_equal`: the share of them, which rounding moves) and the
  ratio is one of equal work. They read no prefix cache and share no prefix.
- vLLM's prefix cache is emptied before every measurement: each one encodes its prompts as a first run would.
"""


class Recorder(FakeEngine):
    """An engine that keeps what it is asked, to ask another one the same."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.sampling: Sampling | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns made-up answers."""
        self.prompts += prompts
        self.sampling = sampling
        return super().generate(prompts, sampling)


@dataclass(slots=True)
class Passes:
    """The same work, several times."""

    seconds: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Both over all passes."""

    def add(self, seconds: float, done: Sequence[Any]) -> None:
        """Counts one pass; `done` are its shard reports or generations."""
        self.seconds.append(seconds)
        for part in done:
            is_report = isinstance(part, ShardReport)
            self.prompt_tokens += part.prompt_tokens if is_report else part.num_prompt_tokens
            self.output_tokens += part.output_tokens if is_report else part.num_output_tokens

    def tokens_per_s(self) -> tuple[float, float]:
        """(prompt tokens, output tokens) per second of all passes."""
        return self.prompt_tokens / sum(self.seconds), self.output_tokens / sum(self.seconds)


def measure_stage(stage: str, config: Config, engine: Engine, shards_in_flight: int, num_rounds: int) -> dict[str, Any]:
    """The stage's worker against its engine; the worker's shards stay in the index."""
    index = Index(config.index)
    shards = shards_in(index.path("corpus"))
    recorder = Recorder()
    for shard in shards:
        WORKERS[stage](config, index, recorder)(shard)
    worker = WORKERS[stage](config, index, engine)
    num_documents = len(recorder.prompts)

    def bare() -> Sequence[Any]:
        return engine.generate(recorder.prompts, recorder.sampling)

    def staged() -> Sequence[Any]:
        with ThreadPoolExecutor(shards_in_flight) as threads:
            return list(threads.map(worker, shards))

    passes = {bare: Passes(), staged: Passes()}
    for number in range(num_rounds):
        for work in (staged, bare) if number % 2 else (bare, staged):
            passes[work].add(*timed(engine, work))
    bare_tokens, staged_tokens = passes[bare].tokens_per_s(), passes[staged].tokens_per_s()
    return {
        f"{stage}_ratio_vs_bare_engine": median(
            b / s for b, s in zip(passes[bare].seconds, passes[staged].seconds, strict=True)
        ),
        f"{stage}_s": median(passes[staged].seconds),
        f"{stage}_documents_per_s": num_documents / median(passes[staged].seconds),
        f"{stage}_prompt_tokens_per_s": staged_tokens[0],
        f"{stage}_output_tokens_per_s": staged_tokens[1],
        f"{stage}_bare_documents_per_s": num_documents / median(passes[bare].seconds),
        f"{stage}_bare_prompt_tokens_per_s": bare_tokens[0],
        f"{stage}_bare_output_tokens_per_s": bare_tokens[1],
    }


def measure_samples(config: Config, engine: Engine, num_prompts: int, num_rounds: int) -> dict[str, Any]:
    """n samples of each prompt in one request, against as many requests."""
    index, recorder = Index(config.index), Recorder()
    for shard in shards_in(index.path("corpus")):
        QueryWriter(config, index, recorder)(shard)
    # vLLM draws sample i from the first seed + i.
    together = [
        Prompt(user=prompt.user, prefill=prompt.prefill, seeds=tuple(range(1000 * i, 1000 * i + len(prompt.seeds))))
        for i, prompt in enumerate(recorder.prompts[:num_prompts])
    ]
    apart = [
        Prompt(user=prompt.user, prefill=prompt.prefill, seeds=(seed,)) for prompt in together for seed in prompt.seeds
    ]
    ratios, passes, equal = [], {"together": Passes(), "apart": Passes()}, []
    for _ in range(num_rounds):
        one_s, one = timed(engine, lambda: engine.generate(together, recorder.sampling))
        with no_shared_prefixes(engine):
            many_s, many = timed(engine, lambda: engine.generate(apart, recorder.sampling))
        passes["together"].add(one_s, one)
        passes["apart"].add(many_s, many)
        ratios.append(one_s / many_s)
        texts = [text for generation in one for text in generation.texts]
        equal += [text == single.texts[0] for text, single in zip(texts, many, strict=True)]
    return {
        "num_samples": len(together[0].seeds),
        "n_samples_cost_ratio": median(ratios),
        "n_samples_one_request_s": median(passes["together"].seconds),
        "n_samples_separate_s": median(passes["apart"].seconds),
        "n_samples_output_tokens_per_s": passes["together"].tokens_per_s()[1],
        "n_samples_separate_output_tokens_per_s": passes["apart"].tokens_per_s()[1],
        "n_samples_equal": sum(equal) / len(equal),
    }


def timed(engine: Engine, work: Callable[[], Sequence[Any]]) -> tuple[float, Sequence[Any]]:
    """(Seconds, what `work` returned), started with an empty prefix cache."""
    if engine.name == "vllm":
        emptied = asyncio.run_coroutine_threadsafe(engine._llm.reset_prefix_cache(), engine._loop)
        if not emptied.result():
            raise RuntimeError("vLLM did not empty its prefix cache; is another call running?")
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


@contextmanager
def no_shared_prefixes(engine: Engine) -> Iterator[None]:
    """Every request encodes its whole prompt."""
    from zerogr.llm.engines import transformers, vllm

    plain = vllm._sampling_params

    def uncached(prompt: Prompt, sampling: Sampling) -> Any:
        params = plain(prompt, sampling)
        params.skip_reading_prefix_cache = True
        return params

    with (
        mock.patch.object(vllm, "_sampling_params", uncached),
        mock.patch.object(transformers, "_MIN_SHARED_PREFIX", sys.maxsize),
    ):
        yield


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="docids alone, few documents, one round: a minute or two")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="of the measurement; all")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a folder or a Hugging Face name")
    parser.add_argument("--corpus", default="pystdlib:", help="the documents' source, as corpus.source")
    parser.add_argument("--documents", type=int, help="through each stage; 128")
    parser.add_argument("--shard-size", type=int, help="documents; a quarter of them")
    parser.add_argument("--shards-in-flight", type=int, help="2; 1 for an engine that answers one call at a time")
    parser.add_argument("--batch-size", type=int, default=32, help="of the transformers engine")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="of vLLM, a JSON object")
    parser.add_argument("--rounds", type=int, help="repetitions; 3")
    parser.add_argument("--prompts", type=int, help="of the comparison of n samples with one; 16")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    return parser.parse_args()


def main() -> None:
    """Prints the figures."""
    arguments = _arguments()
    num_documents = arguments.documents or (16 if arguments.quick else 128)
    num_rounds = arguments.rounds or (1 if arguments.quick else 3)
    num_prompts = arguments.prompts or (3 if arguments.quick else 16)
    chosen = arguments.parts or (["docids", "samples"] if arguments.quick else PARTS)
    stages = [stage for stage in WORKERS if stage in chosen]

    with tempfile.TemporaryDirectory() as folder:
        shard_size = arguments.shard_size or max(1, num_documents // 4)
        corpus = {"source": arguments.corpus, "max_documents": num_documents, "shard_size": shard_size}
        sampling = {"temperature": 1.0, "top_p": 1.0}  # the paper's
        config = Config.model_validate(
            {
                "index": folder,
                "corpus": corpus,
                "docids": {"scheme": "keywords", **sampling},
                "queries": {**sampling, "num_queries_per_document": 16, "num_spans_per_document": 16},
            }
        )
        build_corpus(config, Index(folder))
        start = time.perf_counter()
        engine = load_engine(
            arguments.engine, arguments.model, batch_size=arguments.batch_size, **arguments.engine_options
        )
        is_vllm = engine.name == "vllm"
        shards_in_flight = arguments.shards_in_flight or (2 if is_vllm else 1)
        figures: dict[str, Any] = {
            "engine": engine.name,
            "vllm_version": sys.modules["vllm"].__version__ if is_vllm else None,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "model": arguments.model,
            "num_documents": num_documents,
            "shard_size": shard_size,
            "shards_in_flight": shards_in_flight,
            "num_rounds": num_rounds,
            "load_s": time.perf_counter() - start,
        }
        warm_up = [Prompt(user="What is a list?", seeds=(1, 2)) for _ in range(4)]
        engine.generate(warm_up, Sampling(max_tokens=8))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            stage: partial(measure_stage, stage, config, engine, shards_in_flight, num_rounds) for stage in stages
        }
        if "samples" in chosen:
            parts["samples"] = partial(measure_samples, config, engine, num_prompts, num_rounds)
        for name, measure in parts.items():
            start = time.perf_counter()
            figures |= measure()
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if stages:
            figures["ratio_vs_bare_engine"] = min(figures[f"{stage}_ratio_vs_bare_engine"] for stage in stages)
            figures["documents_per_s"] = num_documents / sum(figures[f"{stage}_s"] for stage in stages)
        if is_vllm:
            engine.close()
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
    report(f"Generating stages, {engine.name}", rounded, arguments.out, NOTES)


if __name__ == "__main__":
    main()
