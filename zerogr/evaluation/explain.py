"""Why a document was missed: where its docid lost against the first hit's, and which pseudo-queries stood behind the two.

Where docids are written, a docid's score only falls from token to token, so it has lost where its prefix is less likely than
the first hit's whole docid: nothing that follows can make up for it. Where a score is a sum, every part adds to it. The loss is
put into one of these classes, the first that fits:

    collided      it shares its docid with the first hit, which stands before it in the corpus
    search        its docid is the likelier one, but the search gave up its prefix, or did not write its terms
    ambiguous     at least half of its words are in the first hit's docid too
    unsupported   no pseudo-query of it has a third of the query's topical words: training never linked the two
    first_token   docids: it had lost with its first token
    late          docids: it lost at a later token
    lacks_terms   sums: fewer of the query's topical words are among its parts than among the first hit's
    outweighed    sums: as many are, but those of the first hit weigh more
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zerogr.corpus.collection import Collection
from zerogr.errors import UserError
from zerogr.evaluation.metrics import Run
from zerogr.index.index import Index
from zerogr.index.versions import Live
from zerogr.retriever import Retriever
from zerogr.search.answer import Traced
from zerogr.text.words import is_topical, stem, words

MEANINGS = {
    "collided": "it shares its docid with the first hit",
    "search": "its score is the better one, but the search gave it up, drew another or did not write its terms",
    "ambiguous": "half of its docid's words are in the first hit's docid too",
    "unsupported": "none of its pseudo-queries has a third of the query's words",
    "first_token": "already its first token is less likely than the first hit's whole docid",
    "late": "it fell behind the first hit's docid at a later token",
    "lacks_terms": "fewer of the query's words are among its terms than among the first hit's",
    "outweighed": "it has as many of the query's words as the first hit, but the terms of that one weigh more",
}
"""What each class says of the relevant document."""
REMEDIES = {
    "collided": "more candidates (docids.candidates), longer docids",
    "search": "a wider beam, more terms (ranking.num_leaves), the strategy best_first",
    "ambiguous": "other docids",
    "unsupported": "more and wider pseudo-queries",
    "first_token": "longer training, a larger model",
    "late": "longer training, a larger model",
    "lacks_terms": "more terms (docids.num_terms), pseudo-queries in other words than the documents'",
    "outweighed": "longer training, a larger model",
}
CLASSES = tuple(MEANINGS)
NUM_SUPPORT = 3
MOST_RELEVANT = 16
"""Relevant documents of a query that are looked at; some collections judge hundreds."""
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Support:
    """A pseudo-query or span and how much of a query it covers."""

    text: str
    share: float
    """Of the query's topical words, in [0, 1]; the forms of a word are equal."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One document, one query."""

    query: str
    wanted: Traced
    rank: int | None
    """Among the hits; None = not found."""
    num_hits: int
    first: Traced
    """The first hit; the document itself where it is the first."""
    lost_at: int | None
    """Step of `wanted` after which its prefix is less likely than `first`; None if there is none, or the score is a sum."""
    verdict: str
    """One of `CLASSES`, or `first` where nothing was lost."""
    support: list[Support]
    """What stands behind the document, best first."""
    first_support: list[Support]

    def as_json(self, retriever: Retriever) -> dict[str, Any]:
        """Returns all of it in plain values; tokens as text."""
        return {
            "query": self.query,
            "verdict": self.verdict,
            "rank": self.rank,
            "num_hits": self.num_hits,
            "lost_at": self.lost_at,
            **{
                name: {
                    "doc_id": traced.doc_id,
                    "docid": traced.docid,
                    "score": round(traced.score, 4),
                    **_details(traced, retriever),
                    "pseudo_queries": [{"text": each.text, "share": round(each.share, 2)} for each in support],
                }
                for name, traced, support in (
                    ("wanted", self.wanted, self.support),
                    ("first", self.first, self.first_support),
                )
            },
        }


def explain(
    retriever: Retriever, index: Index, query: str, doc_id: str, *, instruction: str | None = None, **options: Any
) -> Explanation:
    """Returns what became of a document in the search for a query.

    Args:
        retriever: The index, loaded.
        index: The same index, for its pseudo-queries.
        query: What is searched.
        doc_id: The document that should have been found.
        instruction, options: As in `Retriever.search`.

    Raises:
        UserError: The document is not in the index, or the search finds nothing.
    """
    [hits] = retriever.search([query], instruction=instruction, **options)
    if not hits:
        raise UserError("the search found no document at all; is the index empty?")
    [[wanted, first]] = retriever.trace(
        [query], [[doc_id, hits[0].doc_id]], instruction=instruction, ranking=options.get("ranking")
    )
    texts = training_queries(index, {doc_id, first.doc_id})
    support = {each: _support(query, texts.get(each, [])) for each in (doc_id, first.doc_id)}
    lost_at, verdict = classify(query, wanted, first, support[doc_id])
    return Explanation(
        query=query,
        wanted=wanted,
        rank=next((hit.rank for hit in hits if hit.doc_id == doc_id), None),
        num_hits=len(hits),
        first=first,
        lost_at=lost_at,
        verdict=verdict,
        support=support[doc_id][:NUM_SUPPORT],
        first_support=support[first.doc_id][:NUM_SUPPORT],
    )


