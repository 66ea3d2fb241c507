"""Articles: documents with links between them, from which a model learns what belongs together before it has an index.

A file of articles holds one JSON object per line:

    {"_id": "Q7251", "title": "Alan Turing",
     "sections": [{"text": "Alan Turing was a mathematician. He ...", "links": ["Computer science", "Q131755"]}, ...],
     "see_also": ["Turing machine"], "references": ["Q1027879"]}

A link names an article by its `_id`, or by its title whatever the case, with spaces or underscores. Everything but `_id` and
`title` may be missing; what else a row has is left alone. The first section is the one that says what the article is about.

The built-in corpus is read as articles as well (`pystdlib_links.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.document import Rejected
from zerogr.corpus.pystdlib_links import linked_pystdlib
from zerogr.corpus.readers import PYSTDLIB, source_files, source_hash
from zerogr.corpus.streams import json_rows
from zerogr.errors import UserError
from zerogr.store import hub, storage


@dataclass(slots=True)
class Article:
    """One document and what it links to, by name."""

    doc_id: str
    title: str
    opening: str = ""
    """The text of its first section."""
    rest: str = ""
    """That of the others."""
    see_also: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    opening_links: list[str] = field(default_factory=list)
    """Links of the first section."""
    other_links: list[str] = field(default_factory=list)
    """Links of the others."""


def read_articles(source: str) -> Iterator[Article | Rejected]:
    """Yields every article of a source, in its own order, or why a row is none.

    Args:
        source: A file of articles or a folder of such files, wherever corpora are read from; or `pystdlib:`.

    Raises:
        UserError: The source is missing or cannot be read.
    """
    if source == PYSTDLIB:
        yield from (Article(**fields) for fields in linked_pystdlib())
        return
    for file in source_files(_as_corpus(source)):
        for location, row in json_rows(file):
            yield row if isinstance(row, Rejected) else _article(row, location)


def articles_hash(source: str) -> str:
    """Returns a hash of the source's content.

    Raises:
        UserError: The source is missing.
    """
    return source_hash(_as_corpus(source))


def _as_corpus(source: str) -> CorpusConfig:
    if source == PYSTDLIB:
        return CorpusConfig(source=source)
    if not (hub.is_hub(source) or storage.list_files(source) or storage.exists(source)):
        raise UserError(
            f"pretraining.source '{source}' does not exist; give a .jsonl file of articles, a folder of them, or '{PYSTDLIB}'"
        )
    return CorpusConfig(source=source, format="jsonl")


def _article(row: dict[str, Any], location: str) -> Article | Rejected:
    key, title, sections = row.get("_id"), row.get("title"), row.get("sections") or []
    if isinstance(key, bool) or not isinstance(key, str | int) or not str(key).strip():
        return Rejected(location, "empty_doc_id", f'"_id" must be a string or an integer, not {key!r}')
    doc_id = str(key).strip()
    if not isinstance(title, str) or not title.strip():
        return Rejected(doc_id, "invalid_row", f'"title" must be a string that is not empty, not {title!r}')
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        return Rejected(doc_id, "invalid_row", '"sections" must be a list of objects with "text" and "links"')
    texts = [section.get("text") or "" for section in sections]
    links = [section.get("links") or [] for section in sections]
    see_also, references = row.get("see_also") or [], row.get("references") or []
    if not all(isinstance(text, str) for text in texts):
        return Rejected(doc_id, "invalid_row", 'the "text" of a section must be a string')
    if not all(map(_are_names, (*links, see_also, references))):
        return Rejected(doc_id, "invalid_row", '"links", "see_also" and "references" must be lists of ids or titles')
    return Article(
        doc_id,
        title.strip(),
        "".join(texts[:1]),
        "\n".join(texts[1:]),
        _names(see_also),
        _names(references),
        _names(*links[:1]),
        _names(*links[1:]),
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str | int) and not isinstance(name, bool) for name in value)


def _names(*lists: list[str | int]) -> list[str]:
    return [str(name) for names in lists for name in names]
