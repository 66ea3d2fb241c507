"""The configuration: one YAML file, one validated tree, one default that documents itself.

Every field carries its unit and meaning; `default_yaml` prints them as the comments of the default file, so the
documentation cannot drift from the code. `compute` says how much hardware to use and never enters a fingerprint;
everything else decides what the index holds, and does.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zerogr.errors import UserError

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
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
        description="What to index: a BEIR folder, a .jsonl or .parquet file or a folder of them (a path or an s3:// URI), "
        "or `pystdlib:`, the reference text inside CPython.",
    )
    format: Literal["auto", "beir", "jsonl", "parquet", "pystdlib"] = Field(
        "auto", description="How to read it; auto looks at the source."
    )
    doc_id_column: str = Field("_id", description="Column (JSON key) of the document's own key.")
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


class CorpusConfig(SourceConfig):
    keep_judged: str | None = Field(
        None, description="With max_documents: a BEIR folder whose judged documents are kept first."
    )
    keep_judged_split: str | None = Field(None, description="Only those of this split; null = of all splits.")
    shard_size: int = Field(
        256, ge=1, description="Documents per shard, the unit of resuming; 64 on a laptop, thousands on a cluster."
    )


class EngineConfig(Section):
    """A language model that writes, and what runs it."""

    engine: EngineName = Field(
        "auto", description="auto = vllm where it is installed with a GPU, else transformers; fake = for tests."
    )
    model: str = Field(
        EMBEDDED_MODEL, min_length=1, description="Instruction-tuned causal LM: a folder, a Hub name, an s3:// URI."
    )


class GenerationConfig(EngineConfig):
    """What the two generating stages share."""

    document_words: int = Field(128, ge=1, description="Words of the document that the model sees.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus mass of the sampler.")


class DocidsConfig(GenerationConfig):
    scheme: Literal["keywords", "title", "tfidf", "random"] = Field(
        "keywords",
        description="keywords = proposed by the LM, validated and repaired; title, tfidf, random = made without an LM.",
    )
    prompt_style: Literal["brief", "rules"] = Field(
        "brief",
        description="How the LM is asked: brief for small models, rules (those of the paper) for ones of 1B and more.",
    )
    min_words: int = Field(6, ge=1, le=32, description="Fewest words of a docid (fewer where the document has fewer).")
    max_words: int = Field(8, ge=1, le=32, description="Most words of a docid.")
    min_core_terms: int = Field(3, ge=0, le=32, description="Words of the docid that must occur in the document.")
    max_foreign_words: int = Field(
        0,
        ge=0,
        le=32,
        description="Words that need not occur in it; 0 for small models, 2 or 3 for ones of 1B and more.",
    )
    candidates: int = Field(
        2, ge=1, le=16, description="Docids the LM proposes per document; later ones serve when earlier ones collide."
    )
    temperature: float = Field(0.3, ge=0, le=2, description="0 = the likeliest words.")
    max_tokens: int = Field(32, ge=4, le=256, description="Tokens per proposal.")

    @model_validator(mode="after")
    def _word_limits(self) -> DocidsConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}; it must not exceed max_words = {self.max_words}")
        if self.min_core_terms > self.max_words:
            raise ValueError(
                f"min_core_terms is {self.min_core_terms}; it must not exceed max_words = {self.max_words}"
            )
        return self


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
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature; 1.0 for models of 1B and more.")
    max_tokens: int = Field(32, ge=4, le=256, description="Tokens per pseudo-query.")


class RetrieverConfig(Section):
    model: str = Field(EMBEDDED_MODEL, min_length=1, description="Causal LM that becomes the retriever.")
    num_layers: int | None = Field(
        None, ge=1, description="Keep only the first layers (fast, much weaker); null = all."
    )


class TrainingConfig(Section):
    num_epochs: int = Field(
        1, ge=1, le=1000, description="Passes over the (query, docid) pairs; more different pairs beat more passes."
    )
    batch_size: int = Field(32, ge=1, description="Examples per optimiser step, over all workers.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak of AdamW.")
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="After the warm-up: constant, or linear decay to zero."
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of all steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="Of AdamW.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    max_query_tokens: int = Field(64, ge=4, description="Longer queries are cut.")
    max_instruction_tokens: int = Field(64, ge=0, description="Longer instructions are cut.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of the matrix products; weights and optimiser stay fp32."
    )
    row_tokens: int = Field(256, ge=64, description="Examples are packed into rows of this many tokens.")
    evaluation_fraction: float = Field(
        0.02, ge=0, lt=0.5, description="Share of the pairs held out for the evaluation loss."
    )
    evaluate_every: int = Field(200, ge=1, description="Steps between two evaluations.")
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between two checkpoints; a killed run resumes from the last one."
    )


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


class ComputeConfig(Section):
    """How much hardware; never part of a fingerprint."""

    num_engine_workers: int = Field(
        1, ge=1, description="Most engine actors; the pool grows from one to this as work waits."
    )
    num_cpus_per_engine: int = Field(
        0, ge=0, description="Threads of one engine actor; 0 = an equal share of the machine."
    )
    num_gpus_per_engine: float = Field(0, ge=0, description="GPUs of one engine actor.")
    engine_batch_size: int = Field(32, ge=1, description="Sequences the transformers engine decodes together.")
    shards_in_flight: int = Field(
        2, ge=1, description="Shards that one engine actor has in hand at a time, so that it never waits for storage."
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to vLLM: tensor_parallel_size, max_model_len, ..."
    )
    num_training_workers: int = Field(
        1, ge=1, description="Ranks of the trainer; more than one shard the model with FSDP2."
    )
    num_cpus_per_trainer: int = Field(0, ge=0, description="Threads of one rank; 0 = an equal share of the machine.")
    num_gpus_per_trainer: int = Field(0, ge=0, le=1, description="1 = every rank on its own GPU.")
    max_retries: int = Field(
        3, ge=0, description="Of a shard or a rank lost to an infrastructure fault; a user's mistake is never retried."
    )
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="A stage fails when more of its rows are rejected."
    )


class EvaluationConfig(Section):
    dataset: str | None = Field(
        None, description="A BEIR folder with queries.jsonl and qrels/; null = `zerogr index` does not evaluate."
    )
    split: str = Field("test", description="qrels/<split>.tsv.")
    k: int = Field(100, ge=1, le=10_000, description="Documents per query.")
    strategies: list[Strategy] = Field(
        default_factory=lambda: list[Strategy](["beam", "reverse_annealing"]),
        description="Decoding strategies to compare.",
    )
    baselines: list[Literal["bm25"]] = Field(
        default_factory=lambda: list[Literal["bm25"]](["bm25"]), description="Other systems in the same table."
    )


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
        names = [task.name for task in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two tasks are named '{twice}'; every task needs a name of its own")
        return self


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
    docids: DocidsConfig = Field(default_factory=DocidsConfig, description="How documents get their identifiers.")
    queries: QueriesConfig = Field(
        default_factory=QueriesConfig, description="Pseudo-queries the retriever learns from."
    )
    retriever: RetrieverConfig = Field(default_factory=RetrieverConfig, description="The model that becomes the index.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How it learns.")
    decoding: DecodingConfig = Field(default_factory=DecodingConfig, description="How it answers.")
    compute: ComputeConfig = Field(
        default_factory=ComputeConfig, description="How much hardware to use. Never part of a fingerprint."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `zerogr index` measures at its end."
    )
    distil: DistilConfig = Field(
        default_factory=DistilConfig,
        description="What `zerogr distil` asks a teacher. The prompts and the rules are those of docids and queries.",
    )


_SECTIONS = {name for name in Config.model_fields if isinstance(getattr(Config(), name), Section)}


def load_config(path: str | None, overrides: list[str] | None = None) -> Config:
    """Returns the validated configuration of a YAML file with `key.sub=value` overrides on top.

    Raises:
        UserError: The file is missing or not YAML; a key is unknown; a value is not allowed.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise UserError(
                f"there is no config file '{path}'; `zerogr config > {path}` writes a documented one"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict):
            raise UserError(
                f"'{path}' holds a {type(tree).__name__}; it must be a mapping with the keys of `zerogr config`"
            )
        # A section whose lines are all commented out is read as null.
        tree = {key: {} if value is None and key in _SECTIONS else value for key, value in tree.items()}
    for override in overrides or []:
        _apply_override(tree, override)
    return _with_absolute_paths(validate_config(tree))


