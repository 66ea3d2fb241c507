"""What several sections of the configuration have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from zerogr.config.names import EMBEDDED_MODEL

Strategy = Literal["greedy", "beam", "nucleus", "reverse_annealing", "stochastic_beam", "best_first"]
EngineName = Literal["auto", "transformers", "vllm", "fake"]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceConfig(Section):
    """Where documents come from and how they are read."""

    source: str = Field(
        "pystdlib:",
        min_length=1,
        description="What to index: a BEIR or MAIR folder, a .jsonl, .csv, .tsv or .parquet file or a folder of them (a path, "
        "an s3:// URI, or hf:owner/name[@revision][/folder] on the Hugging Face hub), or `pystdlib:`, the reference text "
        "inside CPython.",
    )
    format: Literal["auto", "beir", "mair", "jsonl", "csv", "parquet", "pystdlib"] = Field(
        "auto", description="How to read it; auto looks at the source. csv is for .tsv as well."
    )
    doc_id_column: str = Field(
        "_id", description="Column (JSON key) of the document's own key; MAIR's `id` and `doc` are known."
    )
    title_column: str = Field("title", description="Column of the title; a corpus without it is read as untitled.")
    text_column: str = Field("text", description="Column of the body; a list of lists is read as the rows of a table.")
    kind: Literal["auto", "text", "table", "code"] = Field(
        "auto", description="Kind of every document; auto asks the row, then its look."
    )
    max_document_bytes: int = Field(
        4 * 2**20, ge=1, description="Larger documents (title + text, UTF-8 bytes) are rejected as too_large."
    )
    max_documents: int | None = Field(
        None, ge=1, description="Index only this many documents, sampled by hash; null = all."
    )


class EngineConfig(Section):
    """A language model that writes, and what runs it."""

    engine: EngineName = Field(
        "auto", description="auto = vllm where it is installed with a GPU, else transformers; fake = for tests."
    )
    model: str = Field(
        EMBEDDED_MODEL, min_length=1, description="Instruction-tuned causal LM: a folder, a Hub name, an s3:// URI."
    )
