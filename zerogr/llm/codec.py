"""Codecs: how an identifier is written in tokens.

Text is written as it stands; the leading space makes its first word the same token as inside a query, which lets a language
model copy. Codes such as "17 3 201" are written in tokens of their own, <0:17><1:3><2:201>: one per level and code, added to
the retriever's vocabulary.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np

from zerogr.errors import Fault
from zerogr.llm.models import tokenizer_hash
from zerogr.llm.tokens import encode_many
from zerogr.ragged import offsets_of

CodecName = Literal["text", "codes"]
_CODE = re.compile(r"<\d+:(\d+)>")


class Codec(Protocol):
    """One way to write identifiers."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of many identifiers, without end tokens: int32 [T] and offsets int64 [N + 1]."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the identifier that some tokens write, or the part of it."""


class TextCodec:
    """Identifiers are text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Codec`."""
        return _flat(encode_many(self._tokenizer, [f" {text}" for text in texts]))

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Codec`."""
        return str(self._tokenizer.decode(tokens)).strip()


class CodesCodec:
    """Identifiers are codes, one for each level, separated by single spaces."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = tokenizer.get_vocab()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Codec`. Raises Fault if the tokenizer lacks a code."""
        try:
            return _flat([[self._ids[code_token(*each)] for each in enumerate(text.split(" "))] for text in texts])
        except KeyError as missing:
            raise Fault(f"the retriever's tokenizer has no token {missing}; run again with --rebuild trie") from None

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Codec`."""
        return " ".join(_CODE.findall("".join(self._tokenizer.convert_ids_to_tokens(list(tokens)))))


CODECS: dict[CodecName, Callable[[Any], Codec]] = {"text": TextCodec, "codes": CodesCodec}


def code_token(level: int, code: int | str) -> str:
    """Returns the token of a code at a level, from 0."""
    return f"<{level}:{code}>"


def code_tokens(num_codes: Sequence[int]) -> list[str]:
    """Returns all tokens of codes, where each level has so many."""
    return [code_token(level, code) for level, count in enumerate(num_codes) for code in range(count)]


def extend(tokenizer: Any, new_tokens: Sequence[str]) -> None:
    """Adds tokens to a tokenizer. They are special ones, so that nobody's query can hold any."""
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)


def extended_hash(folder: str, tokenizer: Any, new_tokens: Sequence[str]) -> str:
    """Returns the hash that the tokenizer of `folder` has when it is saved, once it was extended by `new_tokens`."""
    if not new_tokens:
        return tokenizer_hash(folder)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        return tokenizer_hash(saved)


def extend_embeddings(model: Any, tokenizer: Any, new_tokens: Sequence[str]) -> None:
    """Gives a causal LM (fp32) embeddings for the new tokens of its extended tokenizer, in and out, the same in every process.

    They are drawn around the mean of the others, with their spread in every dimension, so that a new token is neither likelier
    nor stranger than an old one (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
    """
    import torch

    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(new_tokens)))
    tables = {id(module.weight): module for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    old = {key: module.weight.detach().clone() for key, module in tables.items()}
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(module.weight): module for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    seed = int.from_bytes(hashlib.sha256("".join(new_tokens).encode()).digest()[:8], "little") >> 1
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module, before in zip(tables.values(), old.values(), strict=True):
            drawn = torch.randn(len(ids), before.shape[1], generator=draw).to(before)
            module.weight[ids.to(before.device)] = before.mean(0) + before.std(0) * drawn


def _flat(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = offsets_of(map(len, encoded))
    return np.fromiter(chain.from_iterable(encoded), np.int32, int(offsets[-1])), offsets
