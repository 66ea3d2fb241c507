"""Teacher data: what a stronger model writes when it is asked as the two generators are, kept where the rules allow it.

A task is a corpus with its instruction. For every document the teacher gets the prompts of `zerogr.llm.prompts`, the same to
the letter as a generator gets when it indexes, and answers each several times. A docid is kept if it obeys the rules as it
stands, for a mended one would teach what the teacher never wrote; a query is kept if `judge_queries` keeps it. Repetitions
count once, everything else goes to rejected/ with its reason. One row is one pair for fine-tuning:

    docids/     part-000042.parquet: task, doc_id, prompt, prefill, completion
    queries/    part-000042.parquet: task, doc_id, instruction, prompt, prefill, completion
    rejected/   distil-part-000042.parquet: task, doc_id, stage (docids|queries), reason, detail
    work/       corpora/<task>/: the corpus stage of each task

`prompt` is the user turn and `prefill` what the assistant's turn begins with: `ChatRenderer` makes the generator's very tokens
of the two. The rest of the turn is `completion`, after a space if there is a prefill, then the end of the turn. Nothing is
rendered here, because another model has another chat template.

The shards of all tasks, in the order of the tasks, are numbered through; a shard is finished when both of its files are
there.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from zerogr.config.base import SourceConfig
from zerogr.config.tree import Config, CorpusConfig
from zerogr.corpus.stage import build_corpus, corpus_inputs, load_frequency
from zerogr.docids.prompts import docid_prompt, docid_wording
from zerogr.docids.rules import Terms, validate
from zerogr.docids.schemes.keywords import keywords_of, limits_of
from zerogr.docids.stage import VERSION as DOCIDS_VERSION
from zerogr.errors import StageRefused, UserError
from zerogr.index.index import Index, shard_name, shards_in
from zerogr.index.stage import DISTIL
from zerogr.llm import prompts
from zerogr.llm.engines.engine import Engine, Prompt, Sampling
from zerogr.llm.generation import COUNTS_KEY, ShardReport, model_inputs
from zerogr.queries.pseudo import REPETITION, judge_queries
from zerogr.queries.stage import VERSION as QUERIES_VERSION
from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words

VERSION = 1
DOCID_SCHEMA = pa.schema([(name, pa.string()) for name in ("task", "doc_id", "prompt", "prefill", "completion")])
QUERY_SCHEMA = DOCID_SCHEMA.insert(2, pa.field("instruction", pa.string()))
REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("task", "doc_id", "stage", "reason", "detail")])


@dataclass(frozen=True, slots=True)
class Task:
    """A corpus with its instruction."""

    name: str
    instruction: str
    config: Config
    """What the corpus stage reads: `corpus` is the task's source, `index` the place of its shards."""

    @property
    def corpus(self) -> Index:
        """The place of the task's corpus."""
        return Index(self.config.index)


def tasks_of(config: Config) -> list[Task]:
    """Returns the configured tasks; one named `corpus`, the configuration's own, if there are none."""
    distil = config.distil
    place = Index(distil.out)

    def task(name: str, instruction: str, source: SourceConfig) -> Task:
        keys = source.model_dump(include=set(CorpusConfig.model_fields) - {"shard_size"})
        corpus = CorpusConfig(**keys, shard_size=distil.shard_size)
        where = place.path("work", "corpora", name)
        return Task(name, instruction, config.model_copy(update={"index": where, "corpus": corpus}))

    if not distil.tasks:
        return [task("corpus", config.instruction, config.corpus)]
    return [task(given.name, given.instruction, given) for given in distil.tasks]


def distil_inputs(config: Config) -> dict[str, Any]:
    """Returns what the teacher data is made from.

    Raises:
        UserError: A task's source is missing or of unknown format.
    """
    distil, docids, tasks = config.distil, keywords_of(config), tasks_of(config)
    keys = set(type(distil).model_fields) - {"model", "out", "tasks", "shard_size"}  # a shard's size is its corpus' own
    rules = ("document_words", "min_words", "max_words", "min_core_terms", "max_foreign_words")
    inputs = {
        "seed": config.seed,
        "version": VERSION,
        "tasks": [task.name for task in tasks],
        **{f"distil.{key}": getattr(distil, key) for key in sorted(keys)},
        **model_inputs("distil", distil),
        **{f"docids.{key}": getattr(docids, key) for key in rules},
        "docids.prompt": docid_wording(docids),
        "docids.version": DOCIDS_VERSION,
        "queries.document_words": config.queries.document_words,
        "queries.on_topic": config.queries.on_topic,
        "queries.prompt": prompts.QUERY_USER + prompts.QUERY_PREFILL,
        "queries.version": QUERIES_VERSION,
    }
    for task in tasks:
        with _mistakes_of(task):
            corpus = corpus_inputs(task.config)
        inputs[f"tasks.{task.name}.instruction"] = task.instruction
        inputs |= {f"tasks.{task.name}.{key}": value for key, value in corpus.items()}
    return inputs


