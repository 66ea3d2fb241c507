"""Certificates: a few gates per new document, from a convex problem whose solution says whether all is well.

At every choice along the new docid its token's score gets max(0, z(q)) - c more, z(q) = v · (hidden state) + b, and nothing
else changes. With margins, the token must win for all of the document's own queries and lose for those of other documents:

    a Σ_own max(0, rivals' best + m_own + c - s(q) - z(q))² + (1 - a) Σ_others max(0, z(q) - room(q))²
        + l2 ||v||² + quiet * mean over others of max(0, z(q) + silence)²

where s(q) is the token's score before, and room(q) = max(0, their own token's score - m_others - s(q) + c). c is 0 where other
documents have the token too. Where it is new, c is what gives room to all others: the model never had to choose there, so its
scores mean nothing. Solved by L-BFGS; b is then lowered until the gate takes none of the known queries of others. What the
document does not win by up to four such gates, it wins by a gate for each query that is left: behind the final norm all states
lie on an ellipsoid, so a plane tells any of them from all others. The document is certified if its tokens then win for all its
own queries and it takes none of the others'. Removing it is leaving it out of the trie.

Source: Kishore et al. 2023 (IncDSI), whose classifier has a row per document. Ours is a row per choice of the docid, and a
gate: shut for nearly all queries, also for those that nobody looked at, so that many documents do not add up (docs/log.md).
That far queries are left exactly alone is GRACE's idea (Hartvigsen et al. 2023). Others are all queries that were kept at the
root, and those of the documents below the node further down.

Cost: a forward pass over the kept queries by the first update, one over the document's queries, and L-BFGS on few numbers for
each choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr.config.base import MethodSettings
from zerogr.editing.method import Change, New, Setting
from zerogr.progress import Progress

if TYPE_CHECKING:
    from zerogr.editing.gate import Margins


class CertificateSettings(MethodSettings):
    """Of the method certificate."""

    name: str = Field(
        "certificate", description="Gates at single choices, each document with a certificate (after IncDSI)."
    )
    num_queries: int = Field(10, ge=1, description="Most pseudo-queries of a document that must find it.")
    own_margin: float = Field(2.0, ge=0, description="By which its token must win, in logits.")
    rival_margin: float = Field(1.0, ge=0, description="By which it must lose for others' queries.")
    own_share: float = Field(0.5, gt=0, lt=1, description="Of the loss, for its own queries.")
    l2: float = Field(1e-3, ge=0, description="Of the gates' vectors.")
    quiet: float = Field(1.0, ge=0, description="Of what they come to for others' queries, above -silence, squared.")
    silence: float = Field(2.0, ge=0, description="How far below 0 they should be for others' queries, in logits.")

    def margins(self) -> Margins:
        """Returns what the convex problem needs to know."""
        from zerogr.editing.gate import Margins

        return Margins(self.own_margin, self.rival_margin, self.own_share, self.l2, self.quiet, self.silence)


class Certificate:
    """See the module."""

    Settings = CertificateSettings

    def __init__(self, settings: CertificateSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns all terms, those of the new documents among them, and a certificate or its failure for each document."""
        from zerogr.editing.certify import Certifier

        own = self._settings
        certifier = Certifier(setting, new.old, own.margins())
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
        return Change(terms=certifier.terms, states=certifier.states, report=report)
