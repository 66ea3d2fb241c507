"""How fast is constrained decoding, against what people use today? `python -m benchmarks.decoding [--quick]`

Real docids (Python's own reference text, TF-IDF keywords), real questions, a real language model that nobody trained to
retrieve: the figures are about speed. What ours has to do is also compared with a slow reference, so that no figure can be
bought with a wrong answer: `overlap_*` is the share of the same k documents.

    against peers       constrained beam search and sequential draws through `generate`, see `benchmarks.peers`
    outside the model   the share of a query's time that is not spent inside the model
    in batches          one batch against its queries one by one, and against the bare forward passes of the same shapes
    array programs      `zerogr.decoding.device` on this device, against the reference
    many docids         the same beam search over a million docids made of the same words

The last line printed is one JSON object. Names: `<method>_k<k>_s` seconds per query, `forwards_*` passes through the model,
the prompt's included, `nodes_*` tokens evaluated after the prompt. The method is the strategy, under `allowed`;
`beam_vocabulary` is the beam search under `vocabulary`, which has `generate`'s semantics.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.docids import pystdlib_docids, recombined
from benchmarks.peers import (
    DictTrie,
    Path,
    bare_forwards_s,
    constrained_beam,
    dict_trie,
    draw,
    plain_scores,
    remove,
    synchronise,
    truncated_trie,
)
from benchmarks.report import report
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.decoding import DecodedList, decode, decode_batch
from zerogr.decoding.device.decoder import DeviceDecoder
from zerogr.decoding.language_model import TreeModel
from zerogr.decoding.schedule import temperature
from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.llm.chat import SETTINGS_FILE, ChatFormat
from zerogr.llm.models import load_model, resolve_model
from zerogr.store import cache, storage
from zerogr.trie import DocidTrie
from zerogr.trie.opened import read_documents

QUESTIONS = File(__file__).parents[1] / "examples" / "pystdlib" / "queries.jsonl"
INSTRUCTION = "Given a programmer's question about Python, find the documentation that answers it."
METHODS = {
    "beam": ("beam", "allowed"),
    "beam_vocabulary": ("beam", "vocabulary"),
    "best_first": ("best_first", "allowed"),
    "reverse_annealing": ("reverse_annealing", "allowed"),
    "stochastic_beam": ("stochastic_beam", "allowed"),
}
NOTES = """
- Without `--index` the retriever is not trained, so what is found means nothing; all systems search the same docids with the
  same weights.
- Seconds per query are medians over the queries of medians over rounds. Every peer decodes the first query, once, after a
  warm-up; the speed-ups compare it with ours on the same query. Ours keeps the encoded instruction from query to query.
- `constrained_beam` is `generate` over whole docids, which is a beam search under `vocabulary`: `same_results` compares it with
  ours of the same semantics (`overlap_with_constrained_beam_*`: the share of the same documents), the other speed-ups with
  ours under `allowed`. `generate` encodes the prompt once per beam.
- `sequential` is an estimate: k times the mean of draws spread over the schedule, each with the leaves of our own earlier draws
  removed, plus one copy of the trie. Like the official code it ends a docid at its shortest distinguishing prefix;
  `sequential_whole_docids` writes docids to their end.
- `bare` forward passes have the same new tokens, queries and context as ours, a plain causal mask and no output head.
"""


@dataclass(slots=True)
class Timed:
    """One decoded batch. Not the scorer: it holds the keys and values of every evaluated node."""

    seconds: float
    forward_s: float
    """Of these, inside the model."""
    found: list[DecodedList]
    forwards: Sequence[tuple[int, int, int]]
    """Per forward pass, the prompt's first: new tokens, queries that have some, tokens of the longest query."""
    num_nodes: int
    """Tokens evaluated after the prompts."""

    @property
    def fraction_outside(self) -> float:
        """The share of the time that was not spent inside the model."""
        return 1 - self.forward_s / self.seconds


