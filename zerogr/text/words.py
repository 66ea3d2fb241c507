"""Words: how text becomes the lower-case terms that docids are made of.

A word is a run of letters, marks and digits of any script; `+ # . -` survive inside it, `+ #` also at its end, so that
`c++`, `3.11`, `os.path` and `state-of-the-art` stay whole. A mark belongs to its letter and never ends a word.

Scripts without spaces between words have no such runs, a whole sentence is one. There, without a dictionary, a word is a
*gram*: so many neighbouring letters with their marks, at every place of the run (as search engines do it: Lucene's
CJKAnalyzer). Whether a text stands alone or inside a longer one, it has the same grams, which is what counting, ranking and
comparing words need; katakana, which sets off whole words, is left as it is.
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from operator import itemgetter

import regex
import Stemmer

MAX_WORD_CHARACTERS = 64
"""Longer words (addresses, encoded data) fall apart at their `+ # . -`, and what is still longer is cut."""

_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*(?:[+#.\-][\p{L}\p{N}][\p{L}\p{M}\p{N}]*)*[+#]*")
_ASCII_WORD = re.compile(r"[a-z0-9]++(?:[+#.\-][a-z0-9]++)*+[+#]*+")
"""The same of lower-case ASCII, in half the time."""
_PIECE = regex.compile(r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*")
_UNSPACED = regex.compile(
    r"""(?V1x)
      (?P<pair> (?:[[\p{Han}\p{Hiragana}]&&[\p{L}\p{N}]][\p{M}ー]*)+ )  # most Chinese words have two characters
    | (?P<four> (?:[\p{Line_Break=SA}&&\p{L}]\p{M}*)+ )                 # Thai, Lao, Khmer, Burmese: about a word
    """
)
_UNSPACED_LETTER = r"(?:[[\p{Han}\p{Hiragana}]&&[\p{L}\p{N}]][\p{M}ー]*|[\p{Line_Break=SA}&&\p{L}]\p{M}*)"
_STRETCH = regex.compile(rf"(?V1)(?:{_UNSPACED_LETTER}{{1,4}}|(?:(?!{_UNSPACED_LETTER})\S)+)\s*")
_SPACED_STRETCH = regex.compile(r"\S+\s*")
_MAY_BE_UNSPACED = re.compile("[\u0e00-\u1fff\u2e80-\U0010ffff]")
_LETTER = regex.compile(r"[\p{L}\p{N}][\p{M}ー]*")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200c\u200d\u2060\ufeff"))
"""Soft hyphen, joiners and non-joiners: they say how a word is drawn, and would tear it apart."""

FUNCTION_WORDS = frozenset(
    """a about above according across after again against all almost along already also although always am among an
    and another any anyone anything are aren't around as at away b be became because become been before began
    behind being below beside between beyond both but by c came can can't cannot come could couldn't d did
    didn't do does doesn't doing don't done down due during e each either else enough etc even ever every
    everyone everything except f far few first for found from further g gave get gets getting give given gives
    go goes going gone got had has hasn't have haven't having he hence her here hers herself him himself his how
    however i ie if in indeed instead into is isn't it its itself just k keep kept know known l last later least
    less let like ll made make makes making many may maybe me might mine more most mostly much must my myself n
    near need needs neither never nevertheless next no nobody none nor not nothing now of off often on once one
    only onto or other others otherwise our ours ourselves out over own p part per perhaps please put q quite
    rather re really s said same say says second see seem seemed seems seen self several shall she should since
    so some somehow someone something sometimes soon still such t take taken takes taking tell than that the
    their theirs them themselves then there therefore these they thing things this those though three through
    throughout thus to together too toward towards two u under unless until up upon us use used uses using
    usually v various ve very via w want was way ways we well went were what whatever when whenever where
    whereas whether which while who whoever whole whom whose why will with within without would x y yes yet you
    your yours yourself yourselves z""".split()
)
"""English words that carry no topic. In other languages the document frequency does their work."""


def words(text: str) -> list[str]:
    """Returns the normalised words of a text, in order: NFKC, case folded, at most `MAX_WORD_CHARACTERS` long each.

    Folding makes one word of Straße and STRASSE. That of İ leaves a dot above behind its i, which goes, so that İstanbul,
    istanbul and ISTANBUL are one as well.
    """
    if text.isascii():
        found = _ASCII_WORD.findall(text.lower())
    else:
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
        text = unicodedata.normalize("NFKC", text)  # folding may compose what upper case could not
        found = _WORD.findall(_UNSPACED.sub(_grams, text.replace("i\u0307", "i")))
    if max(map(len, found), default=0) <= MAX_WORD_CHARACTERS:
        return found
    return [
        piece[:MAX_WORD_CHARACTERS]
        for word in found
        for piece in ([word] if len(word) <= MAX_WORD_CHARACTERS else _PIECE.findall(word))
    ]


def _grams(run: regex.Match[str]) -> str:
    letters = _LETTER.findall(run[0])
    length = 2 if run.lastgroup == "pair" else 4
    grams = ("".join(letters[i : i + length]) for i in range(max(1, len(letters) - length + 1)))
    return f" {' '.join(grams)} "


def stretches(text: str) -> Iterator[str]:
    """Yields the text piece by piece, each with the white space behind it: what stands between spaces, and of a script without
    spaces four letters. Joined they are the text from its first letter on. A measure of length, where words would be."""
    return map(itemgetter(0), (_SPACED_STRETCH if is_spaced(text) else _STRETCH).finditer(text))


def beginning(text: str, number: int) -> str:
    """Returns the first `number` stretches of a text, joined."""
    if is_spaced(text):
        return str(_first_stretches(number).match(text)[1])  # in one go
    return "".join(islice(stretches(text), number))


@lru_cache
def _first_stretches(number: int) -> regex.Pattern[str]:
    return regex.compile(rf"\s*+((?:\S++\s*+){{0,{number}}})")


def is_spaced(text: str) -> bool:
    """Whether all its words surely have spaces between them: no letter is in a block of Unicode with a script without."""
    return text.isascii() or _MAY_BE_UNSPACED.search(text) is None


def is_topical(word: str) -> bool:
    """Whether a word may name a topic: no function word, and no single letter unless it stands for itself (Thai, CJK)."""
    return word not in FUNCTION_WORDS and (len(word) > 1 or not word.isascii())


@lru_cache(maxsize=2**16)  # few words are most of any text, and the stemmer takes ten times as long
def stem(word: str) -> str:
    """Returns what the forms of a word have in common: Snowball's stem for English. Other languages lose little by it."""
    stemmer = getattr(_stemmers, "english", None)
    if stemmer is None:
        stemmer = _stemmers.english = Stemmer.Stemmer("english")
    return stemmer.stemWord(word)


_stemmers = threading.local()
"""A stemmer is not for two threads at once."""


def key_of(text: str) -> int:
    """Returns 64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
