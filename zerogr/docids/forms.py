"""Forms: the orders in which the words of a docid may be written.

Written in one order alone, a docid begins with a word that its document's queries seldom name: the retriever has to learn by
heart, document by document, which word that is. With free words the docid may begin with any of its words, so with one that the
query holds, and copying a word is what a language model can do for documents it has hardly seen. The paper's docids have no
free words; docids as sets of terms are from Zhang et al. 2023, "Term-Sets Can Be Strong Document Identifiers For
Auto-Regressive Search Engines".

A docid of n words has 1, n or n (n - 1) forms with 0, 1 or 2 free words, the rest of them as written. The trie holds all forms
of a document, but those it needs no more once the document is alone (`zerogr.trie_build`); a pseudo-query teaches one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from zerogr.words import stem, words


def forms(docid: str, num_free_words: int) -> list[str]:
    """Returns the forms of a docid, itself the first; its words are separated by single spaces."""
    if not num_free_words:
        return [docid]
    parts = docid.split(" ")
    found = dict.fromkeys([docid])  # a title may repeat a word
    for first in parts:
        rest = _without(parts, first)
        seconds = rest if num_free_words == 2 and rest else [None]
        found.update(dict.fromkeys(" ".join(_in_front([first, second], parts)) for second in seconds))
    return list(found)


def form_for(
    query: str, docid: str, num_free_words: int, weight_of: Callable[[str], float], draw: random.Random
) -> str:
    """Returns the form that a query teaches: words that it names come first.

    Of several the first is drawn, a heavy one more often than a light one, and so is the second. Where the query names none,
    all come as written.

    Args:
        query: A text.
        docid: Words separated by single spaces.
        num_free_words: As in `forms`.
        weight_of: Of a word, above 0: how rare it is.
        draw: Where the randomness comes from.
    """
    if not num_free_words:
        return docid
    parts = docid.split(" ")
    asked = {stem(word) for word in words(query)}
    named = [word for word in dict.fromkeys(parts) if stem(word) in asked]
    chosen: list[str | None] = []
    while named and len(chosen) < num_free_words:
        [word] = draw.choices(named, [weight_of(word) for word in named])
        named.remove(word)
        chosen.append(word)
    return " ".join(_in_front(chosen, parts))


def _in_front(chosen: list[str | None], parts: list[str]) -> list[str]:
    front = [word for word in chosen if word is not None]
    rest = parts
    for word in front:
        rest = _without(rest, word)
    return front + rest


def _without(parts: list[str], word: str) -> list[str]:
    """Returns the words less the first of this name."""
    place = parts.index(word)
    return parts[:place] + parts[place + 1 :]
