"""Pairs for the generators: a prompt as the generating stage asks it, and an answer worth learning.

Two kinds of teachers. Teacher data (`zerogr distil`) holds pairs as they are. A task of `tuning.tasks` is a corpus: its titles
teach docids, each mended by the rules with the document's own terms, so that every one obeys them; its judged queries (a BEIR
folder's qrels, the split for training) teach queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from zerogr.config.teaching import TuningTaskConfig
from zerogr.config.tree import Config, CorpusConfig
from zerogr.corpus.collection import Collection
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import read_corpus, source_hash
from zerogr.corpus.sampling import sample
from zerogr.docids.prompts import docid_prompt, docid_wording
from zerogr.docids.rules import Terms, repair
from zerogr.docids.schemes.keywords import keywords_of, limits_of
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.index.stage import DISTIL
from zerogr.llm import prompts
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words

VERSION = 1
_FOLDER = {"docid_generator": "docids", "query_generator": "queries"}
"""Where a folder of teacher data keeps each generator's pairs."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing to learn."""

    prompt: str
    """The user's turn."""
    prefill: str
    """What the assistant's turn begins with."""
    completion: str
    """The rest of it, after a space if there is a prefill."""


def pairs_inputs(config: Config, generator: str) -> dict[str, Any]:
    """Returns what the pairs are made from.

    Raises:
        UserError: There is no teacher data, or a task's source or split is missing.
    """
    tuning, limits = config.tuning, limits_of(keywords_of(config))
    asked = (
        {
            "docids.prompt": docid_wording(keywords_of(config)),
            "docids.document_words": keywords_of(config).document_words,
            "docids.limits": [limits.min_words, limits.max_words, limits.min_core_terms, limits.max_foreign_words],
        }
        if generator == "docid_generator"
        else {
            "queries.prompt": prompts.QUERY_USER + prompts.QUERY_PREFILL,
            "queries.document_words": config.queries.document_words,
        }
    )
    teacher = Index(tuning.teacher).require(DISTIL.name).fingerprint if tuning.teacher else None
    tasks = {
        f"tuning.tasks.{task.name}": [
            source_hash(_corpus_of(task)),
            task.max_documents,
            task.instruction,
            _judged(task).hash() if generator == "query_generator" else None,
        ]
        for task in tuning.tasks
    }
    return {"pairs.version": VERSION, **asked, "tuning.teacher": teacher, **tasks}


def pairs_for(config: Config, generator: str) -> Iterator[Pair]:
    """Yields the pairs of a generator: the teacher's, then those of each task."""
    tuning = config.tuning
    if tuning.teacher:
        index, folder = Index(tuning.teacher), _FOLDER[generator]
        for shard in shards_in(index.path(folder)):
            columns = ["prompt", "prefill", "completion"]
            for row in storage.read_parquet(index.shard(folder, shard), columns).to_pylist():
                yield Pair(**row)
    for task in tuning.tasks:
        yield from _titles(config, task) if generator == "docid_generator" else _questions(config, task)


def _corpus_of(task: TuningTaskConfig) -> CorpusConfig:
    return CorpusConfig(**task.model_dump(include=set(CorpusConfig.model_fields) - {"shard_size"}))


def _documents(config: Config, task: TuningTaskConfig) -> Iterator[Document]:
    """Yields the task's usable documents; of a sample, those that a question is about come first."""

    def read() -> Iterator[Document | Rejected]:
        return read_corpus(_corpus_of(task))

    rows = read()
    if task.max_documents:
        judged = set(_judged(task).by_document(task.instruction)) if task.judged else set()
        rows = sample(read, task.max_documents, judged=judged, seed=config.seed)
    return (row for row in rows if isinstance(row, Document))


def _judged(task: TuningTaskConfig) -> Collection:
    if not task.judged:
        raise UserError(
            f"tuning.tasks: '{task.name}' names no judged queries, which the query generator learns from; "
            "set its `judged` to a BEIR folder, and `split` to the one for training"
        )
    return Collection.load(task.judged, task.split)


def _titles(config: Config, task: TuningTaskConfig) -> Iterator[Pair]:
    limits, frequency = limits_of(keywords_of(config)), DocumentFrequency()
    for document in _documents(config, task):
        frequency.add(words(f"{document.title}\n{document.text}"))
    for document in _documents(config, task):
        terms = Terms.of(document.title, document.text, frequency)
        if document.title and terms.ranked:
            completion = " ".join(repair(words(document.title), terms, limits, frequency))
            yield Pair(*docid_prompt(keywords_of(config), asdict(document)), completion)


def _questions(config: Config, task: TuningTaskConfig) -> Iterator[Pair]:
    queries = _judged(task).by_document(task.instruction)
    for document in _documents(config, task):
        for instruction, text, _ in queries.get(document.doc_id, ()):
            asked = prompts.query_prompt(config.queries, asdict(document), instruction)
            yield Pair(*asked, " ".join(text.split()))
