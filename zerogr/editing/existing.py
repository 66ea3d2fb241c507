"""What an index holds already, for the documents that join it: doc_ids that are taken, docids that others have.

A docid never changes once it is given. So a new document gets one that nobody has, unless a document of the same content has
it: true duplicates share. Whether somebody has a docid is asked of the trie, not of a list of all of them.

Cost: three columns of all documents, and the trie as a memory map; a docid is looked up token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from zerogr.corpus.lookup import Lookup
from zerogr.docids.resolve import content_of
from zerogr.docids.scheme import Proposal, Scheme
from zerogr.errors import Fault, UserError
from zerogr.index.index import Index
from zerogr.index.versions import REMOVED, Version, root_of
from zerogr.llm.chat import ChatFormat
from zerogr.llm.generation import Rejection
from zerogr.llm.models import load_tokenizer
from zerogr.search.answer import Documents
from zerogr.store import cache, storage
from zerogr.text.words import words
from zerogr.trie.opened import open_trie, read_documents

_NUMBERS = 10_000
"""Most ordinals that are tried for one document."""
_ORDINALS = 64
"""Free ones that it may take."""


class Existing:
    """The documents of the version that an update is made from, without those that it removes."""

    def __init__(self, index: Index) -> None:
        """Opens the current version of the index that `index` is an update of."""
        root = root_of(index)
        version = Version.of(root.manifest())
        opened, table = open_trie(root, version), read_documents(root, version)
        removed = storage.read_parquet(index.path(REMOVED)).column("doc_id").to_pylist()
        denied = np.union1d(opened.denied, Documents.of(table, opened.denied).rows_of(removed))
        self.documents = Documents.of(table, denied)
        """A row each, as the trie numbers them."""
        self._row_ids, self._texts = table.column("row_id"), Lookup(root, version)
        self._trie = opened.trie.filter(deny=denied) if len(denied) else opened.trie
        self.chat = chat_of(root, version)
        """How docids are written."""

    def held(self, doc_ids: Sequence[str]) -> set[str]:
        """Returns those doc_ids that are in the index."""
        return set(self.documents.held(doc_ids))

    def rows_with(self, docid: str) -> np.ndarray:
        """Returns the rows (int64) of the documents that have a docid.

        Raises:
            Fault: The retriever has no token for it.
        """
        node = self._trie.root
        for token in self.chat.docid(docid):
            tokens, nodes = self._trie.children(node)
            option = int(np.searchsorted(tokens, token))
            if option == len(tokens) or tokens[option] != token:
                return np.empty(0, dtype=np.int64)
            node = int(nodes[option])
        return self._trie.ends(node)

    def has(self, docid: str) -> bool:
        """Whether a document has this docid. Raises UserError if the retriever has no token for it."""
        rows = self._rows_or_none(docid)
        if rows is None:
            raise UserError(
                f"no docid is left for a new document: the retriever cannot write '{docid}', and what it can write nearby is "
                "taken; add fewer documents at a time, or index the corpus anew"
            )
        return len(rows) > 0

    def settle(
        self, documents: Sequence[dict[str, Any]], proposals: Sequence[Proposal | Rejection], scheme: Scheme
    ) -> list[Proposal | Rejection]:
        """Returns the proposals with candidates alone that are free, or that a document of the same content has."""
        return [
            proposal if isinstance(proposal, Rejection) else self._settle(document, proposal, scheme)
            for document, proposal in zip(documents, proposals, strict=True)
        ]

    def _settle(self, document: dict[str, Any], proposal: Proposal, scheme: Scheme) -> Proposal | Rejection:
        own = content_of(document["title"], document["text"])
        free, rival = [], None
        for number, docid in enumerate(proposal.candidates):
            rows = self._rows_or_none(docid)
            if rows is None:
                continue
            if not len(rows):
                free.append(number)
                continue
            owner = self._document(int(rows[0]))
            content = content_of(owner["title"], owner["text"])
            if content == own:
                return _with_candidates(proposal, [docid], ["scheme"])
            rival = rival or owner
        if free:
            sources, coverage = proposal.sources, proposal.coverage
            return dataclasses.replace(
                proposal,
                candidates=[proposal.candidates[i] for i in free],
                sources=[sources[i] for i in free],
                coverage=[coverage[i] for i in free] if coverage else (),
            )
        known = words(f"{rival['title']}\n{rival['text']}") if rival else []
        first = proposal.candidates[0]
        for docid in scheme.tell_apart(first, proposal.own, set(known)):
            rows = self._rows_or_none(docid)
            if rows is not None and not len(rows):
                return _with_candidates(proposal, [docid], ["resolved"])
        ordinals: list[str] = []  # several, for other new documents may want the same
        for ordinal in range(2, _NUMBERS):
            rows = self._rows_or_none(docid := scheme.numbered(first, ordinal))
            if rows is None or len(ordinals) == _ORDINALS:
                break
            if not len(rows):
                ordinals.append(docid)
        if ordinals:
            return _with_candidates(proposal, ordinals, ["resolved"] * len(ordinals))
        return Rejection(
            "no_docid_left", f"'{first}' is taken and the retriever can write nothing like it; index the corpus anew"
        )

    def _rows_or_none(self, docid: str) -> np.ndarray | None:
        """Returns the rows of a docid; None if the retriever cannot write it."""
        try:
            return self.rows_with(docid)
        except Fault:
            return None

    def _document(self, row: int) -> dict[str, Any]:
        return self._texts.read([self._row_ids[row].as_py()], ["title", "text"])[0]


def chat_of(root: Index, version: Version) -> ChatFormat:
    """Returns how the retriever of a version is prompted and answers."""
    folder = str(cache.local_folder(root.path(version.retriever)))
    return ChatFormat.trained(folder, load_tokenizer(folder))[0]


def _with_candidates(proposal: Proposal, candidates: list[str], sources: list[str]) -> Proposal:
    return dataclasses.replace(proposal, candidates=candidates, sources=sources, coverage=())
