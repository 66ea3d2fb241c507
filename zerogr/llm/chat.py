"""The retriever's prompt: a minimal chat format, one user turn and one assistant turn, no system turn.

    <user turn opens> instruction \n query <user turn ends, assistant turn opens> docid <end>

The pieces are tokenised one by one and joined, so that the docid's tokens are the same wherever it stands: in a training
example, in the trie, and in what the decoder writes. What comes before the query is the same for a whole task (`prefix`), so
that it can be encoded once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zerogr.errors import UserError
from zerogr.llm.codec import CODECS, Codec, CodecName
from zerogr.llm.markers import as_data, undeclared_markers
from zerogr.llm.tokens import encode_many

SETTINGS_FILE = "zerogr.json"
"""In a retriever's folder: {"instruction", "codec", "max_instruction_tokens", "max_query_tokens"}, as it was trained."""

_FORMATS = {
    "<|im_start|>": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "<|start_header_id|>": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "<start_of_turn>": ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
    "[INST]": ("[INST]", "[/INST]", ""),
}
"""Marker in the vocabulary -> text that opens the user turn, text between the turns, token that ends the answer."""

SCORER = "scorer.safetensors"
"""In a retriever's folder, where it was trained to score query and docid: `weight`, [1, H]."""
_AT_ONCE = 10_000
"""Queries that are tokenised together; each holds about a kilobyte meanwhile."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a tokenizer's family writes a question and an answer."""

    tokenizer: Any
    opening: tuple[int, ...]
    """Tokens before the instruction."""
    between: tuple[int, ...]
    """Tokens between the query and the docid."""
    end_token_id: int
    """The token that ends a docid; never part of one."""
    codec: Codec
    """How docids are written."""
    markers: tuple[str, ...] = ()
    """Of the format, that the tokenizer would take for markers in a query, too."""
    max_instruction_tokens: int = 64
    max_query_tokens: int = 64

    @classmethod
    def of(
        cls, tokenizer: Any, *, codec: CodecName = "text", max_instruction_tokens: int = 64, max_query_tokens: int = 64
    ) -> ChatFormat:
        """Returns the format of a tokenizer: that of its family, or two plain lines if it belongs to none.

        Raises:
            UserError: The tokenizer has no token to end an answer with.
        """
        vocabulary = tokenizer.get_vocab()
        opening, between, end = next(
            (texts for marker, texts in _FORMATS.items() if marker in vocabulary), ("", "\n", "")
        )
        end_token_id = vocabulary[end] if end else tokenizer.eos_token_id
        if end_token_id is None:
            raise UserError(
                "the model's tokenizer names no end-of-sequence token, and a docid could never end; set `eos_token` in its "
                "tokenizer_config.json"
            )
        bos = tokenizer.bos_token_id
        opening_ids = _encode(tokenizer, opening)
        if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
            opening_ids = [bos, *opening_ids]
        return cls(
            tokenizer,
            tuple(opening_ids),
            tuple(_encode(tokenizer, between)),
            end_token_id,
            CODECS[codec](tokenizer),
            undeclared_markers(tokenizer, (opening, between, end)),
            max_instruction_tokens,
            max_query_tokens,
        )

    @classmethod
    def trained(cls, folder: str, tokenizer: Any) -> tuple[ChatFormat, str]:
        """Returns the format that the retriever of a folder was trained in, and its instruction."""
        settings = json.loads(Path(folder, SETTINGS_FILE).read_text(encoding="utf-8"))
        prompting = {key: settings[key] for key in ("codec", "max_instruction_tokens", "max_query_tokens")}
        return cls.of(tokenizer, **prompting), settings["instruction"]

    def prefix(self, instruction: str) -> list[int]:
        """Returns the tokens that all queries of a task share."""
        return [
            *self.opening,
            *_encode(self.tokenizer, as_data(instruction, self.markers), is_data=True)[: self.max_instruction_tokens],
            *_encode(self.tokenizer, "\n"),
        ]

    def query(self, query: str) -> list[int]:
        """Returns the tokens from the query to the opening of the assistant turn."""
        return self.queries([query])[0]

    def queries(self, queries: list[str]) -> list[list[int]]:
        """Returns the same of many queries, much faster than one by one."""
        found = []
        for start in range(0, len(queries), _AT_ONCE):
            texts = [as_data(" ".join(query.split()), self.markers) for query in queries[start : start + _AT_ONCE]]
            encoded = encode_many(self.tokenizer, texts, is_data=True)
            found += [[*tokens[: self.max_query_tokens], *self.between] for tokens in encoded]
        return found

    def prompt(self, instruction: str, query: str) -> list[int]:
        """Returns everything before the docid."""
        return self.prefix(instruction) + self.query(query)

    def docid(self, docid: str) -> list[int]:
        """Returns the tokens of a docid, without the end token."""
        tokens: list[int] = self.docids([docid])[0].tolist()
        return tokens

    def docids(self, docids: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of many docids as (tokens int32 [T], offsets int64 [N+1]), the form `DocidTrie.build` takes."""
        return self.codec.encode(docids)


def _encode(tokenizer: Any, text: str, *, is_data: bool = False) -> list[int]:
    """Returns token ids, as `encode_many`; of no text, none."""
    return encode_many(tokenizer, [text], is_data=is_data)[0] if text else []
