"""The prompts: what a generator is asked. Their text enters the fingerprint of the stage that uses them.

A document stands between markers, as data: what it says is never an instruction. Small models follow the shape of an answer
better than rules, so each prompt comes with the first words of the answer.
"""

from __future__ import annotations

DOCID_USER = """Document:
<<<
{document}
>>>

List the {min_words} to {max_words} words of this document that name its topic best, most important first."""
DOCID_PREFILL = "Keywords:"

QUERY_USER = """Task: {instruction}

Document:
<<<
{document}
>>>

Write five short, different questions or search queries that this document answers. Each one names its topic."""
QUERY_PREFILL = "1."
"""One item of a list per sample: asked for a list, small models stay with the document; asked for one query, they chat."""


def excerpt(title: str, text: str, num_words: int) -> str:
    """Returns the title and the beginning of the text, `num_words` words in all, line breaks kept."""
    document = f"{title}\n{text}" if title else text
    kept, count = [], 0
    for line in document.splitlines():
        tokens = line.split(" ")
        size = sum(1 for token in tokens if token)
        if count + size > num_words:
            kept.append(" ".join(line.split()[: num_words - count]))
            break
        kept.append(line)
        count += size
    cut = "\n".join(kept).strip()
    while "<<<" in cut or ">>>" in cut:  # once is not enough: without its arrows, "<<>>><" is a marker
        cut = cut.replace("<<<", "").replace(">>>", "")
    return cut


def docid_prompt(document: str, min_words: int, max_words: int) -> str:
    """Returns the user turn that asks for a docid."""
    return DOCID_USER.format(document=document, min_words=min_words, max_words=max_words)


def query_prompt(document: str, instruction: str) -> str:
    """Returns the user turn that asks for a pseudo-query."""
    return QUERY_USER.format(document=document, instruction=instruction)
