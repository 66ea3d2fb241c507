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


def sample(
    read: Callable[[], Iterator[Document | Rejected]], num_documents: int, *, judged: set[str], seed: int
) -> Iterator[Document | Rejected]:
    """Yields `num_documents` documents of `read()` in their order, and its rejected rows; all of them if there are fewer."""
    chosen: list[tuple[bool, int, str]] = []  # a heap whose root is the worst choice so far
    members = set()
    for row in read():
        if isinstance(row, Rejected) or row.doc_id in members:
            continue
        entry = (row.doc_id in judged, -seed_of(seed, "sample", row.doc_id), row.doc_id)
        if len(chosen) < num_documents:
            heapq.heappush(chosen, entry)
        elif entry > chosen[0]:
            members.discard(heapq.heappushpop(chosen, entry)[2])
        else:
            continue
        members.add(row.doc_id)
    for row in read():
        if isinstance(row, Rejected) or row.doc_id in members:
            yield row
