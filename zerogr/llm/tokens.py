"""Many texts become tokens, without what transformers does around each: a third of the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode_many(tokenizer: Any, texts: Sequence[str], *, is_data: bool = False) -> list[list[int]]:
    """Returns the tokens of each text, whole, with no special tokens added.

    Args:
        tokenizer: Of transformers.
        texts: Any number.
        is_data: Whether the names of special tokens ("<|im_end|>") are ordinary text and end no turn.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        options = {"add_special_tokens": False, "split_special_tokens": is_data, "verbose": False}
        encoded: list[list[int]] = tokenizer(list(texts), **options)["input_ids"]
        return encoded
    backend = tokenizer.backend_tokenizer
    # Changed only where it must be: while another thread encodes, nothing may be set.
    if backend.encode_special_tokens != is_data:
        backend.encode_special_tokens = is_data
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
