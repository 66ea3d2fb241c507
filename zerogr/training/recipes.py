"""Recipes: what the trainer is given and what becomes of it. One trainer, three of them.

    retriever          (instruction, query -> docid) of an index: its pseudo-queries, and judged queries where there are some
    docid_generator    (document -> docid), asked as `zerogr docids` asks
    query_generator    (document, instruction -> query), asked as `zerogr queries` asks

The generators learn from teacher data (`zerogr distil`), from titles and from judged queries (`zerogr.training.pairs`); a
generator is then named as `docids.model` or `queries.model` of an index.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from zerogr import storage
from zerogr.chat import SETTINGS_FILE, ChatFormat
from zerogr.config import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.stage import load_frequency
from zerogr.engines import Prompt
from zerogr.engines.rendering import ChatRenderer
from zerogr.errors import UserError
from zerogr.index import RUNS, Index, fingerprint, shards_in
from zerogr.models import load_model, model_hash, resolve_model, tokenizer_hash
from zerogr.postings import words_of
from zerogr.seeds import seed_of
from zerogr.training.answers import draw_answers
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors
from zerogr.training.choices import Choices
from zerogr.training.example_files import ExampleFiles
from zerogr.training.examples import Examples, Row
from zerogr.training.learner import TrainingSettings
from zerogr.training.log import TrainingLog
from zerogr.training.loop import train
from zerogr.training.pairs import Pair, pairs_for, pairs_inputs
from zerogr.trie import DocidTrie

VERSION = 6

logger = logging.getLogger(__name__)


class Recipe(Protocol):
    """One kind of model to train."""

    stage: str
    """Its name in the manifest, and the folder of the trained model."""
    index: Index
    """Where the stage lives."""
    base: str
    """The model to begin with."""
    num_layers: int | None
    """Of its layers, the first so many; None = all."""
    settings: TrainingSettings

    def inputs(self) -> dict[str, Any]:
        """Returns what the stage's fingerprint is made of."""

    def examples(self, tokenizer: Any) -> Examples:
        """Returns what is to be learnt. Raises UserError if there is nothing."""

    def close(self) -> None:
        """Frees what the examples took of the machine's disk; for the end of training."""

    def choices(self, tokenizer: Any) -> Choices | None:
        """Returns what the trie of all docids leaves open, if docids are learnt. Raises UserError if it does not fit."""

    def write_settings(self, folder: Path) -> None:
        """Writes into the model's folder what its users need to know of its training."""


def load_base(recipe: Recipe, device: Any = "cpu") -> tuple[Any, Any]:
    """Returns the recipe's base model in fp32, with fresh adapters if it trains adapters, and its tokenizer.

    Raises:
        UserError: Adapters are wanted and peft is not installed.
    """
    model, tokenizer = load_model(
        resolve_model(recipe.base), device=device, dtype=torch.float32, num_layers=recipe.num_layers
    )
    return (with_adapters(model, recipe.settings) if recipe.settings.lora_rank else model), tokenizer


