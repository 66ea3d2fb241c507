"""Schemes: where the candidates of a document come from.

`keywords` asks a language model; `title`, `tfidf` and `random` are made from the document alone and are the baselines that
every claim about learned docids has to be held against. All give an ordered list of candidates; `resolve` does the rest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from zerogr.docids.rules import Limits, Terms, repair, validate
from zerogr.seeds import seed_of
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words


@dataclass(slots=True)
class Candidate:
    """One docid a document could have."""

    docid: str
    source: str
    """`lm`, `repaired` (an LM's, mended) or `scheme` (made without an LM)."""
    violations: tuple[str, ...] = ()
    """The rules its text broke before it was mended."""


def keyword_candidates(
    texts: Sequence[str], terms: Terms, limits: Limits, frequency: DocumentFrequency
) -> list[Candidate]:
    """Returns the LM's proposals, each valid at first try or repaired, without repetitions, in their order."""
    candidates: dict[str, Candidate] = {}
    for text in texts:
        proposal = words(text)
        violations = tuple(validate(proposal, terms, limits, frequency))
        chosen = repair(proposal, terms, limits, frequency) if violations else proposal
        docid = " ".join(chosen)
        candidates.setdefault(docid, Candidate(docid, "repaired" if violations else "lm", violations))
    return list(candidates.values())


def title_candidates(title: str, text: str, limits: Limits) -> list[Candidate]:
    """Returns the title's words, or the text's first words where there is no title, cut to `max_words`."""
    chosen = words(title)[: limits.max_words] or words(text)[: limits.max_words]
    return [Candidate(" ".join(chosen), "scheme")] if chosen else []


def tfidf_candidates(terms: Terms, limits: Limits) -> list[Candidate]:
    """Returns the document's `max_words` heaviest terms, heaviest first."""
    return [Candidate(" ".join(terms.ranked[: limits.max_words]), "scheme")] if terms.ranked else []


_LETTERS = ("bdfgklmnprstvz", "aeiou") * 2


def random_candidates(seed: int, doc_id: str, limits: Limits) -> list[Candidate]:
    """Returns `min_words` pronounceable nonsense words, a function of seed and `doc_id`: a docid without meaning."""
    draw = random.Random(seed_of(seed, "docid", doc_id))
    nonsense = ("".join(draw.choice(letters) for letters in _LETTERS) for _ in range(limits.min_words))
    return [Candidate(" ".join(nonsense), "scheme")]
