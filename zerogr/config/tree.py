"""The configuration: one validated tree whose fields document themselves.

Every field carries its unit and meaning; `zerogr.config.file.default_yaml` prints them as the comments of the default file, so
the documentation cannot drift from the code. `compute` says how much hardware to use and never enters a fingerprint;
everything else decides what the index holds, and does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zerogr.config.base import GenerationConfig, Section, SourceConfig, Strategy
from zerogr.config.evaluation import AblationConfig, EvaluationConfig, StudyConfig
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.owned import (
    LOSS,
    METHOD,
    RANKER,
    SCHEME,
    LossSection,
    MethodSection,
    RankerSection,
    SchemeSection,
    default_of,
)
from zerogr.config.teaching import DistilConfig, PretrainingConfig, TuningConfig


class CorpusConfig(SourceConfig):
    keep_judged: str | None = Field(
        None, description="With max_documents: a BEIR or MAIR folder whose judged documents are kept first."
    )
    keep_judged_split: str | None = Field(None, description="Only those of this split; null = of all splits.")
    shard_size: int = Field(
        256, ge=1, description="Documents per shard, the unit of resuming; 64 on a laptop, thousands on a cluster."
    )


class QueriesConfig(GenerationConfig):
    instructions: dict[Literal["text", "table", "code"], str] = Field(
        default_factory=dict,
        description="By kind of document, where the task differs: {table: ..., code: ...}. The `instruction` in a document's "
        "metadata goes before; the rest gets the configuration's.",
    )
    num_queries_per_document: int = Field(
        12,
        ge=0,
        le=256,
        description="B, pseudo-queries sampled from the LM per document, before filtering; 0 = spans only.",
    )
    num_spans_per_document: int = Field(
        64,
        ge=0,
        le=256,
        description="Different passages and keyword sets of the document, used as queries; 12 to 16 with a larger LM.",
    )
    span_words: list[int] = Field(
        default_factory=lambda: [6, 24],
        min_length=2,
        max_length=2,
        description="Shortest and longest passage, in words; shorter ones are learnt faster.",
    )
    on_topic: bool = Field(
        True,
        description="Keep only queries that share words with their document: a small model strays. Off for models of 1B and "
        "more, since it removes the paraphrases that generative retrieval is for.",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature; 1.0 for models of 1B and more.")
    max_tokens: int = Field(32, ge=4, le=256, description="Tokens per pseudo-query.")

    @model_validator(mode="after")
    def _span_words(self) -> QueriesConfig:
        if not 1 <= self.span_words[0] <= self.span_words[1]:
            raise ValueError(f"span_words is {self.span_words}; it must be the fewest and the most words, 1 or more")
        return self


class RetrieverConfig(Section):
    model: str = Field(EMBEDDED_MODEL, min_length=1, description="Causal LM that becomes the retriever.")
    num_layers: int | None = Field(
        None, ge=1, description="Keep only the first layers (fast, much weaker); null = all."
    )


Source = Literal["lexical", "decoded", "any"]
_LEXICAL: list[Source] = ["lexical"]


class NegativesConfig(Section):
    sources: list[Source] = Field(
        default_factory=lambda: list(_LEXICAL),
        min_length=1,
        description="Where documents come from that are not relevant to a query: BM25's first, a retriever's first, any.",
    )
    number: int = Field(7, ge=1, le=1000, description="Of each query that has some, drawn from all sources alike.")
    depth: int = Field(100, ge=1, le=10_000, description="So many first documents of a source are drawn from.")
    every: int = Field(1, ge=1, description="Every so many-th pseudo-query has negatives; judged queries all do.")
    retriever: str | None = Field(
        None,
        description="The index whose retriever decodes them: of the same documents, trained before. For source decoded.",
    )
    teacher: str | None = Field(
        None,
        description="A cross-encoder that scores query and document (sentence-transformers), for losses that follow a teacher; "
        "null = our lexical ranking.",
    )

    @property
    def needs_lexical(self) -> bool:
        """Whether the lexical index is read."""
        return "lexical" in self.sources or self.teacher is None

    @model_validator(mode="after")
    def _a_retriever_decodes(self) -> NegativesConfig:
        if "decoded" in self.sources and self.retriever is None:
            raise ValueError("sources has decoded; retriever must name an index of the same documents, trained before")
        return self


class TrainingConfig(Section):
    judged: str | None = Field(
        None, description="A BEIR folder whose judged queries train the retriever beside the pseudo-queries."
    )
    judged_split: str = Field("train", description="Of those, qrels/<split>.tsv; never the one to be evaluated on.")
    judged_weight: float = Field(
        1.0, gt=0, le=1000, description="What a judged query of the highest grade counts; a pseudo-query counts 1."
    )
    judged_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the judged queries that train, drawn by the seed; those of a smaller share are among those of a "
        "larger one. 0 = none, which is zero-shot.",
    )
    num_epochs: int = Field(
        1, ge=1, le=1000, description="Passes over the (query, docid) pairs; more different pairs beat more passes."
    )
    batch_size: int = Field(32, ge=1, description="Examples per optimiser step, over all workers.")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        lt=1,
        description="Peak of AdamW; 5e-4 where there are fewer than a hundred steps, 5e-5 for models of 1B and more.",
    )
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="After the warm-up: constant, or linear decay to zero."
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of all steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="Of AdamW.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    max_query_tokens: int = Field(64, ge=4, description="Longer queries are cut.")
    max_instruction_tokens: int = Field(64, ge=0, description="Longer instructions are cut.")
    loss: LossSection = Field(default_factory=lambda: default_of(LOSS), description="What is made smaller.")
    normalise: Literal["allowed", "vocabulary"] = Field(
        "allowed",
        description="What the loss compares a docid's tokens with: those the trie allows, as decoding does, so that "
        "forced ones need not be learnt; or the whole vocabulary, for decoding with normalise: vocabulary.",
    )
    lora_rank: int = Field(
        0, ge=0, description="Train adapters of this rank in all linear layers, merged at the end; 0 = all weights."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Of the model's computations; auto = bf16 where the device has instructions for it. The optimiser's "
        "weights and moments stay fp32; the finished model is stored in bf16, with fp32 in fp32.",
    )
    row_tokens: int | None = Field(
        None, ge=64, description="Examples are packed into rows of this many tokens; null = 256, on a GPU 1,024."
    )
    evaluation_fraction: float = Field(
        0.02, ge=0, lt=0.5, description="Share of the pairs held out for the evaluation loss."
    )
    evaluate_every: int = Field(200, ge=1, description="Steps between two evaluations.")
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between two checkpoints; a killed run resumes from the last one."
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Where a hundred steps take long: at most so many minutes between two checkpoints."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.judged_share < 1 and self.judged is None:
            raise ValueError(f"judged_share is {self.judged_share}, and judged names no folder whose share it could be")
        if self.loss.needs_allowed and self.normalise != "allowed":
            raise ValueError(f"loss {self.loss.name} adds to probabilities; normalise must be allowed")
        return self


class DecodingConfig(Section):
    strategy: Strategy = Field(
        "beam", description="How docids are drawn from the model, unless a search says otherwise."
    )
    k: int = Field(10, ge=1, le=10_000, description="Documents per search, unless a search says otherwise.")
    normalise: Literal["allowed", "vocabulary"] = Field(
        "allowed", description="Probabilities over the allowed tokens, or over all of them."
    )
    max_temperature: float = Field(1.5, gt=0, description="T_max of reverse annealing.")
    top_p: float = Field(0.9, gt=0, le=1, description="Mass of the nucleus strategy.")


class ServingConfig(Section):
    filter_keys: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        max_length=64,
        description="Keys of documents' metadata that searches may filter by, such as [year]; a change needs --rebuild trie.",
    )
    stored_query: bool = Field(True, description="Whether `zerogr index` stores an answer for services to compare.")

    @model_validator(mode="after")
    def _no_key_twice(self) -> ServingConfig:
        if len(set(self.filter_keys)) < len(self.filter_keys):
            raise ValueError(f"filter_keys is {self.filter_keys}; it must name each key once")
        return self


class UpdateConfig(Section):
    method: MethodSection = Field(
        default_factory=lambda: default_of(METHOD), description="How the retriever learns the new documents."
    )
    max_forgetting: float = Field(
        0.05,
        ge=0,
        le=1,
        description="A version stays unpublished when the share of old queries that find their document first falls by more.",
    )
    sample_size: int = Field(256, ge=1, le=100_000, description="Old pseudo-queries in that sample.")
    layers: list[float] = Field(
        default_factory=lambda: [0.583, 0.75],
        min_length=2,
        max_length=2,
        description="Layers whose statistics are kept for editing methods, the first and the last as shares of the depth.",
    )
    statistics_queries: int = Field(10_000, ge=1, description="Old pseudo-queries that they are made of, drawn evenly.")
    patch_queries: int = Field(
        0, ge=0, description="Old pseudo-queries that each layer's weight is measured with, by patching; 0 = it is not."
    )
    kept_queries: int = Field(
        4096,
        ge=1,
        description="Old pseudo-queries, one of each document before a second of any, that methods know of: for rehearsal, "
        "for what an edit must leave alone, for margins.",
    )


class ComputeConfig(Section):
    """How much hardware; never part of a fingerprint."""

    num_engine_workers: int = Field(
        0,
        ge=0,
        description="Most engine actors; the pool grows from one to this as work waits. 0 = on a machine without a cluster and "
        "GPUs one per core, at most 4; else 1.",
    )
    num_cpus_per_engine: int = Field(0, ge=0, description="Threads of one engine actor; 0 = a share of the machine.")
    num_gpus_per_engine: float = Field(0, ge=0, description="GPUs of one engine actor.")
    engine_batch_size: int | None = Field(
        None, ge=1, description="Sequences the transformers engine decodes together; null = 32, on a GPU 1,024."
    )
    shards_in_flight: int = Field(
        2, ge=1, description="Shards that one engine actor has in hand at a time, so that it never waits for storage."
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to vLLM, or an engine of yours: tensor_parallel_size and the like."
    )
    num_reading_workers: int = Field(
        0, ge=0, description="Readers of a large corpus; 1 = one stream; 0 = one per core, on a cluster at least 4."
    )
    num_training_workers: int | list[int] = Field(
        1,
        description="Ranks of the trainer; more than one shard the model with FSDP2. [fewest, most] = as many as there is room "
        "for, more or fewer as nodes come and go.",
    )
    pass_tokens: int | None = Field(
        None,
        ge=64,
        description="Tokens that one rank takes through the model at a time; a step with more accumulates gradients: "
        "less memory. null = 4,096, on a GPU as many as its memory has room for.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: less memory, a third more work."
    )
    block_attention: bool = Field(
        False,
        description="On a GPU: attention by blocks (FlexAttention) while training, instead of a dense mask. Not measured yet.",
    )
    compile: bool = Field(
        False,
        description="Compile the model's layers (torch.compile): a minute or so at the first step, on a CPU with a C++ "
        "compiler, and faster steps after it.",
    )
    num_cpus_per_trainer: int = Field(0, ge=0, description="Threads of one rank; 0 = an equal share of the machine.")
    num_gpus_per_trainer: int = Field(0, ge=0, le=1, description="1 = every rank on its own GPU.")
    max_retries: int = Field(
        3, ge=0, description="Of a shard or a rank lost to an infrastructure fault; a user's mistake is never retried."
    )
    max_preemptions: int = Field(
        -1, ge=-1, description="Of spot nodes under the trainer, which are no faults; -1 = any number."
    )
    reuse: list[str] = Field(
        default_factory=list,
        description="Other indexes, whose finished stages are copied instead of made again where they have the same inputs.",
    )
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="A stage fails when more of its rows are rejected."
    )

    @model_validator(mode="after")
    def _training_workers(self) -> ComputeConfig:
        workers = self.num_training_workers
        bounds = [workers, workers] if isinstance(workers, int) else workers
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(f"num_training_workers is {workers}; it must be at least 1, or [fewest, most]")
        return self

    @property
    def most_training_workers(self) -> int:
        """Ranks of the trainer where there are nodes for all of them."""
        workers = self.num_training_workers
        return workers if isinstance(workers, int) else workers[1]


class Config(Section):
    """Everything `zerogr index` needs to know."""

    index: str = Field("index", min_length=1, description="Where the index lives: a path or an s3:// URI.")
    seed: int = Field(0, ge=0, description="Of every draw: sampling, shuffling, training order.")
    instruction: str = Field(
        "Given a question, retrieve the document that answers it.",
        min_length=1,
        description="The retrieval task in one sentence.",
    )
    corpus: CorpusConfig = Field(default_factory=CorpusConfig, description="What to index.")
    docids: SchemeSection = Field(
        default_factory=lambda: default_of(SCHEME),
        description="How documents get their identifiers: one of the schemes.",
    )
    queries: QueriesConfig = Field(
        default_factory=QueriesConfig, description="Pseudo-queries the retriever learns from."
    )
    retriever: RetrieverConfig = Field(default_factory=RetrieverConfig, description="The model that becomes the index.")
    negatives: NegativesConfig = Field(
        default_factory=NegativesConfig, description="What `zerogr mine` finds for losses that compare documents."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How it learns.")
    decoding: DecodingConfig = Field(default_factory=DecodingConfig, description="How it answers.")
    serving: ServingConfig = Field(default_factory=ServingConfig, description="What searches may ask for besides.")
    update: UpdateConfig = Field(
        default_factory=UpdateConfig, description="What `zerogr update` does when documents come and go."
    )
    ranking: RankerSection = Field(
        default_factory=lambda: default_of(RANKER),
        description="How documents are ranked by what the retriever writes: one of the rankers.",
    )
    compute: ComputeConfig = Field(
        default_factory=ComputeConfig, description="How much hardware to use. Never part of a fingerprint."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `zerogr index` measures at its end."
    )
    ablation: AblationConfig = Field(
        default_factory=AblationConfig, description="What `zerogr ablate` compares, by the section evaluation."
    )
    study: StudyConfig = Field(
        default_factory=StudyConfig, description="What `zerogr study` does with a corpus that grows."
    )
    distil: DistilConfig = Field(
        default_factory=DistilConfig,
        description="What `zerogr distil` asks a teacher. The prompts and the rules are those of docids and queries.",
    )
    tuning: TuningConfig = Field(
        default_factory=TuningConfig,
        description="What `zerogr train --recipe docid_generator` or `query_generator` learns from; the rest as in training.",
    )
    pretraining: PretrainingConfig = Field(
        default_factory=PretrainingConfig,
        description="What `zerogr pretrain` learns from, for a retriever to begin with; instruction and training count, too.",
    )

    @model_validator(mode="after")
    def _ranker_fits_scheme(self) -> Config:
        given = "shared" if self.docids.has_shared else "docids"
        if given not in self.ranking.takes:
            raise ValueError(
                f"ranking.name {self.ranking.name} ranks by {' or '.join(sorted(self.ranking.takes))}, and docids.scheme "
                f"{self.docids.scheme} gives {given}; see `zerogr config` for schemes and rankers that fit"
            )
        if self.training.loss.needs_negatives and self.docids.has_shared:
            raise ValueError(
                f"training.loss {self.training.loss.name} compares docids, and docids.scheme {self.docids.scheme} gives "
                "documents identifiers that they share; take the loss cross_entropy or another scheme"
            )
        return self

    @property
    def needs_lexical(self) -> bool:
        """Whether the index has a lexical part."""
        return self.ranking.needs_lexical or (self.training.loss.needs_negatives and self.negatives.needs_lexical)