class Bench:
    """A model twice (ours takes its copy over), a trie over real docids, and prompts."""

    def __init__(self, arguments: argparse.Namespace, num_docids: int, num_prompts: int):
        """Loads everything; `arguments` are the command line's, `num_docids` those of the built-in corpus."""
        if arguments.index:
            index = Index(arguments.index)
            folder = str(cache.local_folder(index.path("retriever")))
            instruction = storage.read_json(str(File(folder) / SETTINGS_FILE))["instruction"]
            self.texts = read_documents(index, Version.of(index.manifest())).column("docid").to_pylist()
        else:
            folder, instruction = resolve_model(arguments.model), INSTRUCTION
            self.texts = pystdlib_docids(num_docids)
        self.model, tokenizer = load_model(folder, device=arguments.device, dtype=arguments.dtype)
        self.tree_model = TreeModel(load_model(folder, device=arguments.device, dtype=arguments.dtype)[0])
        self.chat = ChatFormat.of(tokenizer)
        self.end = self.chat.end_token_id
        tokens, offsets = self.chat.docids(self.texts)
        self.docids = [tuple(part.tolist()) for part in np.split(tokens, offsets[1:-1])]
        self.trie = DocidTrie.build((tokens, offsets))
        questions = [json.loads(line)["text"] for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
        shared = self.chat.prefix(instruction)
        random.Random(0).shuffle(questions)
        self.prompts = [(shared, self.chat.query(questions[i % len(questions)])) for i in range(num_prompts)]

    def prompt(self, query: int) -> list[int]:
        """The whole prompt of a query."""
        return [token for part in self.prompts[query] for token in part]

    def ours(self, queries: Sequence[int], k: int, method: str, trie: DocidTrie | None = None) -> Timed:
        """Decodes a batch of queries."""
        strategy, normalise = METHODS[method]
        prompts = [self.prompts[query] for query in queries]
        trie = self.trie if trie is None else trie
        synchronise(self.model)
        start = time.perf_counter()
        scorer = self.tree_model.start(prompts)
        found = decode_batch(scorer, trie, k, eos_token_id=self.end, strategy=strategy, normalise=normalise)
        synchronise(self.model)
        seconds = time.perf_counter() - start
        return Timed(seconds, scorer.forward_s, found, scorer.forwards, scorer.num_evaluated)


def measure_against_peers(bench: Bench, ks: Sequence[int], num_queries: int, num_draws: int) -> dict[str, Any]:
    """Every method, one query at a time, and between the rounds the peers."""
    figures: dict[str, Any] = {}
    whole = dict_trie(bench.docids, bench.end)
    max_tokens = max(map(len, bench.docids)) + 1
    beams: dict[int, list[Path]] = {}

    def beam_peer(k: int) -> None:
        seconds, found = _timed(
            bench,
            lambda: constrained_beam(bench.model, bench.prompt(0), whole, k, end=bench.end, max_tokens=max_tokens),
        )
        figures[f"constrained_beam_k{k}_s"] = seconds
        beams[k] = [path for path, _ in found]

    def sequential_peer(name: str, fresh: DictTrie, path_of: dict[Path, Path]) -> None:
        k = max(ks)
        copy_s, trie = _timed(bench, lambda: copy.deepcopy(fresh))
        earlier = [path_of[item.tokens] for item in bench.ours([0], k, "reverse_annealing").found[0]]
        draw_s = []
        for number, path in enumerate(earlier):
            if number % (k // num_draws) == 0:
                one_draw = partial(draw, bench.model, bench.prompt(0), trie, temperature(number, max(k, 100)))
                draw_s.append(_timed(bench, partial(one_draw, end=bench.end))[0])
            remove(trie, path)
        figures["num_sequential_draws_timed"] = len(draw_s)
        figures[f"{name}_draw_s"] = mean(draw_s)
        figures[f"{name}_k{k}_s"] = copy_s + k * mean(draw_s)

    whole_paths = {docid: (*docid, bench.end) for docid in bench.docids}
    peers: list[Callable[[], None]] = [
        lambda: sequential_peer("sequential", *truncated_trie(bench.docids, bench.end)),
        lambda: sequential_peer("sequential_whole_docids", whole, whole_paths),
        *(partial(beam_peer, k) for k in ks),
    ]
    constrained_beam(bench.model, bench.prompt(0), whole, 2, end=bench.end, max_tokens=2)
    bench.ours([0], ks[0], "beam")
    bench.ours([0], ks[0], "beam_vocabulary")
    runs: dict[tuple[str, int, int], list[Timed]] = {}
    for peer in peers:
        for k in ks:
            for method in METHODS:
                for query in range(num_queries):
                    runs.setdefault((method, k, query), []).append(bench.ours([query], k, method))
        peer()
    return _summary(figures, runs, beams, ks, num_queries)


def _summary(
    figures: dict[str, Any],
    runs: dict[tuple[str, int, int], list[Timed]],
    beams: dict[int, list[Path]],
    ks: Sequence[int],
    num_queries: int,
) -> dict[str, Any]:
    """The peers' figures, with those of our runs, by method, k and query, and the ratios."""
    for k in ks:
        first_s = {}
        for method in METHODS:
            per_query = [runs[method, k, query] for query in range(num_queries)]
            seconds = [median(run.seconds for run in repeated) for repeated in per_query]
            first_s[method] = seconds[0]
            figures[f"{method}_k{k}_s"] = median(seconds)
            figures[f"forwards_{method}_k{k}"] = median(len(repeated[0].forwards) for repeated in per_query)
            figures[f"nodes_{method}_k{k}"] = median(repeated[0].num_nodes for repeated in per_query)
            figures[f"fraction_outside_forward_{method}_k{k}"] = median(
                run.fraction_outside for repeated in per_query for run in repeated
            )
        peer_s = figures[f"constrained_beam_k{k}_s"]
        figures[f"speedup_vs_constrained_beam_k{k}"] = peer_s / first_s["beam"]
        figures[f"speedup_vs_constrained_beam_same_results_k{k}"] = peer_s / first_s["beam_vocabulary"]
        figures[f"speedup_best_first_vs_constrained_beam_k{k}"] = peer_s / first_s["best_first"]
        found = runs["beam_vocabulary", k, 0][0].found[0]
        figures[f"overlap_with_constrained_beam_k{k}"] = _overlap([item.tokens for item in found], beams[k])
        for name in ("sequential", "sequential_whole_docids"):
            if f"{name}_k{k}_s" in figures:
                figures[f"speedup_vs_{name}_k{k}"] = figures[f"{name}_k{k}_s"] / first_s["reverse_annealing"]
    k = max(ks)
    figures["fraction_outside_forward"] = max(
        figures[f"fraction_outside_forward_{method}_k{k}"] for method in ("beam", "reverse_annealing")
    )
    return figures


def measure_overlap(bench: Bench, k: int, num_queries: int) -> dict[str, Any]:
    """The documents that ours and the uncached reference have in common, the mean over the queries."""
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    for query in range(num_queries):
        shared = plain_scores(bench.model, bench.prompt(query))
        for method, (strategy, normalise) in METHODS.items():
            # Under `vocabulary` whole docids are scored, which nothing else needs and which would fill the memory.
            reference = shared if normalise == "allowed" else plain_scores(bench.model, bench.prompt(query))
            expected = decode(reference, bench.trie, k, eos_token_id=bench.end, strategy=strategy, normalise=normalise)
            found = bench.ours([query], k, method).found[0]
            shares[method].append(_overlap([item.row for item in found], [item.row for item in expected]))
    return {f"overlap_{method}_k{k}": mean(values) for method, values in shares.items() if values}


def measure_batches(bench: Bench, k: int, batches: Sequence[int], num_rounds: int) -> dict[str, Any]:
    """Batches against their queries one by one, and against bare forward passes; without a method named, the worse one.

    A batch of one against itself shows the noise.
    """
    figures: dict[str, Any] = {}
    speedups: dict[int, list[float]] = {}
    ratios: dict[int, list[float]] = {}
    for method in ("beam", "reverse_annealing"):
        for size in batches:
            bench.ours(range(size), k, method)
            singles_s, batch_s, bare_s, outside = [], [], [], []
            for _ in range(num_rounds):
                singles_s.append(sum(bench.ours([query], k, method).seconds for query in range(size)))
                batch = bench.ours(range(size), k, method)
                batch_s.append(batch.seconds)
                outside.append(batch.fraction_outside)
                bare_s.append(bare_forwards_s(bench.model, batch.forwards))
            name = f"{method}_batch{size}_k{k}"
            speedups.setdefault(size, []).append(median(singles_s) / median(batch_s))
            # The tokens are the same, so the ratio of tokens per second is that of the times.
            ratios.setdefault(size, []).append(median(bare_s) / median(batch_s))
            figures[f"{name}_s_per_query"] = median(batch_s) / size
            figures[f"{name}_fraction_outside_forward"] = median(outside)
            figures[f"{name}_speedup"] = speedups[size][-1]
            figures[f"{name}_tokens_ratio_vs_bare_forward"] = ratios[size][-1]
    for size in batches:
        figures[f"batch{size}_speedup"] = min(speedups[size])
        figures[f"batch{size}_tokens_ratio_vs_bare_forward"] = min(ratios[size])
    return figures


def measure_array_programs(bench: Bench, k: int, sizes: Sequence[int], num_rounds: int) -> dict[str, Any]:
    """The array programs for GPUs against the reference, on this device: a ratio above 1 says that they are faster."""
    figures: dict[str, Any] = {}
    decoder = DeviceDecoder(bench.tree_model)
    for method in ("beam", "reverse_annealing"):
        for size in sizes:
            prompts = [bench.prompts[query] for query in range(size)]
            search = partial(
                decoder.decode, prompts, bench.trie, k, eos_token_id=bench.end, strategy=METHODS[method][0]
            )
            search()
            ours_s, theirs_s = [], []
            for _ in range(num_rounds):
                ours_s.append(bench.ours(range(size), k, method).seconds)
                theirs_s.append(_timed(bench, search)[0])
            name = f"{method}_batch{size}_k{k}_array_program"
            figures[f"{name}_s_per_query"] = median(theirs_s) / size
            figures[f"{name}_speedup"] = median(ours_s) / median(theirs_s)
    return figures


def measure_many_docids(bench: Bench, k: int, num_docids: int, num_queries: int, num_rounds: int) -> dict[str, Any]:
    """The same beam search over the real trie and over a large one."""
    tries = {"few": bench.trie, "many": DocidTrie.build(recombined(bench.chat, bench.texts, num_docids))}
    runs: dict[str, list[Timed]] = {"few": [], "many": []}
    for round_number in range(num_rounds + 1):  # the first is the warm-up
        for query in range(num_queries):
            for size, trie in tries.items():
                run = bench.ours([query], k, "beam", trie)
                runs[size] += [run] if round_number else []
    figures: dict[str, Any] = {}
    for size, trie in tries.items():
        name = f"beam_k{k}_{size}_docids"
        figures[f"num_{size}_docids"] = trie.num_docids
        figures[f"{name}_s"] = median(run.seconds for run in runs[size])
        figures[f"forwards_{name}"] = median(len(run.forwards) for run in runs[size])
        figures[f"nodes_{name}"] = median(run.num_nodes for run in runs[size])
        figures[f"{name}_s_per_forward"] = median(run.seconds / len(run.forwards) for run in runs[size])
        figures[f"{name}_s_outside_forward"] = median(run.seconds - run.forward_s for run in runs[size])
    figures["latency_ratio_1m_docids"] = (
        figures[f"beam_k{k}_many_docids_s_per_forward"] / figures[f"beam_k{k}_few_docids_s_per_forward"]
    )
    return figures


def _timed(bench: Bench, work: Callable[[], Any]) -> tuple[float, Any]:
    synchronise(bench.model)
    start = time.perf_counter()
    result = work()
    synchronise(bench.model)
    return time.perf_counter() - start, result


def _overlap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The share of the different things in `found` that `expected` holds too."""
    return len(set(found) & set(expected)) / len(set(found))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 docids, k = 10, small batches: about a minute")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a folder or a Hugging Face name")
    parser.add_argument("--index", help="a finished index: its trained retriever and its docids instead")
    parser.add_argument("--questions", type=File, default=QUESTIONS, help="queries.jsonl of a BEIR folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="of the weights; float32 on the CPU, bfloat16 elsewhere")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on the CPU; all cores")
    parser.add_argument("--queries", type=int, default=3, help="decoded one by one")
    parser.add_argument("--reference-queries", type=int, default=1, help="compared with the uncached reference, slow")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of batches and of the large trie")
    parser.add_argument("--batches", help="sizes, such as 1,16; on GPUs 1,8,16,32")
    parser.add_argument("--out", type=File, help="a Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    is_quick = arguments.quick
    ks = [10] if is_quick else [10, 100]
    k = max(ks)
    sizes = arguments.batches or ("1,4" if is_quick else "1,16" if arguments.device == "cpu" else "1,8,16,32")
    batches = [int(size) for size in sizes.split(",")]

    bench = Bench(arguments, 300 if is_quick else 1351, max(arguments.queries, *batches))
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.model.device.type == "cuda" else bench.model.device.type,
        "dtype": str(bench.model.dtype).removeprefix("torch."),
        "threads": arguments.threads,
        "model": arguments.index or arguments.model,
        "num_docids": bench.trie.num_docids,
        "k": k,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "against peers": lambda: measure_against_peers(bench, ks, arguments.queries, 2 if is_quick else 5),
        "against the uncached reference": lambda: measure_overlap(bench, k, arguments.reference_queries),
        "in batches": lambda: measure_batches(bench, k, batches, arguments.rounds),
        "array programs": lambda: measure_array_programs(bench, k, batches, arguments.rounds),
        "many docids": lambda: measure_many_docids(
            bench, k, 20_000 if is_quick else 1_000_000, arguments.queries, arguments.rounds
        ),
    }
    for name, measure in parts.items():
        start = time.perf_counter()
        figures |= measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
    report("Constrained decoding", rounded, arguments.out, NOTES)


if __name__ == "__main__":
    main()
