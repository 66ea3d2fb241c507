"""What an update did: old and new pseudo-queries, answered greedily by the version before and by the new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from zerogr.editing.sample import Known
from zerogr.editing.update import Update
from zerogr.index.versions import folder_of
from zerogr.retriever import Retriever
from zerogr.search.check import Asked, write_check
from zerogr.store import storage

FILE = "measured.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Shares of pseudo-queries whose document is found first, by greedy decoding."""

    num_old: int
    old_before: float
    old_after: float
    num_new: int
    """Of new documents, the first of each."""
    new_after: float

    @property
    def forgotten(self) -> float:
        """How much less of the old queries finds its document."""
        return self.old_before - self.old_after


def measure(update: Update, old: Sequence[Known], new: Sequence[Known]) -> Measured:
    """Measures a proposed version, and keeps the figures in its folder, and its check for whoever serves it.

    Args:
        update: Whose version can be opened by its number.
        old: Of documents that stay.
        new: Of the documents that it adds.
    """
    file = update.index.path(FILE)
    if storage.exists(file):
        return Measured(**storage.read_json(file)["measured"])
    first_of_each = list({known.doc_id: known for known in reversed(new)}.values())[: len(old)]
    before = _known_before(update, old)
    retriever = Retriever.load(update.root.uri, version=update.number)
    after = hits_of(retriever, [*old, *first_of_each])
    asked = [Asked(known.example.query, known.example.instruction) for known in [*first_of_each, *old]]
    write_check(update.root, retriever, asked)
    found = Measured(
        num_old=len(old),
        old_before=_share(before),
        old_after=_share(after[: len(old)]),
        num_new=len(first_of_each),
        new_after=_share(after[len(old) :]),
    )
    storage.write_json(file, {"measured": asdict(found), "old": dict(zip(_keys(old), after, strict=False))})
    return found


def _known_before(update: Update, old: Sequence[Known]) -> list[bool]:
    """Returns whether the version before finds the old queries' documents; what it was asked then need not be asked again."""
    before, known = update.before, dict[str, bool]()
    file = update.root.path(folder_of(before.number), FILE)
    if before.number and storage.exists(file):
        known = storage.read_json(file)["old"]
    missing = [each for each, key in zip(old, _keys(old), strict=True) if key not in known]
    if missing:
        retriever = Retriever.load(update.root.uri, version=before.number)
        known |= dict(zip(_keys(missing), hits_of(retriever, missing), strict=True))
    return [known[key] for key in _keys(old)]


def hits_of(retriever: Retriever, queries: Sequence[Known]) -> list[bool]:
    """Returns whether each query's document, or another with its docid, is found first."""
    if not queries:
        return []
    found = retriever.search(
        [known.example.query for known in queries],
        instruction=[known.example.instruction for known in queries],
        k=1,
        strategy="greedy",
        batch_size=64,
    )
    return [bool(hits) and hits[0].docid == known.docid for hits, known in zip(found, queries, strict=True)]


def _keys(queries: Sequence[Known]) -> list[str]:
    return [f"{known.doc_id}\t{known.example.query}" for known in queries]


def _share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 4) if hits else 1.0
