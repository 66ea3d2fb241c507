"""The prompts: what a generator is asked. Their text enters the fingerprint of the stage that uses them.

A document stands between markers, as data: what it says is never an instruction. Small models follow the shape of an answer
better than rules, so each prompt comes with the first words of the answer.
"""

from __future__ import annotations

from typing import Any

from zerogr.config.tree import QueriesConfig
from zerogr.text.words import beginning

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
    cut = beginning(document, num_words).rstrip()
    while "<<<" in cut or ">>>" in cut:  # once is not enough: without its arrows, "<<>>><" is a marker
        cut = cut.replace("<<<", "").replace(">>>", "")
    return cut


def query_prompt(queries: QueriesConfig, document: dict[str, Any], instruction: str) -> tuple[str, str]:
    """Returns (user turn, first words of the answer) that ask for a query about a corpus row."""
    beginning = excerpt(document["title"], document["text"], queries.document_words)
    return QUERY_USER.format(document=beginning, instruction=instruction), QUERY_PREFILL
