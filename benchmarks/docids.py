"""Docids for the benchmarks: real ones, and any number of others made of the same words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.corpus.sampling import sample
from zerogr.docids.resolve import resolve
from zerogr.docids.rules import Terms
from zerogr.docids.scheme import WordScheme
from zerogr.docids.schemes.tfidf import TfidfSettings
from zerogr.llm.chat import ChatFormat
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words


def pystdlib_docids(num_documents: int) -> list[str]:
    """Returns the docids of a seeded sample of Python's reference text: TF-IDF keywords, collisions resolved."""
    rows = sample(read_pystdlib, num_documents, judged=set(), seed=0)
    documents = [row for row in rows if isinstance(row, Document)]
    frequency = DocumentFrequency()
    for document in documents:
        frequency.add(words(f"{document.title}\n{document.text}"))
    scheme = WordScheme(TfidfSettings(), None)
    terms = [Terms.of(document.title, document.text, frequency) for document in documents]
    return resolve(
        [hashlib.sha256(f"{document.title}\x1f{document.text}".encode()).hexdigest() for document in documents],
        pa.array([[" ".join(each.ranked[: scheme.max_words])] for each in terms]),
        pa.array([each.ranked for each in terms]),
        scheme,
    ).docids


def recombined(
    chat: ChatFormat, texts: Sequence[str], num_docids: int, num_words: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32 [T], offsets int64 [N + 1]): the docids `texts`, then others made of their words up to N.

    Words are drawn with Zipf's law (exponent 1) over their ranks by frequency in `texts`.
    """
    num_made = max(0, num_docids - len(texts))
    ranked = [word for word, _ in Counter(word for text in texts for word in text.split(" ")).most_common()]
    tokens, offsets = chat.docids(ranked)
    chances = 1 / np.arange(1, len(ranked) + 1)
    drawn = np.random.default_rng(0).choice(len(ranked), size=num_made * num_words, p=chances / chances.sum())
    lengths = np.diff(offsets)[drawn]
    ends = np.cumsum(lengths)
    positions = np.arange(lengths.sum()) + np.repeat(offsets[:-1][drawn] - (ends - lengths), lengths)
    real_tokens, real_offsets = chat.docids(list(texts))
    return (
        np.concatenate([real_tokens, tokens[positions]]),
        np.concatenate([real_offsets, real_offsets[-1] + ends[num_words - 1 :: num_words]]),
    )
