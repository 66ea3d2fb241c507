"""In which tokens an index's retriever writes identifiers: those of its model, and those that the docids need besides."""

from __future__ import annotations

from typing import Any

from zerogr.config.tree import Config
from zerogr.index.index import Index
from zerogr.llm.chat import ChatFormat
from zerogr.llm.codec import code_tokens, extend, extended_hash
from zerogr.llm.models import load_tokenizer, resolve_model


class Written:
    """The tokens of an index whose docids are made."""

    def __init__(self, config: Config, index: Index) -> None:
        """Raises UserError if the docids or the retriever's model are missing."""
        self._config, self._folder = config, resolve_model(config.retriever.model)
        self.new_tokens = code_tokens(index.require("docids").counts.get("codes", []))
        """What is added to the model's vocabulary, in order."""

    def tokenizer(self) -> Any:
        """Returns the retriever's tokenizer."""
        tokenizer = load_tokenizer(self._folder)
        extend(tokenizer, self.new_tokens)
        return tokenizer

    def chat(self) -> ChatFormat:
        """Returns how the retriever is prompted and how it answers, under the configured limits."""
        training = self._config.training
        return ChatFormat.of(
            self.tokenizer(),
            codec=self._config.docids.codec,
            max_instruction_tokens=training.max_instruction_tokens,
            max_query_tokens=training.max_query_tokens,
        )

    def hash(self) -> str:
        """Returns the hash that the tokenizer has in the retriever's folder."""
        return extended_hash(self._folder, self.tokenizer(), self.new_tokens)
