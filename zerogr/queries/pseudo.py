"""Pseudo-queries: what people might ask of a document, written by a language model.

Per document there are B samples of one prompt that states the task's instruction; here they are cleaned, filtered and
de-duplicated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from zerogr.config.tree import Config
from zerogr.text.words import is_topical, stem, stretches, words

MAX_QUERY_WORDS = 40

_LABEL = re.compile(r"^\s*(?:[-*•]|\d+[.)]|(?:search )?(?:query|question)\s*\d*\s*:)\s*", re.IGNORECASE)
_ECHO = re.compile(
    r"\b(?:(?:this|the|which|what) (?:document|passage|text|task|question)|(?:search )?quer(?:y|ies)|text above|an? ai)\b"
    r"|<<<|>>>|^(?:task|document)\s*:",
    re.IGNORECASE,
)


def instruction_of(config: Config, document: dict[str, Any]) -> Any:
    """Returns the instruction for a document's queries: its own, that of its kind, or the configuration's."""
    own = json.loads(document["metadata"]).get("instruction")
    return own or config.queries.instructions.get(document["kind"], config.instruction)


REPETITION = "repetition"


def judge_queries(
    samples: Sequence[str], title: str, text: str, *, on_topic: bool = True
) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the usable queries among an LM's samples, in their order, and (reason, sample) of the others.

    A label, a list mark or quotes around a query are taken off. Left out are empty ones, repetitions (whatever the case),
    echoes of the prompt (unless the document speaks that way), ones of more than `MAX_QUERY_WORDS` words, and with `on_topic`
    those off the topic: fewer than two of their topical words, or fewer than a third, share a stem with a word of the document.
    """
    document = f"{title}\n{text}".lower()
    own = {stem(word) for word in words(document) if is_topical(word)} if samples else set()
    kept: dict[str, str] = {}
    dropped = []
    for sample in samples:
        query = _LABEL.sub("", " ".join(sample.split())).strip(" \"'`*“”")
        terms = words(query)
        topical = {stem(term) for term in terms if is_topical(term)}
        num_shared = len(topical & own)
        if not terms:
            dropped.append(("empty", sample))
        elif sum(1 for _ in islice(stretches(query), MAX_QUERY_WORDS + 1)) > MAX_QUERY_WORDS:
            dropped.append(("too_long", sample))
        elif (echo := _ECHO.search(query)) and echo[0].lower() not in document:
            dropped.append(("prompt_echo", sample))
        elif on_topic and (num_shared < min(2, len(topical)) or 3 * num_shared < len(topical) or not num_shared):
            dropped.append(("off_topic", sample))
        elif (key := " ".join(terms)) in kept:
            dropped.append((REPETITION, sample))
        else:
            kept[key] = query
    return list(kept.values()), dropped
