"""How a language model is asked for docids. The wording enters the fingerprint of what is made with it.

A document stands between markers, as data: what it says is never an instruction.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from zerogr.llm.prompts import excerpt

DOCID_USER = {
    "brief": """Document:
<<<
{document}
>>>

List the {min_words} to {max_words} words of this document that name its topic best, most important first.""",
    "rules": """Document:
<<<
{document}
>>>

Name this document: write {min_words} to {max_words} keywords on one line that tell it from every other document.
- Most important first, from the general topic to what is particular to this document.
- Three to five of them are its core terms, in its own words and its own language. Nothing that does not follow from it.
- Nouns and adjectives in lower case, separated by single spaces: no article, no verb, no punctuation. Technical names, numbers
  and versions stay as they are written.

Answer with the keywords alone.""",
}
DOCID_PREFILL = {"brief": "Keywords:", "rules": ""}
"""By style. A model of 135M lists words when it is shown how to begin;
one of 1B and more follows rules, made after the paper's."""


class Asking(Protocol):
    """The settings that say how to ask."""

    @property
    def prompt_style(self) -> Literal["brief", "rules"]: ...
    @property
    def document_words(self) -> int: ...
    @property
    def min_words(self) -> int: ...
    @property
    def max_words(self) -> int: ...


def docid_wording(docids: Asking) -> str:
    """Returns what the fingerprint of whatever asks for docids holds of the words it asks in."""
    return DOCID_USER[docids.prompt_style] + DOCID_PREFILL[docids.prompt_style]


def docid_prompt(docids: Asking, document: dict[str, Any]) -> tuple[str, str]:
    """Returns (user turn, first words of the answer) that ask for the docid of a corpus row."""
    beginning = excerpt(document["title"], document["text"], docids.document_words)
    style = docids.prompt_style
    user = DOCID_USER[style].format(document=beginning, min_words=docids.min_words, max_words=docids.max_words)
    return user, DOCID_PREFILL[style]
