"""The rates that a plan counts with: each with its unit, the hardware, and where it was measured. Nothing here is a guess that
does not say so.

Stages without a language model were measured with documents of 66 words on two cores, and are taken to grow with the words.
A core of the CPU kinds is one thread. What a GPU was not measured for follows from its peak (`zerogr.training.peaks`), and the
stage says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["measured", "fitted", "published", "assumed", "extrapolated", "not known"]
"""fitted: chosen so that a measured run comes out, as its source says. The last two are of stages, never of rates."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One figure."""

    value: float
    unit: str
    hardware: str
    source: str
    """The command and the commit, the page of `docs/`, or the paper."""
    basis: Basis = "measured"


MOST_ENGINES = 4
"""At a time, of a node without GPUs."""

_XEON = "2 cores of an Intel Xeon with AMX, 24 GiB"
_RUN = "python -m benchmarks.pipeline --documents 10000000, commit 33f858d81aff (benchmarks/results/pipeline-xeon.md), "
_PIPELINE = _RUN + "by what a million documents take longer than 100,000"
"""Of three machines the one in the middle."""
_WORDS = 66
"""Of a document in that run: 6 of the title, 60 of the text."""
_H200 = "one NVIDIA H200, 16 host cores, torch 2.11"
_H200_RUN = "single runs at commit d174075 (docs/gpu.md)"
_FIT = _H200_RUN + "; fitted to steps of 256 and 1,024 pairs of 28.4 tokens: 135M 169 and 224 ms, 1B 185 and 480 ms"

