"""Rows: what a reader found under each column becomes a document, or is rejected with a reason.

Every format passes through `to_document`, so the same faults have the same outcome everywhere.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from zerogr.config.tree import CorpusConfig
from zerogr.corpus import mair
from zerogr.corpus.document import KINDS, Document, Rejected
from zerogr.corpus.tables import guess_kind, serialise_table
from zerogr.errors import UserError


def with_columns_of(config: CorpusConfig, names: list[str], uri: str) -> CorpusConfig:
    """Returns the configuration for a file with these columns: MAIR's are known without being configured.

    Raises:
        UserError: The file has no column for the key, or neither title nor text.
    """
    configured = {"doc_id_column": config.doc_id_column, "text_column": config.text_column}
    defaults = {key: CorpusConfig.model_fields[key].default for key in configured}
    if configured == defaults and mair.has_documents(names) and not set(defaults.values()) & set(names):
        return config.model_copy(update={"doc_id_column": mair.DOC_ID, "text_column": mair.TEXT})

    def missing(key: str, column: str) -> UserError:
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return UserError(
            f"'{uri}' has no column '{column}'; it has {', '.join(names) or 'none'}: set corpus.{key}{hint}"
        )

    if config.doc_id_column not in names:
        raise missing("doc_id_column", config.doc_id_column)
    if config.text_column not in names and config.title_column not in names:
        raise missing("text_column", config.text_column)
    return config


def columns_read(config: CorpusConfig) -> set[str]:
    """Returns the names of the columns that `to_document` looks at."""
    return {config.doc_id_column, config.title_column, config.text_column, "metadata", "kind"}


def to_document(row: dict[str, Any], location: str, config: CorpusConfig) -> Document | Rejected:
    """Returns the row's document, or why it is none. Bytes stand for text that is no UTF-8."""
    key = row.get(config.doc_id_column)
    if isinstance(key, bytes):
        return Rejected(location, "invalid_utf8", f"'{config.doc_id_column}' is not UTF-8")
    if isinstance(key, (dict, list, bool, float)):
        return Rejected(
            location, "invalid_row", f"'{config.doc_id_column}' is a {type(key).__name__}, not a string or an integer"
        )
    doc_id = "" if key is None else str(key).strip()
    if not doc_id:
        return Rejected(location, "empty_doc_id", f"'{config.doc_id_column}' is empty")
    if not is_utf8(doc_id):
        return Rejected(location, "invalid_utf8", f"'{config.doc_id_column}' holds half of a surrogate pair")
    title, text = row.get(config.title_column), row.get(config.text_column)
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind: str = config.kind
    if isinstance(text, list) and all(isinstance(cells, list) for cells in text):
        text, kind = serialise_table(text), "table" if kind == "auto" else kind
    for column, value in ((config.title_column, title), (config.text_column, text)):
        if isinstance(value, bytes):
            return Rejected(doc_id, "invalid_utf8", f"'{column}' is not UTF-8")
        if not isinstance(value, str | None):
            return Rejected(doc_id, "invalid_row", f"'{column}' is a {type(value).__name__}, not a string")
    title, text = (title or "").strip(), (text or "").strip("\r\n")
    if not title and not text.strip():
        return Rejected(doc_id, "empty_document", "title and text are both empty")
    try:
        num_bytes = len((title + text).encode())
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Rejected(doc_id, "invalid_utf8", "it holds half of a surrogate pair")
    except TypeError as error:
        return Rejected(doc_id, "invalid_row", f"'metadata' cannot be written as JSON: {error}")
    if num_bytes > config.max_document_bytes:
        limit = config.max_document_bytes
        return Rejected(
            doc_id, "too_large", f"{num_bytes} bytes of title and text; corpus.max_document_bytes is {limit}"
        )
    if kind == "auto":
        named = metadata.get("kind") or metadata.get("type") or row.get("kind")
        kind = named if named in KINDS else guess_kind(text)
    return Document(doc_id=doc_id, title=title, text=text, kind=kind, metadata=metadata)


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
