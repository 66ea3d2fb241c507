"""The stages: one record each, read by the command line, by `zerogr status`, by the jobs and by the index itself.

A stage reads the folders of the stages before it and publishes its own. Which stages an index has, and which stage reads
which, is a function of the configuration. Folders of teacher data, generators and a pre-trained model are kept by the same
rules, and are never an index as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zerogr.config.tree import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step from a corpus to an index, or the one step of another folder."""

    name: str
    """In the manifest, and of `--rebuild`."""
    command: str
    """`zerogr COMMAND CONFIG` runs it, and so does `jobs.COMMAND.run`."""
    help: str
    """What the command does, for `--help`."""
    folders: tuple[str, ...]
    """What it publishes, below the index."""
    work: tuple[str, ...] = ()
    """What it needs only while it runs."""
    keyed: tuple[str, ...] = ()
    """Of that, folders named by what they are made from: they are right whatever the stage is begun with."""
    keeps: tuple[str, ...] = ()
    """Working files and folders that later stages, or updates, read."""
    shards: str | None = None
    """The folder whose shards tell how far an unfinished stage has come; None = it has no shards."""
    follows_corpus: bool = False
    """Whether its shards are those of the corpus, so that its end is known."""
    upstream: Callable[[Config], tuple[str, ...]] = lambda config: ()
    """The stages that it reads."""
    is_wanted: Callable[[Config], bool] = lambda config: True
    """Whether an index of this configuration has it."""
    uses_ray: bool = False
    """Whether it runs on Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """What a folder may hold."""

    name: str
    """For a person."""
    key: str
    """Of the configuration, that says where it is."""
    place: Callable[[Config], str]
    """The URI."""
    stages: tuple[Stage, ...]
    """In order."""


CORPUS = Stage(
    name="corpus",
    command="corpus",
    help="read the corpus into numbered shards",
    folders=("corpus",),
    work=("work/reading",),
    keeps=("work/document_frequency.bin",),
    shards="corpus",
)
EMBEDDINGS = Stage(
    name="embeddings",
    command="embeddings",
    help="encode every document as a vector, where the docid scheme wants them",
    folders=("embeddings",),
    shards="embeddings",
    follows_corpus=True,
    upstream=lambda config: ("corpus",),
    is_wanted=lambda config: config.docids.needs_embeddings,
    uses_ray=True,
)
SCHEME = Stage(
    name="scheme",
    command="scheme",
    help="make what the docid scheme has to know of the whole corpus, or train its model, where it wants one",
    folders=("scheme",),
    work=("work/scheme",),
    upstream=lambda config: ("corpus", "embeddings") if config.docids.needs_embeddings else ("corpus",),
    is_wanted=lambda config: config.docids.has_fit,
    uses_ray=True,
)
DOCIDS = Stage(
    name="docids",
    command="docids",
    help="give every document its docid",
    folders=("docids",),
    work=("work/docids",),
    shards="work/docids",
    follows_corpus=True,
    upstream=lambda config: (
        "corpus",
        *(("embeddings",) if config.docids.needs_embeddings else ()),
        *(("scheme",) if config.docids.has_fit else ()),
    ),
    uses_ray=True,
)
QUERIES = Stage(
    name="queries",
    command="queries",
    help="write pseudo-queries for every document",
    folders=("queries",),
    shards="queries",
    follows_corpus=True,
    upstream=lambda config: ("corpus",),
    uses_ray=True,
)
LEXICAL = Stage(
    name="lexical",
    command="lexical",
    help="build the lexical index, where the ranking wants one",
    folders=("lexical",),
    keeps=("work/lexical",),
    shards="work/lexical",
    follows_corpus=True,
    upstream=lambda config: ("corpus", "docids"),
    is_wanted=lambda config: config.needs_lexical,
    uses_ray=True,
)
NEGATIVES = Stage(
    name="negatives",
    command="mine",
    help="find documents that are not relevant to queries, where the loss compares documents",
    folders=("negatives",),
    shards="negatives",
    follows_corpus=True,
    upstream=lambda config: (
        ("docids", "queries", "lexical") if config.negatives.needs_lexical else ("docids", "queries")
    ),
    is_wanted=lambda config: config.training.loss.needs_negatives,
    uses_ray=True,
)
TRIE = Stage(
    name="trie",
    command="trie",
    help="build the trie of the docids",
    folders=("trie",),
    upstream=lambda config: ("docids",),
)
RETRIEVER = Stage(
    name="retriever",
    command="train",
    help="train the retriever, or a generator",
    folders=("retriever",),
    work=("work/training",),
    keyed=("work/training/examples",),
    upstream=lambda config: (
        ("docids", "queries", "negatives") if config.training.loss.needs_negatives else ("docids", "queries")
    ),
    uses_ray=True,
)
STATISTICS = Stage(
    name="statistics",
    command="statistics",
    help="count what the retriever has learnt, for updates that edit it",
    folders=("statistics",),
    work=("work/statistics",),
    upstream=lambda config: ("retriever",),
    is_wanted=lambda config: False,  # made when an update asks for it
    uses_ray=True,
)
EVALUATION = Stage(
    name="evaluation",
    command="evaluate",
    help="measure an index on judged queries, beside baselines",
    folders=("evaluation",),
    upstream=lambda config: ("trie", "retriever"),
    is_wanted=lambda config: config.evaluation.dataset is not None,
)
DISTIL = Stage(
    name="distil",
    command="distil",
    help="have a stronger model write pairs for fine-tuning the generators",
    folders=("docids", "queries"),
    shards="docids",
    uses_ray=True,
)
DOCID_GENERATOR, QUERY_GENERATOR = (
    Stage(
        name=name,
        command="train",
        help=f"train the {name.replace('_', ' ')}",
        folders=(name,),
        work=(f"work/{name}",),
        uses_ray=True,
    )
    for name in ("docid_generator", "query_generator")
)
PRETRAINED = Stage(
    name="pretrained",
    command="pretrain",
    help="pre-train a model on what articles link to, for retriever.model to begin with",
    folders=("pretrained",),
    work=("work/pretrained",),
    uses_ray=True,
)

INDEX = FolderKind(
    name="an index",
    key="index",
    place=lambda config: config.index,
    stages=(CORPUS, EMBEDDINGS, SCHEME, DOCIDS, QUERIES, LEXICAL, NEGATIVES, TRIE, RETRIEVER, STATISTICS, EVALUATION),
)
TEACHER_DATA = FolderKind(
    name="teacher data", key="distil.out", place=lambda config: config.distil.out, stages=(DISTIL,)
)
GENERATORS = FolderKind(
    name="generators",
    key="tuning.out",
    place=lambda config: config.tuning.out,
    stages=(DOCID_GENERATOR, QUERY_GENERATOR),
)
PRETRAINING = FolderKind(
    name="a pre-trained model",
    key="pretraining.out",
    place=lambda config: config.pretraining.out,
    stages=(PRETRAINED,),
)
KINDS = (INDEX, TEACHER_DATA, GENERATORS, PRETRAINING)
STAGES = {stage.name: stage for kind in KINDS for stage in kind.stages}
"""Every stage by its name; those of a folder are in order."""


def kind_of(stage: Stage) -> FolderKind:
    """Returns the kind of folder that a stage belongs to."""
    return next(kind for kind in KINDS if stage in kind.stages)
