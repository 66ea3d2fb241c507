"""What each stage of an index would cost: GPU-hours, core-hours, wall time, memory and disk.

A stage whose rate was measured on the hardware in question, or fitted to what was, says so. One that is scaled from another
model, GPU or number of nodes is `extrapolated`, with its formula. What nobody has measured is `not known` and counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zerogr.config.tree import Config
from zerogr.corpus.splits import SMALL_BYTES
from zerogr.cost.machines import Machines, Seconds
from zerogr.cost.rates import (
    CORPUS,
    CORPUS_SHARED,
    DOCIDS,
    EMBEDDINGS,
    LEXICAL,
    LEXICAL_BYTES,
    QUERIES,
    RAY_START_S,
    RESOLUTION,
    SEARCH_GPU_S,
    TRIE,
    TRIE_BYTES,
    Basis,
)
from zerogr.cost.shapes import Shape
from zerogr.cost.texts import Texts
from zerogr.cost.work import Work, Writing, work_of
from zerogr.index.stage import INDEX

DOCID_BYTES = 50
"""Of a docid's text: six to eight words."""
PROPOSAL_BYTES, DRIVER_BYTES = 160, 0.3e9
"""Of the resolution, per document, and of the process that drives: benchmarks/results/resolution.md, and pipeline.md as it was
at commit c4aad32."""
TRIE_MEMORY_BYTES, LEXICAL_MEMORY_BYTES = 104, 1340
"""Per document, while they are built (pipeline.md as of c4aad32, from a tenth to the whole; docs/log.md, 2026-11-26)."""
WEIGHT_BYTES, TRAINED_BYTES, CHECKPOINT_BYTES = 2, 18, 12
"""Per parameter: bf16; weights, gradients, masters and moments while training; a checkpoint."""
LEAST_PASS_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage. None = not known."""

    stage: str
    basis: Basis
    formula: str
    gpu_hours: float | None = None
    cpu_hours: float | None = None
    """Of cores, beside those that feed a GPU."""
    seconds: float | None = None
    """Wall time on all nodes."""
    memory_bytes: float | None = None
    """Of the largest process, or of one GPU where the stage has one."""
    disk_bytes: float | None = None
    """Of what it publishes, with what it needs while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models of an index."""

    docids: Shape | None
    queries: Shape | None
    retriever: Shape


def estimate(config: Config, texts: Texts, machines: Machines, models: Models) -> list[StageCost]:
    """Returns the cost of every stage that an index of the configuration has, in order."""
    work = work_of(config, texts, row_tokens=1024 if machines.gpu else 256)
    costs = {one.stage: one for one in _known(config, work, machines, models)}
    return [
        costs.get(stage.name, StageCost(stage=stage.name, basis="not known", formula="nobody has measured it"))
        for stage in INDEX.stages
        if stage.is_wanted(config)
    ]


def _known(config: Config, work: Work, machines: Machines, models: Models) -> Iterator[StageCost]:
    texts = work.texts
    count, num_words = texts.num_documents, texts.num_documents * texts.document_words
    stored = texts.document_bytes * texts.compression
    is_large = count * texts.document_bytes > SMALL_BYTES  # else one process reads it
    alone_s, shared_s = (0.0, num_words / CORPUS_SHARED.value) if is_large else (num_words / CORPUS.value, 0.0)
    yield _on_cores("corpus", alone_s, shared_s, machines, 8 * count + DRIVER_BYTES, count * stored)
    yield _on_cores("embeddings", 0.0, 2 * num_words / EMBEDDINGS.value, machines, None, count * 384 * 4)
    resolved = count / RESOLUTION.value
    candidates = getattr(config.docids, "candidates", 1)
    if work.docids or not config.docids.needs_engine:
        yield _generating(
            "docids",
            resolved,
            num_words / DOCIDS.value - resolved,
            (work.docids, models.docids),
            machines,
            disk=count * DOCID_BYTES * (2 + 2 * candidates),
            memory=count * PROPOSAL_BYTES + DRIVER_BYTES,
        )
    written = texts.spans_per_document * texts.span_bytes + work.kept_queries * work.query_bytes
    yield _generating(
        "queries",
        0.0,
        count * (texts.spans_per_document + work.num_queries) / QUERIES.value,
        (work.queries, models.queries),
        machines,
        disk=count * written * texts.compression,
        memory=DRIVER_BYTES,
    )
    yield _on_cores(
        "lexical", 0.0, num_words / LEXICAL.value, machines, count * LEXICAL_MEMORY_BYTES, count * LEXICAL_BYTES.value
    )
    yield _on_cores(
        "trie", count / TRIE.value, 0.0, machines, count * TRIE_MEMORY_BYTES + DRIVER_BYTES, count * TRIE_BYTES.value
    )
    yield _training(config, work, machines, models.retriever)


def _on_cores(
    stage: str, serial_s: float, parallel_s: float, machines: Machines, memory: float | None, disk: float
) -> StageCost:
    """Returns the cost of a stage without a model: core seconds of one process, and of all of them."""
    start_s = RAY_START_S.value if parallel_s else 0.0
    return StageCost(
        stage=stage,
        basis="extrapolated" if machines.gpu or machines.nodes > 1 else "measured",
        formula="in proportion to the words, or to the docids",
        gpu_hours=0.0,
        cpu_hours=(serial_s + parallel_s) / 3600,
        seconds=start_s + serial_s + parallel_s / (machines.nodes * machines.cores),
        memory_bytes=memory,
        disk_bytes=disk,
    )


def _generating(
    stage: str,
    serial_s: float,
    parallel_s: float,
    asked: tuple[Writing | None, Shape | None],
    machines: Machines,
    *,
    disk: float,
    memory: float,
) -> StageCost:
    """Returns the cost of a stage that may ask a model, beside what `_on_cores` counts."""
    plain = _on_cores(stage, serial_s, max(parallel_s, 0.0), machines, memory, disk)
    writing, shape = asked
    if writing is None or shape is None:
        return plain
    assert plain.seconds is not None and plain.cpu_hours is not None
    work: Seconds = machines.writing_s(writing, shape)
    hours = work.value / 3600
    return StageCost(
        stage=stage,
        basis=work.basis if machines.nodes == 1 else "extrapolated",
        formula=work.formula,
        gpu_hours=hours if machines.gpu else 0.0,
        cpu_hours=plain.cpu_hours + (0.0 if machines.gpu else hours),
        seconds=plain.seconds + machines.core.load_s.value + work.value / machines.engines,
        memory_bytes=_engine_bytes(writing, shape, machines),
        disk_bytes=disk,
    )


def _engine_bytes(writing: Writing, shape: Shape, machines: Machines) -> float:
    """Returns the memory of one engine: weights, and the keys and values of a batch."""
    size = 2 if machines.gpu or machines.core.precision == "bf16" else 4
    cache = 2 * shape.layers * shape.key_heads * shape.head_size * writing.longest * (1024 if machines.gpu else 32)
    return size * (shape.parameters + cache)


def _training(config: Config, work: Work, machines: Machines, shape: Shape) -> StageCost:
    training, learning = config.training, work.learning
    found = machines.training_s(learning, training.batch_size, shape, is_lora=training.lora_rank > 0)
    hours = found.value * machines.nodes / 3600
    ranks = machines.nodes
    per_token = shape.layers * (24 * shape.hidden + 5 * shape.intermediate)
    pass_tokens = config.compute.pass_tokens or LEAST_PASS_TOKENS
    stored = learning.stored_pairs * (48 + 4 * (learning.model_tokens + 1))
    kept = WEIGHT_BYTES * (2 if machines.core.precision == "fp32" and not machines.gpu else 1)
    return StageCost(
        stage="retriever",
        basis=found.basis,
        formula=found.formula,
        gpu_hours=hours if machines.gpu else 0.0,
        cpu_hours=0.0 if machines.gpu else hours * machines.cores,
        seconds=RAY_START_S.value + machines.core.load_s.value + found.value,
        memory_bytes=TRAINED_BYTES * shape.parameters / ranks + pass_tokens * per_token,
        disk_bytes=stored + shape.parameters * (CHECKPOINT_BYTES + kept),
    )


def search_s(machines: Machines, shape: Shape, reference: Shape) -> float | None:
    """Returns the seconds of a query (beam, k = 100, batches of 32 on a GPU); None for models that were not measured."""
    if shape != reference:
        return None
    if machines.gpu:
        return SEARCH_GPU_S.value if machines.gpu == "h200" else None
    return machines.core.search_s.value if machines.core.search_s else None
