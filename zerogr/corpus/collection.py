"""Judged test collections: queries and relevance judgements (qrels), in BEIR's layout (`beir.py`) or in MAIR's (`mair.py`).

Folders are local, in object storage, or on the Hugging Face hub (fsspec). The documents are not read here: they are in the
index. Cost: one pass over the files; the judged queries and their judgements stay in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from zerogr.corpus import beir, mair
from zerogr.corpus.judged import Qrels, Query
from zerogr.errors import UserError
from zerogr.seeds import seed_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collection:
    """The judged queries of one split. Queries without judgements in that split are left out."""

    queries: dict[str, Query]
    """Query id -> query, in the order of their file; exactly the queries of `qrels`."""
    qrels: Qrels
    """Query id -> doc_id -> grade. Relevant means grade > 0."""
    num_dropped_queries: int = 0
    """How many queries `restricted_to` left out, because none of their relevant documents is in the index."""

    @classmethod
    def load(cls, uri: str, split: str = "test") -> Collection:
        """Returns the judged queries of one split.

        Args:
            uri: A folder of BEIR's or MAIR's, or a file of MAIR's: a path, `hf:owner/name/folder`, or any URL fsspec knows,
                such as `s3://bucket/collection`.
            split: The name of a file in BEIR's `qrels/`, without `.tsv`. MAIR has only "test".

        Raises:
            UserError: The folder, its queries or the split is missing; a line is malformed (its file and line are named);
                nothing is judged; a judged query is missing.
        """
        uri = uri.rstrip("/")
        file = mair.queries_file(uri)
        queries, qrels = beir.read_judged(uri, split) if file is None else mair.read_judged(file, split)
        return cls(queries=queries, qrels=qrels)

    @property
    def highest_grade(self) -> int:
        """The highest grade of any judgement."""
        return max(grade for grades in self.qrels.values() for grade in grades.values())

    def hash(self) -> str:
        """Returns a hash of queries, instructions and judgements."""
        content = [(query.query_id, query.text, query.instruction) for query in self.queries.values()]
        return hashlib.sha256(json.dumps([content, self.qrels]).encode()).hexdigest()[:16]

    def by_document(self, instruction: str) -> dict[str, list[tuple[str, str, int]]]:
        """Returns {doc_id: (instruction, query, grade) of every query it is relevant for}.

        `instruction` stands where a query has none of its own.
        """
        found: dict[str, list[tuple[str, str, int]]] = {}
        for query_id, grades in self.qrels.items():
            query = self.queries[query_id]
            for doc_id, grade in grades.items():
                if grade > 0:
                    found.setdefault(doc_id, []).append((query.instruction or instruction, query.text, grade))
        return found

    def at(self, positions: str) -> Collection:
        """Returns the queries at `even` or `odd` positions of their file, counted from 0, or `all`.

        Settings are chosen on one half and reported on the other.

        Raises:
            UserError: No query is left.
        """
        if positions == "all":
            return self
        chosen = list(self.queries)[positions == "odd" :: 2]
        if not chosen:
            raise UserError(f"the collection has no query at an {positions} position, only {len(self.queries)} in all")
        return Collection(
            {query_id: self.queries[query_id] for query_id in chosen},
            {query_id: self.qrels[query_id] for query_id in chosen},
        )

    def share(self, fraction: float, seed: int) -> Collection:
        """Returns a share of the queries (0 to 1), drawn by hash, in the order of their file.

        Those of a smaller share are among those of a larger one; of a share above 0 there is at least one query.
        """
        if fraction == 1:
            return self
        num_drawn = max(round(fraction * len(self.queries)), 1) if fraction else 0
        order = sorted(self.queries, key=lambda query_id: seed_of(seed, "share", query_id))
        drawn = set(order[:num_drawn])
        return Collection(
            {query_id: query for query_id, query in self.queries.items() if query_id in drawn},
            {query_id: grades for query_id, grades in self.qrels.items() if query_id in drawn},
        )

    def restricted_to(self, doc_ids: set[str]) -> Collection:
        """Returns the part of the collection that an index of these documents can be judged on.

        Judgements of other documents are dropped, and so are the queries left without a relevant document: no system
        could answer them. The number of dropped queries is logged and kept in `num_dropped_queries`.

        Raises:
            UserError: No query is left.
        """
        qrels = {}
        judged = [doc_id for grades in self.qrels.values() for doc_id in grades]
        if num_unknown := sum(doc_id not in doc_ids for doc_id in judged):
            logger.warning(
                "%d of %d judgements are of documents that the index lacks; they do not count", num_unknown, len(judged)
            )
        for query_id, grades in self.qrels.items():
            known = {doc_id: grade for doc_id, grade in grades.items() if doc_id in doc_ids}
            if any(grade > 0 for grade in known.values()):
                qrels[query_id] = known
        num_dropped = len(self.qrels) - len(qrels)
        if not qrels:
            raise UserError(
                f"none of the {len(self.qrels)} judged queries has a relevant document among the {len(doc_ids)} "
                "documents of this index; evaluate it with the collection that it was built from"
            )
        if num_dropped:
            logger.warning(
                "%d of %d queries are left out: none of their relevant documents is in the index",
                num_dropped,
                len(self.qrels),
            )
        queries = {query_id: query for query_id, query in self.queries.items() if query_id in qrels}
        return Collection(queries, qrels, self.num_dropped_queries + num_dropped)
