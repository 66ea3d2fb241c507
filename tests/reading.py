"""Reading a corpus in one line, for the tests of its formats."""

from __future__ import annotations

from typing import Any

import pytest

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import read_corpus
from zerogr.errors import UserError


def read(source: str, **options: Any) -> list[Document | Rejected]:
    """Returns what a source holds."""
    return list(read_corpus(CorpusConfig(source=source, **options)))


def refused(source: str, **options: Any) -> str:
    """Returns the sentence with which a source is refused."""
    with pytest.raises(UserError) as caught:
        read(source, **options)
    return str(caught.value)
