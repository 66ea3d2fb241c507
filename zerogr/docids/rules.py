"""What a good keyword docid is, and how a bad one is made good: validate, then repair from the document's own terms.

The rules, after the paper's: lower-case words separated by single spaces, `min_words` to `max_words` of them,
no function word, no repetition, at least `min_core_terms` of them found in the document, at most `max_foreign_words` not found
there, none that the whole corpus has never used. A document with fewer topical words than a limit asks for is held to what
it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from zerogr.text.terms import DocumentFrequency, Term, rank_words
from zerogr.text.words import is_topical, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Word limits of a docid."""

    min_words: int = 6
    max_words: int = 8
    min_core_terms: int = 3
    max_foreign_words: int = 0


@dataclass(slots=True)
class Terms:
    """What the rules need to know of one document."""

    ranked: list[str]
    """Its topical words by falling TF-IDF weight; all its words, in order, if none is topical."""
    own: frozenset[str]
    """Every word it holds."""
    weights: dict[str, float]
    """TF-IDF weight of each word in `ranked`; all alike if none is topical."""
    counts: list[int]
    """How often the document has each word in `ranked`, as `zerogr.text.terms.Term` counts; 1 if none is topical."""

    @classmethod
    def of(cls, title: str, text: str, frequency: DocumentFrequency) -> Terms:
        """Returns the terms of a document; `ranked` is empty only if it holds no word at all."""
        in_title, in_text = words(title), words(text)
        own = dict.fromkeys([*in_title, *in_text])
        ranked = rank_words(in_title, in_text, frequency) or [Term(word, 1.0, 1) for word in own]
        return cls(
            [term.word for term in ranked],
            frozenset(own),
            {term.word: term.weight for term in ranked},
            [round(term.occurrences) for term in ranked],
        )

    def coverage(self, docid: Iterable[str]) -> float:
        """Returns the share (0 to 1) of the weight of all `ranked` words that the docid's words have; 0 without words."""
        named = sum(self.weights.get(word, 0.0) for word in set(docid))
        return named / sum(self.weights.values()) if self.weights else 0.0


def validate(candidate: Sequence[str], terms: Terms, limits: Limits, frequency: DocumentFrequency) -> list[str]:
    """Returns the names of the rules that a candidate's words break; empty for a valid docid."""
    broken = []
    if len(candidate) < min(limits.min_words, len(terms.ranked)):
        broken.append("too_few_words")
    if len(candidate) > limits.max_words:
        broken.append("too_many_words")
    if len(set(candidate)) < len(candidate):
        broken.append("repeated_word")
    if not all(map(is_topical, candidate)) and any(_is_function_word(word, terms) for word in candidate):
        broken.append("function_word")
    if sum(word in terms.own for word in set(candidate)) < min(limits.min_core_terms, len(terms.ranked)):
        broken.append("too_few_core_terms")
    foreign = [word for word in candidate if word not in terms.own]
    if len(foreign) > limits.max_foreign_words:
        broken.append("too_many_foreign_words")
    if any(not frequency.of(word) for word in foreign):
        broken.append("unknown_word")
    return broken


def repair(candidate: Sequence[str], terms: Terms, limits: Limits, frequency: DocumentFrequency) -> list[str]:
    """Returns the words of a valid docid that keeps as much of the candidate as the rules allow, in the candidate's order.

    Function words, repetitions and words unknown to the corpus go, foreign words from the end until the rules allow the
    rest. The document's heaviest unused terms fill what is missing, bare numbers last: a table's years are rare and name
    nothing.
    """
    kept = [
        word
        for word in dict.fromkeys(candidate)
        if not _is_function_word(word, terms) and (word in terms.own or frequency.of(word))
    ]
    num_core = min(limits.min_core_terms, len(terms.ranked), limits.max_words)
    num_own = sum(word in terms.own for word in kept)
    room = limits.max_words - min(max(num_core, num_own), limits.max_words)
    foreign = [word for word in kept if word not in terms.own][: min(limits.max_foreign_words, room)]
    kept = [word for word in kept if word in terms.own or word in foreign][: limits.max_words]
    num_wanted = max(min(limits.min_words, len(terms.ranked)), num_core + len(foreign))
    spare = [term for term in terms.ranked if term not in kept]
    names = (term for term in spare if _has_letter(term))
    numbers = (term for term in spare if not _has_letter(term))
    return kept + list(islice(chain(names, numbers), max(0, num_wanted - len(kept))))


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))


def _is_function_word(word: str, terms: Terms) -> bool:
    # A document of nothing but function words ("to be or not to be") is named by them.
    return not is_topical(word) and word not in terms.ranked
