"""The prompts: what a generator is asked. Their text enters the fingerprint of the stage that uses them.

A document stands between markers, as data: what it says is never an instruction. Small models follow the shape of an answer
better than rules, so each prompt comes with the first words of the answer.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from zerogr.config.tree import DocidsConfig, QueriesConfig
from zerogr.text.words import stretches

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

QUERY_USER = """Task: {instruction}

Document:
<<<
{document}
>>>

Write five short, different questions or search queries that this document answers. Each one names its topic."""
QUERY_PREFILL = "1."
"""One item of a list per sample: asked for a list, small models stay with the document; asked for one query, they chat."""


def excerpt(title: str, text: str, num_words: int) -> str:
    """Returns the title and the beginning of the text, `num_words` words (`stretches`) in all, line breaks kept."""
    document = f"{title}\n{text}" if title else text
    cut = "".join(islice(stretches(document), num_words)).rstrip()
    while "<<<" in cut or ">>>" in cut:  # once is not enough: without its arrows, "<<>>><" is a marker
        cut = cut.replace("<<<", "").replace(">>>", "")
    return cut


def docid_wording(docids: DocidsConfig) -> str:
    """Returns what the fingerprint of whatever asks for docids holds of the words it asks in."""
    return DOCID_USER[docids.prompt_style] + DOCID_PREFILL[docids.prompt_style]


def docid_prompt(docids: DocidsConfig, document: dict[str, Any]) -> tuple[str, str]:
    """Returns (user turn, first words of the answer) that ask for the docid of a corpus row."""
    beginning = excerpt(document["title"], document["text"], docids.document_words)
    style = docids.prompt_style
    user = DOCID_USER[style].format(document=beginning, min_words=docids.min_words, max_words=docids.max_words)
    return user, DOCID_PREFILL[style]


def query_prompt(queries: QueriesConfig, document: dict[str, Any], instruction: str) -> tuple[str, str]:
    """Returns (user turn, first words of the answer) that ask for a query about a corpus row."""
    beginning = excerpt(document["title"], document["text"], queries.document_words)
    return QUERY_USER.format(document=beginning, instruction=instruction), QUERY_PREFILL
