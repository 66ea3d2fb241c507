"""The sections for teaching: a teacher's data, what the generators learn from it, what a retriever learns from links."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from zerogr.config.base import EngineConfig, Section, SourceConfig
from zerogr.config.names import EMBEDDED_MODEL


class DistilTaskConfig(SourceConfig):
    """A corpus with its instruction."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Tells its rows from those of other tasks.")
    instruction: str = Field(min_length=1, description="The retrieval task in one sentence.")
    source: str = Field(min_length=1, description="As corpus.source.")


class DistilConfig(EngineConfig):
    model: str = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="The teacher, stronger than the generators: any instruction-tuned causal LM, named as they are.",
    )
    out: str = Field(
        "teacher", min_length=1, description="Where the teacher data goes, a folder of its own: a path or an s3:// URI."
    )
    tasks: list[DistilTaskConfig] = Field(
        default_factory=list,
        description="A list of {name, source, instruction}, each also with max_documents and the keys of corpus that say "
        "how to read it; [] = this file's corpus and instruction, as the task `corpus`.",
    )
    candidates: int = Field(
        4,
        ge=1,
        le=64,
        description="Docids the teacher proposes per document; all valid ones are kept, none is repaired.",
    )
    num_queries_per_document: int = Field(
        16, ge=1, le=256, description="Queries sampled per document, before filtering."
    )
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature of both.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus mass of the sampler.")
    max_tokens: int = Field(
        64, ge=4, le=256, description="Tokens per sample; generous, because what is cut off in the middle is lost."
    )
    shard_size: int = Field(256, ge=1, description="Documents per shard, the unit of resuming.")

    @model_validator(mode="after")
    def _task_names(self) -> DistilConfig:
        _different_names(self.tasks)
        return self


class TuningTaskConfig(SourceConfig):
    """A corpus that teaches the generators."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Tells its pairs from those of other tasks.")
    instruction: str = Field(min_length=1, description="The retrieval task in one sentence.")
    source: str = Field(min_length=1, description="As corpus.source.")
    judged: str | None = Field(None, description="A BEIR folder with queries about these documents.")
    split: str = Field("train", description="Of those, qrels/<split>.tsv; never one to be evaluated on.")


class TuningConfig(Section):
    model: str = Field(EMBEDDED_MODEL, min_length=1, description="Causal LM that becomes a generator.")
    out: str = Field(
        "generators", min_length=1, description="Where the generators go, a folder of its own: a path or an s3:// URI."
    )
    teacher: str | None = Field(None, description="A folder of teacher data (`zerogr distil`) to learn from.")
    tasks: list[TuningTaskConfig] = Field(
        default_factory=list,
        description="A list of {name, source, instruction, judged, split}: titles teach docids, judged queries teach queries.",
    )
    num_epochs: int = Field(1, ge=1, le=1000, description="Passes over the pairs.")
    batch_size: int = Field(16, ge=1, description="Pairs per optimiser step, over all workers.")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="Peak of AdamW.")
    row_tokens: int = Field(
        64,
        ge=64,
        description="Pairs are packed into rows of this many tokens; longer ones have a row each, beside others as long.",
    )
    max_prompt_tokens: int = Field(1024, ge=64, description="Longer prompts lose the end of their document.")

    @model_validator(mode="after")
    def _task_names(self) -> TuningConfig:
        _different_names(self.tasks)
        return self


class PretrainingConfig(Section):
    model: str = Field(EMBEDDED_MODEL, min_length=1, description="Causal LM that is pre-trained.")
    out: str = Field(
        "pretraining",
        min_length=1,
        description="Where it goes, a folder of its own: a path or an s3:// URI. retriever.model then names OUT/pretrained.",
    )
    source: str = Field(
        "pystdlib:",
        min_length=1,
        description="Articles that link to each other: a .jsonl file as `zerogr pretrain --help` shows, a folder of them, or "
        "`pystdlib:`.",
    )
    num_queries_per_article: int = Field(
        1, ge=1, le=64, description="Sentences of an article's first section that are its queries, drawn by the seed."
    )
    max_articles: int | None = Field(
        None, ge=1, description="Ask about only so many articles, drawn by hash; links lead to all. null = all."
    )
    max_links: int = Field(
        32, ge=1, le=1000, description="Most linked articles per query: the highest grades, then drawn by the seed."
    )


def _different_names(tasks: Sequence[DistilTaskConfig | TuningTaskConfig]) -> None:
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two tasks are named '{twice}'; every task needs a name of its own")
