"""What several sections of the configuration have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from zerogr.config.names import EMBEDDED_MODEL, ENCODER

Strategy = Literal["greedy", "beam", "nucleus", "reverse_annealing", "stochastic_beam", "best_first"]
ENGINES = ("auto", "transformers", "vllm", "fake")


def _engine(name: str) -> str:
    if name not in ENGINES and ":" not in name:
        raise ValueError(f"must be one of {', '.join(ENGINES)}, or package.module:Class, not '{name}'")
    return name


EngineName = Annotated[str, AfterValidator(_engine)]
"""The name of an engine of ours, or the class of another."""


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_truth_where_a_number_stands(cls, tree: Any) -> Any:
        """Refuses true where a number is expected, which would count as 1."""
        for name, field in cls.model_fields.items():
            value = tree.get(name) if isinstance(tree, dict) else None
            kinds = set(get_args(field.annotation)) | {field.annotation}
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name} is {str(value).lower()}; it must be a number (YAML reads yes and on as true)")
        return tree


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
    text_column: str = Field(
        "text",
        description="Column of the body; a list of lists is read as the rows of a table, a list of texts as its lines.",
    )
    text_columns: list[str] = Field(
        default_factory=list,
        description="Columns that make the body together, one under the other, instead of text_column.",
    )
    separator: Literal["auto", ",", "\t", ";", "|"] = Field(
        "auto", description="Between the cells of CSV files; auto looks at the header, and takes tabs in .tsv files."
    )
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto",
        description="Whether '\"' quotes cells of CSV and TSV files or is a character like others; auto looks at the file.",
    )
    column_names: list[str] | None = Field(
        None,
        description="Names of the columns of CSV and TSV files without a header, in order; null = the first row is it.",
    )
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
        "auto",
        description="auto = vllm where it is installed with a GPU, else transformers; fake, for tests; package.module:Class.",
    )
    model: str = Field(
        EMBEDDED_MODEL, min_length=1, description="Instruction-tuned causal LM: a folder, a Hub name, an s3:// URI."
    )


class GenerationConfig(EngineConfig):
    """What the two generating stages share."""

    document_words: int = Field(128, ge=1, description="Words of the document that the model sees.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus mass of the sampler.")


class EncoderConfig(Section):
    """A sentence encoder, which turns documents into vectors."""

    encoder: str = Field(
        ENCODER, min_length=1, description="A sentence-transformers model: a folder, a Hub name, an s3:// URI."
    )


class TunedConfig(Section):
    """A language model that a scheme trains on the corpus."""

    model: str = Field(EMBEDDED_MODEL, min_length=1, description="Causal LM that the scheme's own model begins with.")
    judged: str | None = Field(
        None, description="A BEIR folder whose judged queries it learns from, beside the documents' own words."
    )
    judged_split: str = Field("train", description="Of those, qrels/<split>.tsv; never the one to be evaluated on.")


class SchemeSettings(Section):
    """What every docid scheme has; its own settings are in its own file."""

    needs_engine: ClassVar[bool] = False
    """Whether it asks a language model."""
    needs_embeddings: ClassVar[bool] = False
    """Whether it reads documents' vectors; its settings then say whose (`EncoderConfig`)."""
    has_fit: ClassVar[bool] = False
    """Whether something is made of the whole corpus, once, before any document is identified (stage `scheme`)."""
    recipe: ClassVar[str | None] = None
    """What trains it, `package.module:Class` (`zerogr.training.recipes`); None = the scheme's `fit` makes it."""
    codec: ClassVar[Literal["text", "codes"]] = "text"
    """How the retriever writes its identifiers; see `zerogr.llm.codec`."""
    has_shared: ClassVar[bool] = False
    """Whether the retriever writes identifiers that several documents share, instead of docids."""

    scheme: str = Field(description="Where identifiers come from: the name of a scheme, or package.module:Class.")


class RankerSettings(Section):
    """What every ranker has; its own settings are in its own file."""

    takes: ClassVar[frozenset[Literal["docids", "shared"]]] = frozenset({"docids", "shared"})
    """What the retriever may write, for this ranker to make a ranking of it."""

    name: str = Field(description="How documents are ranked: the name of a ranker, or package.module:Class.")

    @property
    def needs_lexical(self) -> bool:
        """Whether it reads the lexical index."""
        return False


class LossSettings(Section):
    """What every loss has; its own settings are in its own file."""

    needs_negatives: ClassVar[bool] = False
    """Whether it compares documents that are relevant with some that are not (`negatives`)."""
    needs_states: ClassVar[bool] = False
    """Whether it reads the hidden states of queries and docids."""
    needs_whole_docids: ClassVar[bool] = False
    """Whether docids go through the model to their end, also behind their last choice."""
    has_reader: ClassVar[bool] = False
    """Whether it takes batches through the model in a way of its own, `zerogr.training.loss.Reading`."""
    kept_as: ClassVar[str | None] = None
    """The file beside the model that keeps the loss's own parameters; None = they end with the training."""

    name: str = Field(description="What is minimised: the name of a loss, or package.module:Class.")

    @property
    def needs_allowed(self) -> bool:
        """Whether probabilities must be those over the allowed tokens (`training.normalise`)."""
        return False


class MethodSettings(Section):
    """What every method of updating has; its own settings are in its own file."""

    learns: ClassVar[bool] = True
    """Whether anything of the retriever changes."""
    needs_statistics: ClassVar[bool] = False
    """Whether it reads what is known of the queries learnt before (`zerogr.editing.statistics`)."""

    name: str = Field(
        description="How the retriever learns new documents: the name of a method, or package.module:Class."
    )
