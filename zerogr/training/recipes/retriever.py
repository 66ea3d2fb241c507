"""The retriever: (instruction, query -> docid) of an index, its pseudo-queries and judged queries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.docids.scheme import Identifier, Scheme
from zerogr.docids.stage import load_scheme
from zerogr.errors import UserError
from zerogr.index.index import Index, fingerprint, shards_in
from zerogr.llm.chat import SETTINGS_FILE, ChatFormat
from zerogr.queries.negatives import FOLDER as NEGATIVES
from zerogr.queries.negatives import NOT_PSEUDO, Mined, judged_uri, read_negatives
from zerogr.queries.source import Example, judged_examples, pseudo_examples
from zerogr.seeds import seed_of
from zerogr.store import cache, storage
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.files import ExampleFiles, PublishedExamples
from zerogr.training.normalisation import NORMALISATIONS
from zerogr.training.recipes.recipe import VERSION, common_inputs, settings_of
from zerogr.trie import DocidTrie
from zerogr.trie.written import Written

JUDGED = "judged"
"""The part of the examples that is not of a shard."""


def part_of(shard: int) -> str:
    """Returns the name of the part that is a shard's."""
    return f"{shard:06d}"


class RetrieverRecipe:
    """The index's pseudo-queries and docids become examples, judged queries beside them."""

    stage = "retriever"

    def __init__(self, config: Config) -> None:
        self._config, self.index = config, Index(config.index)
        self.base, self.num_layers = config.retriever.model, config.retriever.num_layers
        self.settings = settings_of(config)

    @property
    def new_tokens(self) -> list[str]:
        """Those of the docids."""
        return self._written.new_tokens

    @cached_property
    def _written(self) -> Written:
        return Written(self._config, self.index)

    @cached_property
    def _scheme(self) -> Scheme:
        return load_scheme(self._config, self.index)

    def inputs(self) -> dict[str, Any]:
        """Returns what the retriever is made from."""
        return {
            "docids": self.index.require("docids").fingerprint,
            "queries": self.index.require("queries").fingerprint,
            "retriever.num_layers": self.num_layers,
            "training.normalise": self.settings.normalise,
            "training.loss": self._config.training.loss.model_dump(mode="json"),
            **common_inputs(self._config, "retriever", self.base),
            **self._judged_inputs(),
            **self._negatives_inputs(),
        }

    def _negatives_inputs(self) -> dict[str, Any]:
        if not self.settings.loss.needs_negatives:
            return {}
        return {"negatives": self.index.require("negatives").fingerprint}

    def _judged_inputs(self) -> dict[str, Any]:
        training = self._config.training
        if not self._has_judged:
            return {}
        drawn = self._judged_collection.share(training.judged_share, self._config.seed)
        inputs = {"training.judged": drawn.hash(), "training.judged_weight": training.judged_weight}
        return inputs | ({"training.judged_share": training.judged_share} if training.judged_share < 1 else {})

    @cached_property
    def _judged_collection(self) -> Collection:
        training = self._config.training
        return Collection.load(str(training.judged), training.judged_split)

    def examples(self, tokenizer: Any) -> Examples:
        """Returns every query of the index with its answers as training examples, memory-mapped."""
        examples = ExampleFiles(self._made_from()).open(self._parts)
        if not len(examples):
            raise UserError(
                f"'{self.index.uri}' has no pseudo-query to train on; "
                "raise queries.num_spans_per_document or queries.num_queries_per_document"
            )
        return examples

    def _parts(self) -> Iterator[Examples]:
        """Yields the parts of the examples in their order: published ones as they are, others are tokenised here."""
        published = self.published()
        there = published.names()
        for part in self.parts():
            yield published.read(part) if part in there else self.part(part)

    def parts(self) -> list[str]:
        """Returns the names of the parts: every shard that has queries and docids, then the judged queries."""
        published = set(shards_in(self.index.path("docids")))
        # A document whose docid was rejected is not in the index.
        shards = [part_of(shard) for shard in shards_in(self.index.path("queries")) if shard in published]
        return [*shards, JUDGED] if self._has_judged else shards

    def part(self, name: str) -> Examples:
        """Returns one part of the examples, tokenised."""
        chat, choices = self._tokenising
        return Examples.build(self._text_of(name), chat, choices)

    @cached_property
    def _tokenising(self) -> tuple[ChatFormat, Choices | None]:
        cuts = NORMALISATIONS[self.settings.normalise].needs_choices and not self.settings.loss.needs_whole_docids
        return self._written.chat(), self.choices() if cuts else None

    def published(self) -> PublishedExamples:
        """Returns where parts lie that were tokenised for all machines."""
        return PublishedExamples(self.index.path("work/training/examples", self._made_from()))

    def _made_from(self) -> str:
        training = self._config.training
        made_from = {
            **{folder: cache.version(self.index.path(folder)) for folder in ("docids", "queries", "trie")},
            **self._judged_inputs(),
            **self._negatives_inputs(),
            "whole": self.settings.loss.needs_whole_docids,
            "tokenizer": self._written.hash(),
            "answers": [VERSION, self._config.seed],
            "limits": [training.max_instruction_tokens, training.max_query_tokens],
            "normalise": self.settings.normalise,
        }
        return fingerprint(made_from)

    def close(self) -> None:
        """Deletes the examples' files on this machine."""
        ExampleFiles(self._made_from()).delete()

    def text_examples(self) -> Iterator[list[TextExample]]:
        """Yields the examples of every part."""
        return map(self._text_of, self.parts())

    def _text_of(self, part: str) -> list[TextExample]:
        if part == JUDGED:
            return self._judged()
        mined = self._mined(self.index.shard(NEGATIVES, int(part)))
        return [
            compared(example, [document["row_id"]], mined.get((document["row_id"], example.query)))
            for document, example in self.taught_by(int(part))
        ]

    @property
    def _has_judged(self) -> bool:
        return bool(self._config.training.judged and self._config.training.judged_share)

    def taught_by(self, shard: int) -> list[tuple[dict[str, Any], TextExample]]:
        """Returns the pseudo-queries and spans of a shard's documents as examples, each with its row of docids/."""
        documents = {row["row_id"]: row for row in self._documents(shard)}
        return [
            (documents[example.relevant[0][0]], self._taught(example, documents))
            for example in pseudo_examples(self.index, shard, documents)
        ]

    def _mined(self, uri: str) -> dict[tuple[int, str], Mined]:
        return read_negatives(uri) if self.settings.loss.needs_negatives else {}

    def _judged(self) -> list[TextExample]:
        training, whole = self._config.training, self._judged_collection
        collection = whole.share(training.judged_share, self._config.seed)
        judged = {doc_id for grades in collection.qrels.values() for doc_id in grades}
        documents = {
            row["row_id"]: row
            for shard in shards_in(self.index.path("docids"))
            for row in self._documents(shard)
            if row["doc_id"] in judged
        }
        row_of = {row["doc_id"]: row_id for row_id, row in documents.items()}
        if whole.highest_grade <= 0:
            raise UserError(
                f"training.judged '{training.judged}' judges nothing as relevant in its split '{training.judged_split}': "
                "no grade is above 0; name another split, or set training.judged to null"
            )
        weight = training.judged_weight / whole.highest_grade
        examples = judged_examples(collection, row_of, instruction=self._config.instruction, weight=weight)
        mined = self._mined(judged_uri(self.index))
        taught = [
            compared(
                self._taught(example, documents),
                [row_id for row_id, _ in example.relevant],
                mined.get((NOT_PSEUDO, example.query)),
            )
            for example in examples
        ]
        if not taught:
            raise UserError(
                f"none of the {len(collection.qrels)} judged queries of training.judged '{training.judged}' has a relevant "
                "document in this index; name the collection that it was built from, or set training.judged to null"
            )
        return taught

    def _documents(self, shard: int) -> list[dict[str, Any]]:
        columns = ["row_id", "doc_id", "docid", *(["identifiers"] if self._config.docids.has_shared else [])]
        rows: list[dict[str, Any]] = storage.read_parquet(self.index.shard("docids", shard), columns).to_pylist()
        return rows

    def _taught(self, example: Example, documents: dict[int, dict[str, Any]]) -> TextExample:
        """Returns what a query teaches of its documents, the same in every run."""
        relevant = []
        for row_id, grade in example.relevant:
            document = documents[row_id]
            shared = [Identifier(**identifier) for identifier in document.get("identifiers") or ()]
            draw = partial(self._draw, document["doc_id"], example.query)
            taught = self._scheme.teach(example.query, document["docid"], shared, draw)
            weight = example.weight * grade
            relevant.append(Relevant(grade, [(text, weight * probability) for text, probability in taught]))
        return TextExample(example.instruction, example.query, relevant)

    def _draw(self, doc_id: str, query: str) -> random.Random:
        return random.Random(seed_of(self._config.seed, "answers", doc_id, query))

    def choices(self, tokenizer: Any = None) -> Choices:
        """Returns what the index's trie leaves open. Raises UserError if there is none, or one made otherwise."""
        self.index.require("trie")
        trie = DocidTrie.load(cache.local_folder(self.index.path("trie")))
        if trie.extra.get("tokenizer") != self._written.hash():
            raise UserError(
                f"the trie of '{self.index.uri}' was made with another tokenizer than that of retriever.model; "
                "run again with --rebuild trie"
            )
        return Choices(trie, self._written.chat().end_token_id)

    def write_settings(self, folder: Path) -> None:
        """Writes what a search needs to know to prompt the model as it was trained."""
        settings = {
            "instruction": self._config.instruction,
            "codec": self._config.docids.codec,
            "max_instruction_tokens": self._config.training.max_instruction_tokens,
            "max_query_tokens": self._config.training.max_query_tokens,
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compared(example: TextExample, row_ids: Sequence[int], mined: Mined | None) -> TextExample:
    """Returns an example with what was found for its query: a teacher's scores, and documents that are not relevant.

    Args:
        example: With relevant documents alone.
        row_ids: Of them, in order.
        mined: None = nothing was found.
    """
    if mined is None:
        return example
    relevant = [
        document._replace(teacher=mined.teacher.get(row_id, 0.0))
        for row_id, document in zip(row_ids, example.documents, strict=True)
    ]
    others = [Relevant(0.0, [(each["docid"], 0.0)], each["teacher"]) for each in mined.negatives]
    return example._replace(documents=[*relevant, *others])