def _with_absolute_paths(config: Config) -> Config:
    """Returns the configuration as a worker with another working directory can read it."""

    def absolute(value: str | None) -> str | None:
        return value if value is None or ":" in value else os.path.abspath(os.path.expanduser(value))

    def changed(section: Section, *keys: str) -> Section:
        return section.model_copy(update={key: absolute(getattr(section, key)) for key in keys})

    def with_model(section: EngineConfig | RetrieverConfig) -> Section:  # it may be a name on a hub, and no folder
        return changed(section, "model") if os.path.isdir(os.path.expanduser(section.model)) else section

    teacher = {
        "out": absolute(config.distil.out),
        "tasks": [changed(task, "source") for task in config.distil.tasks],
    }
    return config.model_copy(
        update={
            "index": absolute(config.index),
            "corpus": changed(config.corpus, "source", "keep_judged"),
            "docids": with_model(config.docids),
            "queries": with_model(config.queries),
            "retriever": with_model(config.retriever),
            "evaluation": changed(config.evaluation, "dataset"),
            "distil": with_model(config.distil).model_copy(update=teacher),
        }
    )


def validate_config(tree: dict[str, Any]) -> Config:
    """Returns the configuration of a parsed tree.

    Raises:
        UserError: One sentence that names the path, the value seen, what is allowed, or the nearest right key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as key.sub=value, for example --set training.num_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(
            f"--set {override}: '{text}' is not a YAML value; quote it, for example --set 'instruction=\"Find: it\"'"
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text.strip()):
        value = float(value)  # YAML 1.1 reads 1e-4, which has no dot, as a string
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        value = text.strip()  # YAML reads `pystdlib:` and `Find: it` as mappings
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: '{parent}' is a value, not a section")
    tree[last] = value


def _explain(error: ValidationError) -> str:
    sentences = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"]) or "the configuration"
        if item["type"] == "extra_forbidden":
            *parents, wrong = (str(part) for part in item["loc"])
            names = list(_section_at(parents).model_fields)
            near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
            hint = f"did you mean '{'.'.join([*parents, near[0]])}'?" if near else f"allowed there: {', '.join(names)}"
            sentences.append(f"there is no key '{path}'; {hint}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            seen = "" if item["type"] in ("value_error", "missing") else f" is {item['input']!r}"
            sentences.append(f"{path}{seen}: {reason[0].lower()}{reason[1:]}")
    return "; ".join(sentences)


def _section_at(path: list[str]) -> type[Section]:
    section: type[Section] = Config
    for part in path:
        if not part.isdigit():
            annotation: Any = section.model_fields[part].annotation
            section = next(iter(get_args(annotation)), annotation)  # what a list is a list of
    return section


def default_yaml() -> str:
    """Returns the documented default configuration file."""
    lines = ["# The configuration of ZeroGR. Every key is optional; what stands here is the default."]
    for name, field in Config.model_fields.items():
        default = getattr(Config(), name)
        lines += ["", f"# {field.description}"]
        if not isinstance(default, Section):
            lines.append(f"{name}: {_yaml_value(default)}")
            continue
        lines.append(f"{name}:")
        for key, sub in type(default).model_fields.items():
            lines += [f"  # {sub.description}", f"  {key}: {_yaml_value(getattr(default, key))}"]
    return "\n".join(lines) + "\n"


def _yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
