"""The retriever: (instruction, query -> docid) of an index, its pseudo-queries and judged queries."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.stage import load_frequency
from zerogr.errors import UserError
from zerogr.index.index import Index, fingerprint, shards_in
from zerogr.llm.chat import SETTINGS_FILE, ChatFormat
from zerogr.llm.models import resolve_model, tokenizer_hash
from zerogr.ranking.postings import words_of
from zerogr.seeds import seed_of
from zerogr.store import cache, storage
from zerogr.training.answers import draw_answers
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Row
from zerogr.training.files import ExampleFiles
from zerogr.training.recipes.recipe import VERSION, common_inputs, settings_of
from zerogr.trie import DocidTrie


class RetrieverRecipe:
    """The index's pseudo-queries and docids become examples, judged queries beside them."""

    stage = "retriever"

    def __init__(self, config: Config) -> None:
        self._config, self.index = config, Index(config.index)
        self.base, self.num_layers = config.retriever.model, config.retriever.num_layers
        self.settings = settings_of(config)

    def inputs(self) -> dict[str, Any]:
        """Returns what the retriever is made from."""
        return {
            "docids": self.index.require("docids").fingerprint,
            "docids.unit": self._config.docids.unit,
            "queries": self.index.require("queries").fingerprint,
            "retriever.num_layers": self.num_layers,
            "training.normalise": self.settings.normalise,
            **common_inputs(self._config, "retriever", self.base),
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
            **{folder: cache.version(self.index.path(folder)) for folder in ("docids", "queries", "trie")},
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
        trie = DocidTrie.load(cache.local_folder(self.index.path("trie")))
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
