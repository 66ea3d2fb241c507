"""The document: what every reader yields, whatever the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = ("text", "table", "code")


@dataclass(slots=True)
class Document:
    """One unit of retrieval. Text, tables and code are documents alike."""

    doc_id: str
    """The user's own key, unique in the corpus."""
    title: str = ""
    """May be empty, if `text` is not."""
    text: str = ""
    """The body; for a table, its readable serialisation. May be empty, if `title` is not."""
    kind: str = "text"
    """One of `KINDS`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything JSON can hold; carried along. Only an `instruction` in it is read, for the document's pseudo-queries."""


@dataclass(slots=True)
class Rejected:
    """A row of the source that cannot become a document, and why."""

    doc_id: str
    """The key if the row had one, else its location in the source, such as `corpus.jsonl:17`."""
    reason: str
    """A short machine-readable word: `empty_doc_id`, `duplicate_doc_id`, `empty_document`, `invalid_utf8`, `too_large`,
    `invalid_json`, `invalid_row`, `invalid_doc_id`."""
    detail: str = ""
    """One sentence for a person."""
