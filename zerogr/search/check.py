"""The check of a version: what a service looks at before it answers with it.

    check.json    {"version", "files": {name below the index: sha256}, "query", "instruction", "k", "best": {"doc_id", "score"}}

It is written when a version is published: beside index.json for the one that the index began with, in an update's folder for
every other. The files are those that are mapped or read into the model: tries, tables beside them, weights, tokenizer, changes.
The query is one of the index's own pseudo-queries, of a few the one whose best document leads by most, found by the index's own
strategy. Nearer ones may change places on another device or in another precision; this one does not: bfloat16 moves a logit of
20 by less than .1, and a docid has a few choices. So the document must be found again, at about its score. Weights and a trie
that do not belong together, or a damaged tensor, give another document or another score.

Cost: of writing, one load of the model and a few searches; of checking, one read of every file (a gigabyte a second) and one
search.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from zerogr.config.owned import ranking_of
from zerogr.errors import UserError
from zerogr.index.index import CHECK, Index, shards_in
from zerogr.index.versions import Version, folder_of, name_of
from zerogr.search.answer import Hit
from zerogr.store import cache, storage

MOST_QUERIES = 8
"""That are tried for the one that is stored."""
_K = 10
_TOLERANCE = 0.5, 0.1
"""Of the best score: absolute, and as a share of it; what rounding does is a fifth of that."""
_ANY_QUERY = "what is it about?"

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A query of an index."""

    query: str
    instruction: str | None = None


class Searching(Protocol):
    """The part of `zerogr.retriever.Retriever` that a check uses."""

    @property
    def manifest(self) -> dict[str, Any]: ...

    def search(self, queries: list[str], *, instruction: str | None, k: int) -> list[list[Hit]]: ...


class CheckError(UserError):
    """A version is not what was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a version must be."""

    version: str
    """Its name."""
    files: dict[str, str]
    """Name below the index -> SHA-256."""
    query: str
    instruction: str | None
    k: int
    best: dict[str, Any] | None
    """doc_id and score of what is found best; None where nothing is."""


def write_check(index: Index, retriever: Searching, queries: Sequence[Asked]) -> Check:
    """Writes the check of the version that was loaded; returns it.

    Args:
        index: The index.
        retriever: It, loaded in the version.
        queries: Of its documents; the first few are tried.
    """
    manifest = retriever.manifest
    tried = []
    for asked in list(queries)[:MOST_QUERIES] or [Asked(_ANY_QUERY)]:
        [hits] = retriever.search([asked.query], instruction=asked.instruction, k=_K)
        tried.append((asked, sorted(hits, key=lambda hit: -hit.score)))
    asked, hits = max(tried, key=lambda each: _lead(each[1]))
    check = Check(
        version=name_of(manifest),
        files={name: _hash(file) for name, file in _files(index, manifest).items()},
        query=asked.query,
        instruction=asked.instruction,
        k=_K,
        best={"doc_id": hits[0].doc_id, "score": hits[0].score} if hits else None,
    )
    storage.write_json(_place(index, manifest), asdict(check))
    return check


def read_check(index: Index, manifest: dict[str, Any]) -> Check | None:
    """Returns the check of the version that a manifest describes; None if it has none."""
    try:
        check = Check(**storage.read_json(_place(index, manifest)))
    except FileNotFoundError:
        return None
    return check if check.version == name_of(manifest) else None


def check_files(index: Index, manifest: dict[str, Any], check: Check) -> None:
    """Raises CheckError if a file that the version is loaded from is not the one that was published."""
    found = _files(index, manifest)
    for name, expected in check.files.items():
        if name not in found:
            raise CheckError(f"version {check.version} lacks the file '{index.path(name)}'; copy the index again")
        if (seen := _hash(found[name])) != expected:
            raise CheckError(
                f"the file '{found[name]}' of version {check.version} has the SHA-256 {seen[:12]}... where {expected[:12]}... "
                "was published; delete it, if it is a cached copy, or copy the index again"
            )


def check_answer(retriever: Searching, check: Check | None) -> None:
    """Searches once. Raises CheckError if the version has a check and does not find what it found when it was published."""
    if check is None:
        retriever.search([_ANY_QUERY], instruction=None, k=1)
        return
    [hits] = retriever.search([check.query], instruction=check.instruction, k=check.k)
    if check.best is None:
        return
    doc_id, expected = check.best["doc_id"], check.best["score"]
    scores = [hit.score for hit in hits if hit.doc_id == doc_id]
    if not scores:
        names = ", ".join(hit.doc_id for hit in hits[:3]) or "nothing"
        raise CheckError(
            f"version {check.version} finds {names} for its stored query where '{doc_id}' was the best when it was published; "
            "its files do not belong together: publish it again"
        )
    absolute, relative = _TOLERANCE
    if abs(scores[0] - expected) > max(absolute, relative * abs(expected)):
        raise CheckError(
            f"version {check.version} scores '{doc_id}' {scores[0]:.3f} for its stored query where it was {expected:.3f} when "
            "it was published; its files do not belong together: publish it again"
        )


def queries_of(index: Index) -> list[Asked]:
    """Returns pseudo-queries of an index, the first of each document, as many as are tried."""
    found: list[Asked] = []
    for shard in shards_in(index.path("queries")):
        for row in storage.read_parquet(index.shard("queries", shard)).to_pylist():
            found += [Asked(query, row["instruction"]) for query in row["queries"][:1]]
        if len(found) >= MOST_QUERIES:
            break
    return found[:MOST_QUERIES]


def _lead(hits: Sequence[Hit]) -> float:
    """Returns by how much the best of hits, best first, leads; -1 if there is none."""
    if len(hits) < 2:
        return len(hits) - 1.0
    return hits[0].score - hits[1].score


def _place(index: Index, manifest: dict[str, Any]) -> str:
    number = Version.of(manifest).number
    return index.path(folder_of(number), CHECK) if number else index.path(CHECK)


def _files(index: Index, manifest: dict[str, Any]) -> dict[str, Path]:
    """Returns {name below the index: local file} of what a version is loaded from; Parquet is read whole and left out."""
    version = Version.of(manifest)
    folders = [f"{version.base}/trie".lstrip("/"), version.retriever]
    if version.addition is not None:
        folders.append(f"{version.addition}/trie")
    if version.changes is not None:
        folders.append(version.changes)
    if ranking_of(manifest["config"].get("ranking", {})).needs_lexical:
        folders.append(f"{version.base}/lexical".lstrip("/"))
    found = {}
    for folder in dict.fromkeys(folders):
        local = cache.local_folder(index.path(folder))
        for file in sorted(local.rglob("*")):
            if file.is_file() and file.suffix != ".parquet":
                found[f"{folder}/{file.relative_to(local).as_posix()}"] = file
    return found


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
