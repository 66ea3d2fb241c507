"""Markers of a chat format inside documents and queries: data must not open or end a turn.

A tokenizer that declares its markers special can be told to split them. One that holds them as ordinary added tokens cannot;
there a space goes into the marker, so that it is text like other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def undeclared_markers(tokenizer: Any, texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the markers in some texts of a chat format that the tokenizer makes one token of, even in data."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    found = dict.fromkeys(marker for text in texts for marker in _MARKER.findall(text))
    return tuple(marker for marker in found if len(tokenizer(marker, **options)["input_ids"]) == 1)


def as_data(text: str, markers: Iterable[str]) -> str:
    """Returns a text in which no marker is one."""
    for marker in markers:
        if marker in text:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text
