"""A sample of a corpus that does not depend on its order: the documents with the smallest hashes, judged ones first.

Two passes over the source; memory is one entry per sampled document.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from zerogr.corpus import mair
from zerogr.corpus.document import Document, Rejected
from zerogr.errors import UserError
from zerogr.seeds import seed_of
from zerogr.store import storage


def judged_doc_ids(dataset: str, split: str | None = None) -> set[str]:
    """Returns the documents with a positive grade in one split, or in any split, of judged queries.

    Raises:
        UserError: A BEIR folder has no such qrels; a MAIR one has no splits, or is malformed.
    """
    queries = mair.queries_file(dataset)
    if queries is not None:
        _, qrels = mair.read_judged(queries, split or mair.SPLIT)
        return {doc_id for grades in qrels.values() for doc_id, grade in grades.items() if grade > 0}
    names = [name for name in storage.list_files(dataset) if name.startswith("qrels/") and name.endswith(".tsv")]
    files = [name for name in names if split is None or name == f"qrels/{split}.tsv"]
    if not files:
        raise UserError(
            f"corpus.keep_judged '{dataset}' has no qrels/{split or '*'}.tsv; give a BEIR folder with judgements"
        )
    judged = set()
    for name in files:
        for line in storage.read_bytes(storage.join(dataset, name)).decode().splitlines()[1:]:
            fields = line.split("\t")
            if len(fields) == 3 and float(fields[2]) > 0:
                judged.add(fields[1])
    return judged


class Chosen:
    """The best `num_documents` of the documents that were offered so far, whatever their order."""

    def __init__(self, num_documents: int, *, judged: set[str], seed: int) -> None:
        self._num_documents, self._judged, self._seed = num_documents, judged, seed
        self._heap: list[tuple[bool, int, str]] = []
        """Its root is the worst choice so far."""
        self.members: dict[str, int] = {}
        """doc_id -> where it was offered first."""

    def offer(self, doc_id: str, position: int = 0) -> None:
        """Takes a document if it is among the best; one that is there already is left alone."""
        if doc_id in self.members:
            return
        entry = (doc_id in self._judged, -seed_of(self._seed, "sample", doc_id), doc_id)
        if len(self._heap) < self._num_documents:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            del self.members[heapq.heappushpop(self._heap, entry)[2]]
        else:
            return
        self.members[doc_id] = position


def sample(
    read: Callable[[], Iterator[Document | Rejected]], num_documents: int, *, judged: set[str], seed: int
) -> Iterator[Document | Rejected]:
    """Yields `num_documents` documents of `read()` in their order, and its rejected rows; all of them if there are fewer."""
    chosen = Chosen(num_documents, judged=judged, seed=seed)
    for row in read():
        if isinstance(row, Document):
            chosen.offer(row.doc_id)
    for row in read():
        if isinstance(row, Rejected) or row.doc_id in chosen.members:
            yield row