CORPUS = Rate(
    19_202 * _WORDS,
    "words/s, one core that reads alone",
    _XEON,
    _RUN + "by what 100,000 documents take longer than 10,000",
)
CORPUS_SHARED = Rate(
    21_080 * _WORDS / 2, "words/s and core, where several read a large corpus", _XEON, _RUN + "a million documents"
)
DOCIDS = Rate(9_952 * _WORDS / 2, "words/s and core, with the resolution", _XEON, _PIPELINE)
QUERIES = Rate(
    13_198 * 4 / 2, "spans/s and core, cut; answers, which are judged, are taken for as many", _XEON, _PIPELINE
)
TRIE = Rate(75_660, "docids/s, one core, read and tokenised", _XEON, _PIPELINE)
LEXICAL = Rate(
    1_000_000 * 64 / 50, "words/s, one core", "one core of an AMD EPYC", "docs/log.md, 2026-11-26, beside other work"
)
EMBEDDINGS = Rate(
    5_183 * 209 / 116,
    "words/s, 2 cores, all-MiniLM-L6-v2",
    _XEON,
    "docs/results.md, SciFact, the row minilm, 1ee6f6024865",
)
RAY_START_S = Rate(
    3.0,
    "s per stage on Ray, the mean of docids and queries",
    "2 cores of an AMD EPYC with AVX-512, 24 GiB",
    "benchmarks/results/pipeline-epyc.md, commit 6876e370e470: what 100,000 documents take beyond their rate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What one core does with SmolLM2-135M, in tokens a second; of larger models in proportion to the parameters."""

    hardware: str
    precision: Literal["bf16", "fp32"]
    prompt: Rate | None
    """Tokens read; None = reading is part of `new`."""
    new: Rate
    """Tokens written by the transformers engine, one engine a core."""
    training: Rate
    """Tokens through the model."""
    load_s: Rate
    """Processor seconds until an engine or a trainer has begun."""
    search_s: Rate | None
    """Per query: beam, k = 100."""
    cores: int = 2
    """Of a node."""

    def rates(self, kind: str) -> dict[str, Rate]:
        """Returns what is known of it, by name."""
        names = ("prompt", "new", "training", "load_s", "search_s")
        return {f"{kind}.{name}": rate for name in names if (rate := getattr(self, name))}


_LOAD = Rate(
    20.0, "s per stage with a model", "2 cores of an AMD EPYC with AVX2",
    "an assumption, between what an engine needs to load a converted model and a trainer's processes to start", "assumed",
)  # fmt: skip


LAYER_S = Rate(5.2e-3, "s per layer and step of training, of the host", _H200, _FIT, "fitted")
PRODUCTS = Rate(5.30e14, "FLOP/s in products of matrices", _H200, _FIT, "fitted")
ELEMENTWISE_S = Rate(7.63e-11, "s per token, layer and unit of the hidden size", _H200, _FIT, "fitted")
GENERATION_HOST_S = Rate(
    1 / 4_700,
    "s per new token of the transformers engine, of the host",
    _H200,
    _H200_RUN + "; SmolLM2-135M, 1,024 at a time",
)
SEARCH_GPU_S = Rate(0.0130, "s per query, beam, k = 100, batches of 32, 1M docids", _H200, _H200_RUN)
RESOLUTION = Rate(
    10_000_000 / 87.1, "documents/s, one thread", _XEON,
    "python -m benchmarks.pipeline --parts resolution, commit 19825a5994e2 (benchmarks/results/resolution.md)",
)  # fmt: skip
TRIE_BYTES = Rate(
    37.22,
    "bytes per docid on disk",
    _XEON,
    "python -m benchmarks.trie, commit 8c271602a0c2 (benchmarks/results/trie.md)",
)
LEXICAL_BYTES = Rate(391, "bytes per document on disk", "-", "docs/log.md, 2026-11-26: a million synthetic documents")
ZEROGR_WEEKS = Rate(
    2, "weeks of training, indexing and evaluating ZeroGR-3B on 8 A800-80GB", "8 A800-80GB",
    "README of the official code, github.com/sunnweiwei/ZeroGR", "published",
)  # fmt: skip

_AVX2 = "2 cores of an AMD EPYC with AVX2 alone, fp32"
_AVX2_RUN = (
    "python -m benchmarks.rates (benchmarks/results/rates-avx2.md) on a busy machine, times 1.65: fitted to the "
    "first demo run of docs/log.md, 2026-11-28"
)
_BF16 = "2 cores of an AMD EPYC with AVX-512 and bf16"
_ENGINE = "zerogr/llm/engines/transformers.py: 16 prompts of 280 tokens, four samples each, one core"
CORES = {
    "avx2": Core(
        hardware=_AVX2,
        precision="fp32",
        prompt=Rate(174.4 * 1.65, "prompt tokens/s", _AVX2, _AVX2_RUN, "fitted"),
        new=Rate(50.31 * 1.65, "new tokens/s", _AVX2, _AVX2_RUN, "fitted"),
        training=Rate(51.73 * 1.65, "tokens through the model/s", _AVX2, _AVX2_RUN, "fitted"),
        load_s=_LOAD,
        search_s=None,
    ),
    "bf16": Core(
        hardware=_BF16,
        precision="bf16",
        prompt=Rate(1_100, "prompt tokens/s", _BF16, _ENGINE),
        new=Rate(304, "new tokens/s", _BF16, _ENGINE),
        training=Rate(
            850 / 1.192 / 2,
            "tokens through the model/s",
            _BF16,
            "python -m benchmarks.training, d174075 and 51ab4d4 (docs/log.md, 2026-11-28); share_of_useful from training.md",
        ),  # fmt: skip
        load_s=_LOAD,
        search_s=None,
    ),
    "amx": Core(
        hardware=_XEON,
        precision="bf16",
        prompt=None,
        new=Rate(132, "new tokens/s, prompts read", _XEON, "docs/log.md, 2026-11-21: one engine of one thread"),
        training=Rate(
            638.2 / 1.192 / 2,
            "tokens through the model/s",
            _XEON,
            "python -m benchmarks.training, commit d5423eb2be54 (benchmarks/results/training.md)",
        ),  # fmt: skip
        load_s=_LOAD,
        search_s=Rate(
            0.70, "s per query, beam, k = 100, 1M docids", _XEON, "benchmarks/results/decoding.md, 82a41fec4d2a"
        ),
    ),
}
"""What `--cpu` takes."""

RATES = {name.lower(): rate for name, rate in globals().items() if isinstance(rate, Rate) and not name.startswith("_")}
"""All of them, by name."""
for _kind, _core in CORES.items():
    RATES |= _core.rates(_kind)
