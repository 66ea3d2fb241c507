"""Re-ranking: documents that were found, in the order of a score that the retriever has learnt of query and docid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zerogr.ranking.ranker import Ranking
from zerogr.search.answer import Documents
from zerogr.search.writer import Prompt, Writer


def reranked(
    writer: Writer, documents: Documents, prompts: Sequence[Prompt], rankings: Sequence[Ranking]
) -> list[Ranking]:
    """Returns the documents of each query by that score, equal ones as they were; one forward pass for all.

    Raises:
        UserError: The retriever has no such score.
    """
    docids = [[documents.docids[row].as_py() for row in ranking.rows.tolist()] for ranking in rankings]
    found = []
    for ranking, scores in zip(rankings, writer.rate(prompts, docids), strict=True):
        order = np.argsort(-scores, kind="stable")
        found.append(Ranking(ranking.rows[order], scores[order]))
    return found
