"""The built-in corpus as articles: its documents and the cross-references between them.

    see also        topics: what pydoc names as related; methods: their class; classes and functions: their module; modules of
                    a package: the package
    first section   the first paragraph of the docstring, behind the signature
    links           names of other documents in the text: `os.path.join`, dotted, wherever it stands; a name without a dot
                    where it is called, `join()`, or quoted, 'join'; headings of topics of two words or more

A name without a dot is looked for where Python would: among what belongs to the document itself, beside it, in its module,
and at last among the builtins and the modules.

Cost: that of `read_pystdlib`, and as much again for the names.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.errors import UserError

_NAME = re.compile(r"""(?<![\w.])([`'"]?)([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(|[`'"])?""")

_HELP_TABLES = ("topics", "keywords")
"""Of pydoc's `Helper`: name -> (topic, names of what is related to it), or another name."""


def linked_pystdlib() -> Iterator[dict[str, Any]]:
    """Yields the fields of an article (`zerogr.corpus.articles.Article`) for every document, in the order of `read_pystdlib`.

    Raises:
        UserError: The interpreter lacks the sources that are read.
    """
    documents = list(read_pystdlib())
    names: dict[str, str] = {}
    for document in documents:
        names.setdefault(document.title, document.doc_id)
    headings = [
        document.title for document in documents if document.doc_id.startswith("topic:") and " " in document.title
    ]
    related = _related_topics(Path(sysconfig.get_path("stdlib")) / "pydoc.py")
    for document in documents:
        opening, rest = _sections(document)
        owner = document.title.rpartition(".")[0]
        yield {
            "doc_id": document.doc_id,
            "title": document.title,
            "opening": opening,
            "rest": rest,
            "see_also": related.get(document.doc_id, [owner] if owner else []),
            "opening_links": _mentions(opening, document.title, names, headings),
            "other_links": _mentions(rest, document.title, names, headings),
        }


def _sections(document: Document) -> tuple[str, str]:
    """Returns the first paragraph behind the signature, and what follows it."""
    paragraphs = document.text.split("\n\n")
    sort, _, name = document.doc_id.partition(":")
    signature = rf"(class )?{re.escape(name.rpartition('.')[2])}(\(|$)"
    if sort not in ("topic", "module") and len(paragraphs) > 1 and re.match(signature, paragraphs[0]):
        paragraphs = paragraphs[1:]
    return paragraphs[0], "\n\n".join(paragraphs[1:])


def _mentions(text: str, own: str, names: dict[str, str], headings: list[str]) -> list[str]:
    """Returns the ids of the documents that a text names, in order, each once."""
    found: dict[str, None] = {}
    scopes = [own.rsplit(".", depth)[0] for depth in range(own.count(".") + 1)]
    for quote, name, end in _NAME.findall(text):
        if "." not in name and end != "(" and not (quote and quote == end):
            continue
        for full in (*(f"{scope}.{name}" for scope in scopes), name):
            if full in names:
                found[names[full]] = None
                break
    plain = " ".join(text.split())
    return [*found, *(names[heading] for heading in headings if heading in plain)]


def _related_topics(pydoc: Path) -> dict[str, list[str]]:
    """Returns doc_id of a topic -> ids of topics, and names of classes and modules, that pydoc's help calls related."""
    if not pydoc.is_file():
        raise UserError(f"pystdlib: pydoc is not at {pydoc}; install the full standard library.")
    helper = next(
        node for node in ast.parse(pydoc.read_bytes()).body if isinstance(node, ast.ClassDef) and node.name == "Helper"
    )
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in helper.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _HELP_TABLES
    }
    entries: dict[str, str | tuple[str, str]] = tables["keywords"] | tables["topics"]

    def target(name: str) -> str:
        entry = entries.get(name, name)
        if isinstance(entry, tuple):
            return f"topic:{entry[0]}"
        return target(entry) if entry != name else name

    related: dict[str, list[str]] = {}
    for entry in entries.values():
        if isinstance(entry, tuple):
            topic, others = entry
            related.setdefault(f"topic:{topic}", []).extend(target(name) for name in others.split())
    return related