def build_corpora(config: Config) -> None:
    """Reads the corpora of all tasks, those that were read before left alone.

    Raises:
        UserError: A source is unusable, or too many of its rows are rejected.
    """
    limit = config.compute.max_rejected_fraction
    for task in tasks_of(config):
        corpus, start = task.corpus, time.monotonic()
        with _mistakes_of(task):
            inputs = corpus_inputs(task.config)
            try:
                is_pending = corpus.begin("corpus", inputs)
            except StageRefused:  # left by an earlier attempt: teacher data made from it would have been refused before
                corpus.rebuild("corpus")
                is_pending = corpus.begin("corpus", inputs)
            if not is_pending:
                continue
            counts = build_corpus(task.config, corpus)
            rejected = counts["rejected"]
            if rejected > limit * (counts["rows"] + rejected):
                raise UserError(
                    f"{rejected} of {counts['rows'] + rejected} rows of its corpus were rejected, more than "
                    f"compute.max_rejected_fraction = {limit}; they are listed in '{corpus.path('rejected')}': "
                    "mend them, or raise the limit"
                )
            settings = task.config.model_dump(mode="json")
            corpus.finish("corpus", inputs, config=settings, counts=counts, seconds=time.monotonic() - start)


@contextmanager
def _mistakes_of(task: Task) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"task '{task.name}': {error}") from None


def shards_of(config: Config) -> list[tuple[Task, int]]:
    """Returns (task, shard of its corpus) of every shard of teacher data, by its number."""
    return [(task, shard) for task in tasks_of(config) for shard in shards_in(task.corpus.path("corpus"))]


def pending_shards(config: Config) -> dict[int, int]:
    """Returns {shard: its documents} of those that are not finished."""
    index = Index(config.distil.out)
    done = set(shards_in(index.path("docids"))) & set(shards_in(index.path("queries")))
    num_rows = [rows for task in tasks_of(config) for _, rows in sorted(task.corpus.rows_of_shards().items())]
    return {number: rows for number, rows in enumerate(num_rows) if number not in done}


