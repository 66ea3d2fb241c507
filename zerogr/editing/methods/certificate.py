"""Certificates: a few vectors per new document, from a convex problem whose solution says whether all is well.

At every choice along the new docid a vector v is added to the score of its token, v · (hidden state), and nothing else changes.
With margins, the token must win for all of the document's own queries and lose for the queries of other documents:

    a Σ_own max(0, rivals' best + m_own - s(q))² + (1 - a) Σ_others max(0, s(q) + m_others - their own token's)²
        + l2 ||v||² + quiet * mean over others of (v · h(q))²

where s(q) = (w + v) · h(q) is linear in v: solved by L-BFGS. The document is certified if its tokens then win for all its own
queries and it takes none of the others'. Removing it is leaving it out of the trie.

Source: Kishore et al. 2023 (IncDSI), whose classifier has a row per document; a row per choice of the docid is our way to the
same, and so is the last term: without it queries that were not looked at lose to the new documents (docs/log.md). Others are
old queries at the root, one of each document first, and all that were kept of the documents below the node further down.

Cost: a forward pass over the sample once, one over the document's queries, and L-BFGS on few numbers for each choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import MethodSettings
from zerogr.editing.method import Change, New, Setting
from zerogr.progress import Progress

if TYPE_CHECKING:
    from zerogr.editing.certify import Margins


class CertificateSettings(MethodSettings):
    """Of the method certificate."""

    name: str = Field("certificate", description="Vectors for single choices, each with a certificate (after IncDSI).")
    num_queries: int = Field(10, ge=1, description="Most pseudo-queries of a document that must find it.")
    num_rivals: int = Field(1024, ge=0, description="Old queries that it must not take at the first token.")
    own_margin: float = Field(2.0, ge=0, description="By which its token must win, in logits.")
    rival_margin: float = Field(1.0, ge=0, description="By which it must lose for others' queries.")
    own_share: float = Field(0.5, gt=0, lt=1, description="Of the loss, for its own queries.")
    l2: float = Field(1e-3, ge=0, description="Of the vectors.")
    quiet: float = Field(1.0, ge=0, description="Of what they add to the scores of others' queries, squared.")

    def margins(self) -> Margins:
        """Returns what the convex problem needs to know."""
        from zerogr.editing.certify import Margins

        return Margins(self.own_margin, self.rival_margin, self.own_share, self.l2, self.quiet)


class Certificate:
    """See the module."""

    Settings = CertificateSettings

    def __init__(self, settings: CertificateSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns all terms, those of the new documents among them, and a certificate or its failure for each document."""
        from zerogr.editing.certify import Certifier

        own = self._settings
        certifier = Certifier(setting, new.old, num_rivals=own.num_rivals, margins=own.margins())
        by_document: dict[str, list[Any]] = {}
        for known in new.known:
            by_document.setdefault(known.doc_id, []).append(known)
        failed = {}
        progress = Progress("certificates", total=len(by_document), unit="documents")
        for doc_id, queries in by_document.items():
            progress.advance(1)
            outcome = certifier.add(queries[: own.num_queries])
            if not outcome.is_certified:
                failed[doc_id] = outcome.in_words
        progress.close()
        report = {"certified": len(by_document) - len(failed), "not_certified": len(failed), "failures": failed}
        return Change(terms=certifier.terms, report=report)
