"""BM25, the baseline every table shows: bm25s, Lucene variant.

The protocol: title + " " + text; lower case; words of two or more word characters (`\\b\\w\\w+\\b`); Lucene's 33
English stop words removed; Snowball's English stemmer; k1 = 0.9, b = 0.4; only documents with a positive score are
results, equal scores in the order of the documents. It reproduces the reference figures of three collections, nDCG@10
/ Acc@1 / Recall@100: ADI .480 / .514 / .910, MED .671 / .800 / .772, Cranfield .403 / .684 / .738. Keeping stop words
moves some of them by .02, one-letter words by .002 (CACM: .02), zero-score documents as results by .09 (ADI's recall).

Cost: the index is a sparse matrix, 8 bytes per (document, distinct word); a search adds up the columns of the query's
words over all documents, O(documents) per query.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

K1 = 0.9
B = 0.4


class BM25:
    """An index of words, held in memory."""

    def __init__(self, doc_ids: list[str], model: Any) -> None:
        self._doc_ids = doc_ids
        self._model = model

    @classmethod
    def build(cls, doc_ids: list[str], texts: list[str]) -> BM25:
        """Returns the index of the documents.

        Args:
            doc_ids: The user's keys, N of them.
            texts: What is searched, document by document: title and text, as `document_text` joins them.

        Raises:
            ValueError: There is no document, the lists differ in length, or no text holds a word.
        """
        if len(doc_ids) != len(texts) or not doc_ids:
            raise ValueError(f"BM25 needs as many texts as doc_ids, at least one, not {len(texts)} and {len(doc_ids)}")
        import bm25s

        # bm25s sets its logger to DEBUG on import, and would speak through whatever handler the program has.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        tokens = _tokenise(texts)
        if not any(tokens):
            raise ValueError(f"none of the {len(texts)} texts holds a word that BM25 could index")
        model = bm25s.BM25(method="lucene", k1=K1, b=B)
        model.index(tokens, show_progress=False)
        return cls(list(doc_ids), model)

    def search(self, queries: list[str], k: int = 100) -> list[list[str]]:
        """Returns the k best doc_ids of every query, best first; fewer where fewer documents share a word with it.

        Raises:
            ValueError: k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return [self._search_one(tokens, k) for tokens in _tokenise(queries)]

    def _search_one(self, tokens: list[str], k: int) -> list[str]:
        known = [token for token in tokens if token in self._model.vocab_dict]
        if not known:
            return []
        scores_N = np.asarray(self._model.get_scores(known))
        rows = np.flatnonzero(scores_N > 0)
        if len(rows) > k:
            kth_best = np.partition(scores_N[rows], -k)[-k]
            rows = rows[scores_N[rows] >= kth_best]
        # A stable sort keeps equal scores in document order: the same ranking on every machine.
        best = rows[np.argsort(-scores_N[rows], kind="stable")][:k]
        return [self._doc_ids[row] for row in best]


def document_text(title: str, text: str) -> str:
    """Returns what BM25 indexes of a document: the title, a space, the text."""
    return f"{title} {text}".strip()


def _tokenise(texts: list[str]) -> list[list[str]]:
    import bm25s
    import Stemmer

    return bm25s.tokenize(
        texts,
        lower=True,
        token_pattern=r"(?u)\b\w\w+\b",
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
