"""What a corpus is like, for a plan: measured from a sample of it, or a stated default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from zerogr.config.tree import Config
from zerogr.corpus.document import Document
from zerogr.corpus.stage import checked_documents
from zerogr.errors import UserError
from zerogr.queries.spans import KEYWORD_SET, make_spans
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import stretches, words

MOST_READ = 10_000
"""Documents that are read to count them; of a larger corpus the user says how many there are."""
MEASURED = 200
"""Documents of the sample."""
BYTES_PER_WORD, SPAN_BYTES_PER_WORD = 6.6, 7.2
"""Spaces included: 6.2 to 7.1 over five corpora; spans, of which half are keywords, have longer words."""
BYTES_PER_TOKEN = 4.8
"""Of SmolLM2's tokenizer: 4.1 (Python's reference text), 4.6 (SciFact), 4.8, 5.2, 5.6 (adi). Others differ."""
DEFAULT_BYTES = 1461
"""Of a document, where no corpus is read: SciFact's mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Means over documents."""

    num_documents: int
    document_bytes: float
    document_words: float
    spans_per_document: float
    span_bytes: float
    compression: float
    """Bytes of a Parquet file of the corpus over the bytes of its texts."""
    source: str
    """Where these figures come from, for a person."""

    def tokens_of(self, num_bytes: float) -> float:
        """Returns the tokens of so much text."""
        return num_bytes / BYTES_PER_TOKEN

    def excerpt_bytes(self, num_words: int) -> float:
        """Returns the bytes of the first words of a document."""
        return self.document_bytes * min(1.0, num_words / max(self.document_words, 1.0))


def assumed_texts(config: Config, num_documents: int, document_bytes: float) -> Texts:
    """Returns what a corpus that is not read is taken to be like."""
    passage, keywords = sum(config.queries.span_words) / 2, sum(KEYWORD_SET) / 2
    return Texts(
        num_documents=num_documents,
        document_bytes=document_bytes,
        document_words=document_bytes / BYTES_PER_WORD,
        spans_per_document=config.queries.num_spans_per_document,
        span_bytes=(passage + keywords) / 2 * SPAN_BYTES_PER_WORD,
        compression=1.0,
        source=f"documents of {document_bytes:,.0f} bytes, an assumption: no corpus was read; nothing compressed",
    )


def sampled_texts(config: Config, num_documents: int | None) -> Texts:
    """Returns what the documents at the beginning of the corpus are like.

    Args:
        config: Of the index.
        num_documents: That the index will have; None = as many as the corpus has.

    Raises:
        UserError: The corpus cannot be read, or nobody says how many documents it has and there are more than `MOST_READ`.
    """
    most = MEASURED if num_documents else MOST_READ
    found = list(islice((row for row in checked_documents(config) if isinstance(row, Document)), most + 1))
    if num_documents is None and len(found) > most:
        raise UserError(
            f"the corpus has more than {most:,} documents, and they are not counted for a plan; give --documents N"
        )
    if not found:
        raise UserError(
            f"corpus.source '{config.corpus.source}' has no usable document; give --document-bytes to plan without"
        )
    return _measured(config, found, num_documents or len(found))


def _measured(config: Config, found: list[Document], num_documents: int) -> Texts:
    sample = found[:: max(1, len(found) // MEASURED)][:MEASURED]
    frequency = DocumentFrequency()
    for document in sample:
        frequency.add(words(f"{document.title}\n{document.text}"))
    sizes = [len(f"{each.title}\n{each.text}".encode()) for each in sample]
    settings = config.queries
    spans = [
        make_spans(
            each.title, each.text, frequency, settings.num_spans_per_document, seed, span_words=settings.span_words
        )
        for seed, each in enumerate(sample)
    ]
    texts = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"{each.title}\n{each.text}" for each in sample]}), texts, compression="zstd")
    return Texts(
        num_documents=num_documents,
        document_bytes=_mean(sizes),
        document_words=_mean(sum(1 for _ in stretches(f"{each.title}\n{each.text}")) for each in sample),
        spans_per_document=_mean(map(len, spans)),
        span_bytes=_mean(len(span.encode()) for each in spans for span in each),
        compression=min(1.0, texts.getvalue().size / sum(sizes)),
        source=f"means over {len(sample)} documents of {config.corpus.source}",
    )


def _mean(values: Iterable[float]) -> float:
    """Returns the mean; 0 of nothing."""
    found = list(values)
    return sum(found) / max(len(found), 1)
