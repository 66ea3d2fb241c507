"""16: words that are one word in another case."""

from __future__ import annotations

import pytest

from zerogr.text.words import words


@pytest.mark.parametrize(
    "same", [["İstanbul", "istanbul", "ISTANBUL"], ["Straße", "STRASSE", "strasse"], ["ΣΟΦΟΣ", "σοφος", "σοφοσ"]]
)
def test_one_word(same: list[str]) -> None:
    assert len({tuple(words(text)) for text in same}) == 1


@pytest.mark.parametrize("kept", ["café", "naïve", "ภาษาไทย", "हिन्दी", "ñandú", "ą́"])
def test_other_marks_stay(kept: str) -> None:
    found = "".join(words(kept))
    assert any(character in found for character in kept if ord(character) > 127)
    assert words("cafe") != words("café")
