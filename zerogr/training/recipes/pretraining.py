"""Pre-training: graded pairs from links, before there is an index. What comes out is a start for its retriever."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from zerogr.config.tree import Config
from zerogr.index.index import Index, fingerprint
from zerogr.index.stage import PRETRAINED
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import resolve_model, tokenizer_hash
from zerogr.teaching.graded import HIGHEST_GRADE, graded_inputs, graded_queries
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.files import ExampleFiles
from zerogr.training.recipes.recipe import VERSION, common_inputs, settings_of

AT_ONCE = 4096
"""Queries that are tokenised together."""


class PretrainingRecipe:
    """A query and all articles that are relevant to it are one example, in the retriever's prompt."""

    stage = PRETRAINED.name
    num_layers: int | None = None
    new_tokens: list[str] = []

    def __init__(self, config: Config) -> None:
        self._config, self.index = config, Index(config.pretraining.out)
        self.base = config.pretraining.model
        # Other docids stand in the trie of the index to come: what is learnt must hold among all tokens.
        self.settings = settings_of(config, normalise="vocabulary")

    def inputs(self) -> dict[str, Any]:
        """Returns what the model is made from."""
        return {
            **common_inputs(self._config, "pretraining", self.base),
            **graded_inputs(self._config),
            "training.loss": self._config.training.loss.model_dump(mode="json"),
        }

    def examples(self, tokenizer: Any) -> Examples:
        """Returns the graded queries as training examples, memory-mapped."""
        training = self._config.training
        chat = ChatFormat.of(
            tokenizer,
            max_instruction_tokens=training.max_instruction_tokens,
            max_query_tokens=training.max_query_tokens,
        )
        return self._files().open(lambda: (Examples.build(part, chat) for part in self.text_examples()))

    def _files(self) -> ExampleFiles:
        training = self._config.training
        made_from = {
            **graded_inputs(self._config),
            "tokenizer": tokenizer_hash(resolve_model(self.base)),
            "answers": [VERSION, self._config.seed],
            "limits": [training.max_instruction_tokens, training.max_query_tokens],
        }
        return ExampleFiles(fingerprint(made_from))

    def close(self) -> None:
        """Deletes the examples' files."""
        self._files().delete()

    def text_examples(self) -> Iterator[list[TextExample]]:
        """Yields the examples, some at a time. A document weighs what its grade is of the highest one."""
        queries = graded_queries(self._config)
        while part := list(islice(queries, AT_ONCE)):
            yield [
                TextExample(
                    self._config.instruction,
                    query,
                    [Relevant(grade, [(docid, grade / HIGHEST_GRADE)]) for docid, grade in relevant],
                )
                for query, relevant in part
            ]

    def choices(self, tokenizer: Any) -> None:
        """There are none: there is no trie yet."""

    def write_settings(self, folder: Path) -> None:
        """Writes nothing: the index that begins with this model writes its own."""
