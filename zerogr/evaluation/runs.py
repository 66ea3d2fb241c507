"""TREC run files: `query_id Q0 doc_id rank score system`, one line per result, score 1/rank.

The format separates columns by white space, and ids are the user's own strings. An id with white space is therefore written
percent-encoded behind a mark of ours (`a b` is `%zerogr:a%20b`), and so is one that begins with that mark. Every other id
stands as it is, also one that is percent-encoded by its owner, as those of TREC CAR are. Reading gives every id back.
Judgements for other tools need the same encoding.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from urllib.parse import quote, unquote

from zerogr.config.evaluation import BASELINES
from zerogr.errors import UserError
from zerogr.evaluation.metrics import Run, scored_by_rank
from zerogr.evaluation.systems import Answers
from zerogr.store import storage

logger = logging.getLogger(__name__)

_SPACE_OR_PERCENT = re.compile(r"[\s%\x1c-\x1f]")
_MARK = "%zerogr:"


def run_file_name(system: str) -> str:
    """Returns `<system>.run`.

    Raises:
        ValueError: The name holds anything but ASCII letters, digits, `.`, `_`, `+`, `=` and `-`, or starts with a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+=-]*", system):
        raise ValueError(f"the system name {system!r} must be letters, digits, '.', '_', '+', '=' and '-'")
    return f"{system}.run"


def format_run(run: Run, system: str) -> str:
    """Returns the text of the run file; queries in the order of `run`.

    Raises:
        ValueError: An id is empty, a document is named twice for one query, or `system` is no valid name.
    """
    run_file_name(system)
    lines = []
    for query_id, doc_ids in run.items():
        quoted_query = _quote(query_id)
        for rank, (doc_id, score) in enumerate(scored_by_rank(doc_ids).items(), start=1):
            lines.append(f"{quoted_query} Q0 {_quote(doc_id)} {rank} {score:.9g} {system}\n")
    return "".join(lines)


def parse_run(text: str, name: str = "run") -> Run:
    """Returns the run of a run file's text, each query's documents by falling score (equal scores: by rank).

    Args:
        text: The content of the file, ours or another system's.
        name: The file's name, for error messages.

    Raises:
        UserError: A line has not six columns, a rank or score is no number, or a document appears twice for a query.
    """
    results: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        columns = line.split()
        if len(columns) != 6:
            raise UserError(f"{name}:{number} must hold six columns, query Q0 document rank score system, not {line!r}")
        query_id, doc_id = _unquote(columns[0]), _unquote(columns[2])
        try:
            rank, score = int(columns[3]), float(columns[4])
        except ValueError:
            raise UserError(f"{name}:{number}: rank and score must be numbers, not {columns[3:5]}") from None
        ranked = results.setdefault(query_id, {})
        if doc_id in ranked:
            raise UserError(f"{name}:{number} names the document {doc_id!r} a second time for query {query_id!r}")
        ranked[doc_id] = (-score, rank)
    return {query_id: sorted(ranked, key=ranked.__getitem__) for query_id, ranked in results.items()}


def read_runs(uris: Sequence[str]) -> list[Answers]:
    """Returns the systems of run files; a system has its file's name without `.run`.

    Raises:
        UserError: A file is missing or malformed, or two have the same name.
    """
    found: dict[str, Answers] = {}
    for uri in uris:
        name = uri.rstrip("/").rpartition("/")[2]
        system = name.removesuffix(".run")
        if not storage.exists(uri):
            raise UserError(f"there is no run file '{uri}'")
        try:
            run_file_name(system)
            text = storage.read_bytes(uri).decode()
        except ValueError as error:  # a UnicodeDecodeError is one
            raise UserError(f"run file '{uri}': {error}") from None
        if system in found or system in BASELINES or system.startswith("zerogr-"):
            raise UserError(f"run file '{uri}' has the name of another system, '{system}'; rename it")
        found[system] = Answers(system, parse_run(text, name))
    return list(found.values())


def check_runs(foreign: Sequence[Answers], query_ids: Collection[str], doc_ids: Collection[str]) -> None:
    """Sees that runs of other systems are about these queries and documents; how many queries one lacks is logged.

    Raises:
        UserError: A run shares no query, or no document: its figure would be 0 and say nothing.
    """
    for each in foreign:
        answered = [query_id for query_id in query_ids if each.run.get(query_id)]
        if not answered:
            raise UserError(
                f"the run '{each.system}' answers none of the {len(query_ids)} judged queries; its ids are like "
                f"{next(iter(each.run), None)!r}, those of the collection like {next(iter(query_ids), None)!r}"
            )
        found = {doc_id for query_id in answered for doc_id in each.run[query_id]}
        if found.isdisjoint(doc_ids):
            raise UserError(
                f"the run '{each.system}' finds none of the {len(doc_ids)} documents of this index; its ids are like "
                f"{each.run[answered[0]][0]!r}, those of the index like {next(iter(doc_ids), None)!r}"
            )
        if num_missing := len(query_ids) - len(answered):
            logger.warning(
                "the run '%s' lacks %d of %d judged queries; they count as 0", each.system, num_missing, len(query_ids)
            )


def _quote(identifier: str) -> str:
    if not identifier:
        raise ValueError("a run file cannot hold an empty id")
    if not identifier.startswith(_MARK) and not any(character.isspace() for character in identifier):
        return identifier
    return _MARK + _SPACE_OR_PERCENT.sub(lambda match: quote(match.group(), safe=""), identifier)


def _unquote(written: str) -> str:
    return unquote(written.removeprefix(_MARK)) if written.startswith(_MARK) else written