def count_errors(
    retriever: Retriever, index: Index, collection: Collection, run: Run, *, ranking: str | None = None
) -> dict[str, Any]:
    """Returns how many queries were answered right at the first place, how many not, and why.

    Of a query's relevant documents the likeliest is held against the first hit; at most `MOST_RELEVANT` are looked at. A query
    without a relevant document or without an answer is wrong and in no class. `ranking` is that of the run's search.

    Returns:
        {"right", "wrong", one number per class, "queries": {query id: {"verdict", "doc_id", "docid", "first",
            "first_docid", "lost_at"}}}
    """
    relevant = {
        query_id: [doc_id for doc_id, grade in grades.items() if grade > 0][:MOST_RELEVANT]
        for query_id, grades in collection.qrels.items()
    }
    missed = [q for q, found in run.items() if found and collection.qrels[q].get(found[0], 0) <= 0 and relevant[q]]
    verdicts: dict[str, dict[str, Any]] = {}
    for begin in range(0, len(missed), _AT_ONCE):
        batch = missed[begin : begin + _AT_ONCE]
        queries = [collection.queries[query_id] for query_id in batch]
        traced = retriever.trace(
            [query.text for query in queries],
            [[*relevant[query_id], run[query_id][0]] for query_id in batch],
            instruction=[query.instruction for query in queries],
            ranking=ranking,
        )
        texts = training_queries(index, {each.doc_id for of_query in traced for each in of_query[:-1]})
        for query, (*candidates, first) in zip(queries, traced, strict=True):
            wanted = max(candidates, key=lambda each: each.score)
            support = _support(query.text, texts.get(wanted.doc_id, []))
            lost_at, verdict = classify(query.text, wanted, first, support)
            verdicts[query.query_id] = {
                "verdict": verdict, "doc_id": wanted.doc_id, "docid": wanted.docid,
                "first": first.doc_id, "first_docid": first.docid, "lost_at": lost_at,
            }  # fmt: skip
    counts = {name: sum(each["verdict"] == name for each in verdicts.values()) for name in CLASSES}
    right = sum(bool(found) and collection.qrels[q].get(found[0], 0) > 0 for q, found in run.items())
    return {"right": right, "wrong": len(run) - right, **counts, "queries": verdicts}


def training_queries(index: Index, doc_ids: Iterable[str]) -> dict[str, list[str]]:
    """Returns doc_id -> pseudo-queries and spans of those documents."""
    wanted = pa.array(sorted(doc_ids), pa.string())
    found = {}
    for table in Live(index).tables("queries", ["doc_id", "queries", "spans"]):
        rows = table.filter(pc.is_in(table.column("doc_id"), value_set=wanted)).to_pylist()
        found.update({row["doc_id"]: [*row["queries"], *row["spans"]] for row in rows})
    return found


def _support(query: str, texts: Sequence[str]) -> list[Support]:
    """Returns the texts, those first that hold most of the query's topical words."""
    asked = _topical(query)
    shares = [len(asked & {stem(word) for word in words(text)}) / max(len(asked), 1) for text in texts]
    return sorted(map(Support, texts, shares), key=lambda each: -each.share)


def classify(query: str, wanted: Traced, first: Traced, support: list[Support]) -> tuple[int | None, str]:
    """Returns (the step with which it lost, where docids are written; the class of the loss)."""
    if wanted.doc_id == first.doc_id:
        return None, "first"
    if wanted.docid == first.docid:
        return None, "collided"
    lost_at = _lost_at(wanted, first)
    if lost_at is None if wanted.steps else wanted.score >= first.score:
        return None, "search"
    shared = set(wanted.docid.split()) & set(first.docid.split())
    if 2 * len(shared) >= len(wanted.docid.split()):
        return lost_at, "ambiguous"
    if not support or 3 * support[0].share < 1:
        return lost_at, "unsupported"
    if wanted.steps:
        return lost_at, "first_token" if lost_at == 0 else "late"
    asked = _topical(query)
    named, named_by_first = (len(asked & {stem(part.text) for part in traced.parts}) for traced in (wanted, first))
    return None, "lacks_terms" if named < named_by_first else "outweighed"


def _lost_at(wanted: Traced, first: Traced) -> int | None:
    score = 0.0
    for number, step in enumerate(wanted.steps):
        score += step.log_prob
        if score < first.score:
            return number
    return None


def _topical(text: str) -> set[str]:
    """Returns the stems of a text's topical words."""
    return {stem(word) for word in words(text) if is_topical(word)}


def _details(traced: Traced, retriever: Retriever) -> dict[str, Any]:
    """Returns the tokens of the docid, or the parts of the score, in plain values."""
    if not traced.steps:
        return {"parts": [{**part._asdict(), "score": round(part.score, 4)} for part in traced.parts]}
    return {
        "tokens": [
            {
                "token": retriever.writer.token_text(step.token),
                "log_prob": round(step.log_prob, 4),
                "rank": step.rank,
                "num_allowed": step.num_allowed,
                "best": retriever.writer.token_text(step.best),
                "best_log_prob": round(step.best_log_prob, 4),
            }
            for step in traced.steps
        ]
    }
