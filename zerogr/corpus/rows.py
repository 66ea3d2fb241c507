"""Rows: what a reader found under each column becomes a document, or is rejected with a reason.

Every format passes through `to_document`, so the same faults have the same outcome everywhere.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
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
    for column in config.text_columns:
        if column not in names:
            raise missing("text_columns", column)
    if config.text_column not in names and config.title_column not in names and not config.text_columns:
        raise missing("text_column", config.text_column)
    return config


def columns_read(config: CorpusConfig) -> set[str]:
    """Returns the names of the columns that `to_document` looks at."""
    return {config.doc_id_column, config.title_column, config.text_column, *config.text_columns, "metadata", "kind"}


def to_document(row: dict[str, Any], location: str, config: CorpusConfig) -> Document | Rejected:
    """Returns the row's document, or why it is none. Bytes stand for text that is no UTF-8."""
    key = _given(row.get(config.doc_id_column))
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
    if control := re.search(r"[\x00-\x1f\x7f]", doc_id):
        return Rejected(doc_id, "invalid_doc_id", f"it holds the control character {control.group()!r}")
    title, text = _given(row.get(config.title_column)), _body(row, config)
    metadata = _metadata(row.get("metadata"))
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
    if num_bytes > config.max_document_bytes:
        limit = config.max_document_bytes
        return Rejected(
            doc_id, "too_large", f"{num_bytes} bytes of title and text; corpus.max_document_bytes is {limit}"
        )
    if kind == "auto":
        named = metadata.get("kind") or metadata.get("type") or row.get("kind")
        kind = named if named in KINDS else guess_kind(text)
    return Document(doc_id=doc_id, title=title, text=text, kind=kind, metadata=metadata)


def _body(row: dict[str, Any], config: CorpusConfig) -> Any:
    """Returns what is to be the text of a row: a cell, several, or the lines of a list."""
    cells = [_given(row.get(column)) for column in config.text_columns or [config.text_column]]
    lines = [
        "\n".join(cell) if isinstance(cell, list) and cell and all(isinstance(line, str) for line in cell) else cell
        for cell in cells
    ]
    if len(lines) == 1 or not all(isinstance(line, str | None) for line in lines):
        return next((line for line in lines if not isinstance(line, str | None)), lines[0])
    return "\n".join(line for line in lines if line)


def _metadata(value: Any) -> dict[str, Any]:
    """Returns metadata as a mapping that JSON can hold: text that is JSON is read, dates and other values become text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if _given(value) is None or value == "":
        return {}
    plain = _plain(value)
    return plain if isinstance(plain, dict) else {"metadata": plain}


def _plain(value: Any) -> Any:
    """Returns a value of JSON's own kinds."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _given(value: Any) -> Any:
    """Returns a cell's value; None for NaN, which is how pandas writes that there is none."""
    return None if isinstance(value, float) and math.isnan(value) else value


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
