"""Snippets: the part of a text that has most of a query's words.

The text is cut into stretches: what stands between spaces or, in a script without spaces, four letters. Of all windows that
begin with a word of the query, the snippet is the one with most different words, of equal ones that with most in all, then the
first. What room is left shows what stands before, from the beginning of a sentence if there is one near, and behind. Words are
compared by their stems. Without a match it is the beginning of the text.

Cost: half a millisecond for 10,000 characters on one core; of longer texts the first `MOST_READ` are looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from itertools import accumulate
from operator import add

from zerogr.text.words import MAX_WORD_CHARACTERS, is_spaced, is_topical, stem, stretches, words

MOST_READ = 10_000
"""Characters, as in Lucene's UnifiedHighlighter."""
ELLIPSIS = "…"
_ENDS_OF_SENTENCES = (".", "!", "?", ":", ";", "。", "！", "？", "।", "؟")


def query_terms(query: str) -> frozenset[str]:
    """Returns the stems of a query's topical words."""
    return frozenset(stem(word) for word in words(query) if is_topical(word))


def snippet(text: str, terms: frozenset[str], num_characters: int) -> str:
    """Returns the part of a text that has most of some terms, on one line, with an ellipsis where it is cut.

    Args:
        text: Of a document.
        terms: Of a query, as `query_terms` has them.
        num_characters: At most, besides the ellipses.
    """
    line = " ".join(text[:MOST_READ].split())
    pieces, begins = _cut(line)
    if not pieces:
        return ""
    if is_cut := len(text) > MOST_READ and len(pieces) > 1:
        del pieces[-1], begins[-1]  # the last may be torn
    ends = list(map(add, begins, map(len, pieces)))
    first, last = _window(_matches(pieces, begins, terms), begins, ends, num_characters)

    room = num_characters - (ends[last] - begins[first])
    nearby = range(first, bisect_left(begins, begins[first] - max(room, 0), hi=first) - 1, -1)
    starts = (i for i in nearby if i == 0 or pieces[i - 1].endswith(_ENDS_OF_SENTENCES))
    halfway = bisect_left(begins, begins[first] - max(room, 0) // 2, hi=first)
    first = next(starts, halfway)
    while last + 1 < len(pieces) and ends[last + 1] - begins[first] <= num_characters:
        last += 1
    if last + 1 == len(pieces):
        while first and ends[last] - begins[first - 1] <= num_characters:
            first -= 1
    while 0 < first < last and not words(pieces[first]):
        first += 1  # a full stop belongs to what is not shown
    shown = line[begins[first] : ends[last]]
    is_cut = is_cut or last + 1 < len(pieces) or len(shown) > num_characters
    return f"{ELLIPSIS if first else ''}{shown[:num_characters]}{ELLIPSIS if is_cut else ''}"


def _cut(line: str) -> tuple[list[str], list[int]]:
    """Returns the pieces of a line without the spaces behind them, and where each begins."""
    if is_spaced(line):
        pieces = line.split()
        return pieces, [begin + number for number, begin in enumerate(accumulate(map(len, pieces), initial=0))][:-1]
    spaced = list(stretches(line))
    return [piece.rstrip() for piece in spaced], [0, *accumulate(map(len, spaced))][: len(spaced)]


def _matches(pieces: list[str], begins: list[int], terms: frozenset[str]) -> list[tuple[int, frozenset[str]]]:
    """Returns the pieces that hold any of the terms, and which."""
    read = pieces
    if begins[-1] - begins[0] != sum(map(len, pieces[:-1])) + len(pieces) - 1:  # not a space behind each
        read = [  # a word may begin in one stretch and end in the next
            piece + following if begin + len(piece) == next_begin else piece
            for piece, following, begin, next_begin in zip(
                pieces, [*pieces[1:], ""], begins, [*begins[1:], -1], strict=True
            )
        ]
    known = {piece: held for piece in set(read) if (held := terms & _stems(piece))}
    return [(number, known[piece]) for number, piece in enumerate(read) if piece in known]


def _stems(piece: str) -> frozenset[str]:
    return _stems_of_short(piece) if len(piece) <= MAX_WORD_CHARACTERS else frozenset(map(stem, words(piece)))


@lru_cache(maxsize=2**16)
def _stems_of_short(piece: str) -> frozenset[str]:
    """The same words stand in most texts. Bounded in number and, by the length of a piece, in bytes."""
    return frozenset(map(stem, words(piece)))


def _window(
    matches: list[tuple[int, frozenset[str]]], begins: list[int], ends: list[int], num_characters: int
) -> tuple[int, int]:
    """Returns the first and the last piece of the best window; without matches the first piece is both."""
    best, window, stop = (0, 0), (0, 0), 0
    inside: Counter[str] = Counter()
    for begin, (first, leaving) in enumerate(matches):
        while stop < len(matches) and (stop <= begin or ends[matches[stop][0]] - begins[first] <= num_characters):
            inside.update(matches[stop][1])
            stop += 1
        if (score := (len(+inside), inside.total())) > best:
            best, window = score, (first, matches[stop - 1][0])
        inside.subtract(leaving)
    return window