@dataclass(slots=True)
class _Answers:
    """What became of one question to all documents of a shard."""

    rows: list[dict[str, str]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """Documents for which the engine had an error instead of samples."""
    samples: int = 0
    invalid: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Judgement:
    """What became of the samples of one document."""

    kept: list[str]
    """Different from each other."""
    rejected: list[tuple[str, str]]
    """(Reason, sample)."""


class Distiller:
    """Makes the teacher data of a shard; several threads may call it, if the engine lets them."""

    def __init__(self, config: Config, engine: Engine) -> None:
        """`engine` holds the teacher. The corpora must have been read."""
        self._config, self._engine = config, engine
        self._index = Index(config.distil.out)
        self._shards = shards_of(config)
        self._limits = limits_of(keywords_of(config))
        self._loaded: tuple[str, DocumentFrequency] | None = None
        self._loading = threading.Lock()

    def __call__(self, number: int) -> ShardReport | None:
        """Publishes the shard's pairs and rejected rows, and returns its counts; None = there was nothing left to do."""
        if all(storage.exists(self._index.shard(folder, number)) for folder in ("docids", "queries")):
            return None  # its maker was lost before it could say so
        task, shard = self._shards[number]
        documents = storage.read_parquet(task.corpus.shard("corpus", shard)).to_pylist()
        judge_docids = partial(self._judge_docids, self._frequency(task))
        docids = self._ask(task, "docids", documents, self._docid_prompt, judge_docids)
        queries = self._ask(task, "queries", documents, self._query_prompt, self._judge_queries, stop=("\n",))
        num_failed = len(docids.failed | queries.failed)
        report = ShardReport(
            number,
            len(documents) - num_failed,
            num_failed,
            docids.prompt_tokens + queries.prompt_tokens,
            docids.output_tokens + queries.output_tokens,
        )
        counts = {
            "rows": report.rows,
            "rejected": report.rejected,
            "prompt_tokens": report.prompt_tokens,
            "output_tokens": report.output_tokens,
            "docids_samples": docids.samples,
            "docids_invalid": docids.invalid,
            "queries_samples": queries.samples,
            "queries_invalid": queries.invalid,
        }
        rejected = pa.Table.from_pylist(docids.rejected + queries.rejected, schema=REJECTED_SCHEMA)
        storage.write_parquet(self._index.path("rejected", f"{DISTIL.name}-{shard_name(number)}"), rejected)
        query_table = pa.Table.from_pylist(queries.rows, schema=QUERY_SCHEMA)
        storage.write_parquet(self._index.shard("queries", number), query_table)
        docid_table = pa.Table.from_pylist(docids.rows, schema=DOCID_SCHEMA)
        docid_table = docid_table.replace_schema_metadata({COUNTS_KEY: json.dumps(counts)})
        storage.write_parquet(self._index.shard("docids", number), docid_table)
        return report

    def _frequency(self, task: Task) -> DocumentFrequency:
        with self._loading:
            if self._loaded is None or self._loaded[0] != task.name:  # 16 MiB a task: only one is kept
                self._loaded = (task.name, load_frequency(task.corpus))
            return self._loaded[1]

    def _ask(
        self,
        task: Task,
        stage: str,
        documents: list[dict[str, Any]],
        to_prompt: Callable[[Task, dict[str, Any]], Prompt],
        judge: Callable[[dict[str, Any], Sequence[str]], _Judgement],
        stop: tuple[str, ...] = (),
    ) -> _Answers:
        distil, answers = self._config.distil, _Answers()
        requests = [to_prompt(task, document) for document in documents]
        sampling = Sampling(max_tokens=distil.max_tokens, temperature=distil.temperature, top_p=distil.top_p, stop=stop)
        generations = self._engine.generate(requests, sampling)
        for document, request, generation in zip(documents, requests, generations, strict=True):
            key = {"task": task.name, "doc_id": document["doc_id"]}
            answers.prompt_tokens += generation.num_prompt_tokens
            answers.output_tokens += generation.num_output_tokens
            if generation.error:
                answers.failed.add(document["doc_id"])
                answers.rejected.append({**key, "stage": stage, "reason": "engine_error", "detail": generation.error})
                continue
            judgement = judge(document, generation.texts)
            answers.samples += len(generation.texts)
            answers.invalid += len(judgement.rejected)
            pair = {**key, "instruction": task.instruction, "prompt": request.user, "prefill": request.prefill}
            answers.rows += [{**pair, "completion": completion} for completion in judgement.kept]
            answers.rejected += [
                {**key, "stage": stage, "reason": reason, "detail": f"the teacher wrote '{' '.join(sample.split())}'"}
                for reason, sample in judgement.rejected
            ]
        return answers

    def _docid_prompt(self, task: Task, document: dict[str, Any]) -> Prompt:
        user, prefill = docid_prompt(keywords_of(self._config), document)
        seeds = self._seeds(task, "docids", document, self._config.distil.candidates)
        return Prompt(user=user, prefill=prefill, seeds=seeds)

    def _query_prompt(self, task: Task, document: dict[str, Any]) -> Prompt:
        user, prefill = prompts.query_prompt(self._config.queries, document, task.instruction)
        seeds = self._seeds(task, "queries", document, self._config.distil.num_queries_per_document)
        return Prompt(user=user, prefill=prefill, seeds=seeds)

    def _seeds(self, task: Task, stage: str, document: dict[str, Any], count: int) -> tuple[int, ...]:
        return tuple(
            seed_of(self._config.seed, DISTIL.name, task.name, stage, document["doc_id"], i) for i in range(count)
        )

    def _judge_docids(
        self, frequency: DocumentFrequency, document: dict[str, Any], samples: Sequence[str]
    ) -> _Judgement:
        """Keeps what obeys the rules unmended; a reason is the names of the broken rules, joined by `+`."""
        terms = Terms.of(document["title"], document["text"], frequency)
        kept: dict[str, None] = {}
        rejected = []
        for sample in samples:
            proposal = words(sample)
            # The rules hold a document to the words it has; one without any could only be named by nothing.
            broken = validate(proposal, terms, self._limits, frequency) if terms.ranked else ["no_words"]
            if broken:
                rejected.append(("+".join(broken), sample))
            else:
                kept.setdefault(" ".join(proposal))
        return _Judgement(list(kept), rejected)

    def _judge_queries(self, document: dict[str, Any], samples: Sequence[str]) -> _Judgement:
        on_topic = self._config.queries.on_topic
        kept, dropped = judge_queries(samples, document["title"], document["text"], on_topic=on_topic)
        return _Judgement(kept, [(reason, sample) for reason, sample in dropped if reason != REPETITION])


def distil_counts(config: Config, index: Index) -> dict[str, Any]:
    """Returns the counts of the finished teacher data; only footers and reasons are read."""
    totals: Counter[str] = Counter()
    tasks: dict[str, dict[str, int]] = {}
    shards = shards_of(config)
    footers = (
        storage.for_each(storage.parquet_footer, [index.shard(folder, number) for number in range(len(shards))])
        for folder in ("docids", "queries")
    )
    for (task, _), docids, queries in zip(shards, *footers, strict=True):
        shard = {**json.loads(docids.metadata[COUNTS_KEY]), "docids": docids.num_rows, "queries": queries.num_rows}
        totals.update(shard)
        pairs = tasks.setdefault(task.name, {"documents": 0, "docids": 0, "queries": 0})
        pairs["documents"] += shard["rows"] + shard["rejected"]
        pairs["docids"] += shard["docids"]
        pairs["queries"] += shard["queries"]
    reasons: Counter[str] = Counter()
    for joined, count in index.num_rejected(DISTIL.name).items():
        reasons.update(dict.fromkeys(joined.split("+"), count))

    def valid(kind: str) -> float:
        samples = totals[f"{kind}_samples"]
        return round((samples - totals[f"{kind}_invalid"]) / max(samples, 1), 4)

    return {
        **{key: totals[key] for key in ("rows", "rejected", "docids", "queries")},
        "valid_docids": valid("docids"),
        "valid_queries": valid("queries"),
        "prompt_tokens": totals["prompt_tokens"],
        "output_tokens": totals["output_tokens"],
        "tasks": tasks,
        "rejected_by": dict(sorted(reasons.items())),
    }