def with_adapters(model: Any, settings: TrainingSettings) -> Any:
    """Returns the model with low-rank adapters (LoRA) in all linear layers of its body; they alone are trainable."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError(
            "training.lora_rank needs peft; run `pip install 'zerogr[lora]'`, or set it to 0 to train all weights"
        ) from None
    rank = settings.lora_rank
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # every rank draws the same
        # Alpha = 2 r, the usual choice; "all-linear" leaves the output head alone.
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def run_recipe(
    recipe: Recipe,
    checkpoints: str,
    *,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    is_ending: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_ranks: int = 1,
) -> dict[str, Any]:
    """Trains and publishes a recipe's model; returns the stage's counts. Needs nothing but torch: with one rank, no Ray.

    Args:
        recipe: One of `RECIPES`, made of a configuration.
        checkpoints: A URI; an interrupted run goes on from there.
        report: See `zerogr.training.loop.train`, as for what follows.
    """
    model, tokenizer = load_base(recipe, device)
    choices = recipe.choices(tokenizer)  # first: if the trie does not fit, nobody waits for the examples
    log = TrainingLog(recipe.index.path(RUNS, f"{recipe.stage}.jsonl")) if rank == 0 else None

    def note(line: dict[str, Any]) -> None:
        if log:
            log.add(line)
        report(line)

    counts = train(
        model,
        recipe.examples(tokenizer),
        recipe.settings,
        checkpointer=StorageCheckpointer(checkpoints, rank=rank),
        report=note,
        is_ending=is_ending,
        choices=choices,
        device=device,
        rank=rank,
        num_ranks=num_ranks,
    )
    if log:
        log.publish()
    publish_model(recipe, model, rank=rank)
    if num_ranks > 1:
        torch.distributed.barrier()  # should rank 0 have failed, the examples are still needed
    recipe.close()
    return counts


def publish_model(recipe: Recipe, model: nn.Module, *, rank: int = 0) -> None:
    """Publishes the trained model as a Hugging Face folder. With several ranks all must call it; rank 0 writes."""
    tensors = full_tensors(model, rank=rank)
    if rank:
        return
    merged, tokenizer = load_base(recipe)
    # Tied and frozen weights are missing there; a name that is foreign to the model would be a mistake of ours.
    loaded = merged.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    if recipe.settings.lora_rank:
        merged = merged.merge_and_unload()
    dtype = torch.float32 if recipe.settings.precision == "fp32" else torch.bfloat16
    with storage.staging_folder(recipe.index.path(recipe.stage)) as folder:
        merged.to(dtype).save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        recipe.write_settings(folder)


def _settings(config: Config, **changes: Any) -> TrainingSettings:
    fields = TrainingSettings.__dataclass_fields__
    sections = {**config.training.model_dump(), **config.compute.model_dump()}
    chosen = {key: value for key, value in sections.items() if key in fields}
    return TrainingSettings(**{**chosen, **changes}, seed=config.seed)


def _common_inputs(config: Config, section: str, base: str) -> dict[str, Any]:
    """Returns what the model of every recipe is made from; `section` of the configuration names its base."""
    training = config.training.model_dump(
        exclude={"checkpoint_every", "checkpoint_minutes", "judged", "judged_split", "judged_weight", "normalise"}
    )
    return {
        "seed": config.seed,
        f"{section}.model": model_hash(resolve_model(base)),
        **{f"training.{key}": value for key, value in training.items()},
        "version": VERSION,
    }


class RetrieverRecipe:
    """The index's pseudo-queries and docids become examples, judged queries beside them."""

    stage = "retriever"

    def __init__(self, config: Config) -> None:
        self._config, self.index = config, Index(config.index)
        self.base, self.num_layers = config.retriever.model, config.retriever.num_layers
        self.settings = _settings(config)

    def inputs(self) -> dict[str, Any]:
        """Returns what the retriever is made from."""
        return {
            "docids": self.index.require("docids").fingerprint,
            "docids.unit": self._config.docids.unit,
            "queries": self.index.require("queries").fingerprint,
            "retriever.num_layers": self.num_layers,
            "training.normalise": self.settings.normalise,
            **_common_inputs(self._config, "retriever", self.base),
            **self._judged_inputs(),
        }

    def _judged_inputs(self) -> dict[str, Any]:
        training = self._config.training
        if not training.judged:
            return {}
        collection = Collection.load(training.judged, training.judged_split)
        return {"training.judged": collection.hash(), "training.judged_weight": training.judged_weight}

    def examples(self, tokenizer: Any) -> Examples:
        """Returns every query of the index with its answers as training examples, memory-mapped."""
        chat = chat_format(tokenizer, self._config)
        is_constrained = self.settings.normalise == "allowed"
        choices = self.choices(tokenizer) if is_constrained else None
        examples = self._files().open(lambda: (Examples.build(rows, chat, choices) for rows in self.rows()))
        if not len(examples):
            raise UserError(
                f"'{self.index.uri}' has no pseudo-query to train on; "
                "raise queries.num_spans_per_document or queries.num_queries_per_document"
            )
        return examples

    def _files(self) -> ExampleFiles:
        training = self._config.training
        made_from = {
            **{folder: storage.version(self.index.path(folder)) for folder in ("docids", "queries", "trie")},
            **self._judged_inputs(),
            "tokenizer": tokenizer_hash(resolve_model(self.base)),
            "answers": [VERSION, self._config.seed, self._config.docids.unit],
            "limits": [training.max_instruction_tokens, training.max_query_tokens],
            "normalise": self.settings.normalise,
        }
        return ExampleFiles(fingerprint(made_from))

    def close(self) -> None:
        """Deletes the examples' files."""
        self._files().delete()

    def rows(self) -> Iterator[list[Row]]:
        """Yields the examples of every shard."""
        judged, answers = self._judged_queries(), self._answers()
        published = set(shards_in(self.index.path("docids")))
        for shard in shards_in(self.index.path("queries")):
            if shard not in published:
                continue
            columns = ["row_id", "doc_id", "docid", "terms"]
            documents = storage.read_parquet(self.index.shard("docids", shard), columns).to_pylist()
            by_row = {document["row_id"]: document for document in documents}
            rows = [
                Row(row["instruction"], query, answers(by_row[row["row_id"]], query), 1.0)
                for row in storage.read_parquet(self.index.shard("queries", shard)).to_pylist()
                if row["row_id"] in by_row  # a document whose docid was rejected is not in the index
                for query in [*row["queries"], *row["spans"]]
            ]
            yield rows + [
                Row(instruction, query, answers(document, query), weight)
                for document in documents
                for instruction, query, weight in judged.get(document["doc_id"], ())
            ]

    def _answers(self) -> Callable[[dict[str, Any], str], tuple[tuple[str, int], ...]]:
        """Returns (row of docids/, query) -> what the query teaches, the same in every run."""
        if self._config.docids.unit == "docid":
            return lambda document, query: ((document["docid"], 1),)
        seed, num_terms, rarity = self._config.seed, self._config.docids.num_terms, load_frequency(self.index).idf

        def of_words(document: dict[str, Any], query: str) -> tuple[tuple[str, int], ...]:
            terms = words_of(document["docid"], document["terms"], num_terms)
            return draw_answers(
                query, terms, rarity, random.Random(seed_of(seed, "answers", document["doc_id"], query))
            )

        return of_words

    def _judged_queries(self) -> dict[str, list[tuple[str, str, float]]]:
        """Returns {doc_id: [(instruction, query, weight)]}; the highest grade weighs `judged_weight`, others in proportion."""
        training = self._config.training
        if not training.judged:
            return {}
        found = Collection.load(training.judged, training.judged_split).by_document(self._config.instruction)
        highest = max((grade for queries in found.values() for _, _, grade in queries), default=1)
        return {
            doc_id: [
                (instruction, text, training.judged_weight * grade / highest) for instruction, text, grade in queries
            ]
            for doc_id, queries in found.items()
        }

    def choices(self, tokenizer: Any) -> Choices:
        """Returns what the index's trie leaves open. Raises UserError if there is none, or one made otherwise."""
        self.index.require("trie")
        trie = DocidTrie.load(storage.local_folder(self.index.path("trie")))
        if trie.extra.get("tokenizer") != tokenizer_hash(resolve_model(self.base)):
            raise UserError(
                f"the trie of '{self.index.uri}' was made with another tokenizer than that of retriever.model; "
                "run again with --rebuild trie"
            )
        wanted, built = self._config.docids.unit, trie.extra.get("unit", "docid")  # before there were words
        if built != wanted:
            raise UserError(
                f"the trie of '{self.index.uri}' was made with docids.unit = {built}, the configuration says {wanted}; "
                "run again with --rebuild trie"
            )
        return Choices(trie, chat_format(tokenizer, self._config).end_token_id)

    def write_settings(self, folder: Path) -> None:
        """Writes what a search needs to know to prompt the model as it was trained."""
        settings = {
            "instruction": self._config.instruction,
            "max_instruction_tokens": self._config.training.max_instruction_tokens,
            "max_query_tokens": self._config.training.max_query_tokens,
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def chat_format(tokenizer: Any, config: Config) -> ChatFormat:
    """Returns the chat format of a tokenizer under the configured limits."""
    training = config.training
    return ChatFormat.of(
        tokenizer, max_instruction_tokens=training.max_instruction_tokens, max_query_tokens=training.max_query_tokens
    )


class GeneratorRecipe:
    """Pairs of prompt and completion, in the tokens in which an engine asks and is answered."""

    num_layers: int | None = None

    def __init__(self, config: Config, stage: str) -> None:
        tuning = config.tuning
        self._config, self.index, self.stage = config, Index(tuning.out), stage
        self.base = tuning.model
        self.settings = _settings(
            config,
            num_epochs=tuning.num_epochs,
            batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            row_tokens=tuning.row_tokens,
            normalise="vocabulary",
        )

    def inputs(self) -> dict[str, Any]:
        """Returns what the generator is made from."""
        tuning = self._config.tuning
        keys = ("num_epochs", "batch_size", "learning_rate", "row_tokens", "max_prompt_tokens")
        common = _common_inputs(self._config, "tuning", self.base)
        return {
            **{name: value for name, value in common.items() if name.removeprefix("training.") not in keys},
            **{f"tuning.{key}": getattr(tuning, key) for key in keys},
            **pairs_inputs(self._config, self.stage),
        }

    def examples(self, tokenizer: Any) -> Examples:
        """Returns the pairs as training examples."""
        renderer, tuning = ChatRenderer(tokenizer), self._config.tuning

        def tokens(pair: Pair) -> tuple[list[int], list[int]]:
            prompt = Prompt(user=pair.prompt, prefill=pair.prefill, seeds=())
            answer = " " * bool(pair.prefill) + pair.completion
            completion = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return renderer.render(prompt, tuning.max_prompt_tokens), [*completion, tokenizer.eos_token_id]

        pairs = list(pairs_for(self._config, self.stage))
        usable = [pair for pair in pairs if pair.completion.strip()]
        if len(usable) < len(pairs):
            logger.warning(
                "%d of %d pairs have an empty completion and are left out", len(pairs) - len(usable), len(pairs)
            )
        examples = Examples.of_pairs(tokens(pair) for pair in usable)
        if not len(examples):
            raise UserError(f"there is no pair to train the {self.stage} on; see tuning.teacher and tuning.tasks")
        return examples

    def close(self) -> None:
        """Does nothing: pairs are few, and held in memory."""

    def choices(self, tokenizer: Any) -> None:
        """There are none: a generator writes what it likes."""

    def write_settings(self, folder: Path) -> None:
        """Writes nothing: a generator is asked like any other model."""


RECIPES: dict[str, Callable[[Config], Recipe]] = {
    "retriever": RetrieverRecipe,
    "docid_generator": lambda config: GeneratorRecipe(config, "docid_generator"),
    "query_generator": lambda config: GeneratorRecipe(config, "query_generator"),
}
