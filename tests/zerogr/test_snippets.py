"""Snippets: what a person is shown of a text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.search import snippet as module
from zerogr.search.snippet import ELLIPSIS, MOST_READ, query_terms, snippet

FILLER = "Tea is another drink that people like to have in the afternoon. " * 5
ESPRESSO = "Espresso is made under pressure, with finely ground beans."
TEXT = f"Coffee is a drink.\n\n{FILLER}{ESPRESSO} {FILLER}"
JAPANESE = "今日は東京へ行く。京都は古い都市です。" * 5 + "大阪の食べ物はとても美味しいです。" + "北海道は寒い。" * 5
ALPHABET = st.sampled_from(
    ["tea", "coffee", "ground", ".", "京都", "は", "。", "\n", "  ", "x" * 50, "e\u0301", "\x1b[0m"]
)


def shown(text: str, query: str, num_characters: int) -> str:
    return snippet(text, query_terms(query), num_characters)


class TestSnippet:
    @settings(deadline=None)
    @given(
        st.lists(ALPHABET, max_size=80).map(" ".join), st.lists(ALPHABET, max_size=4).map(" ".join), st.integers(1, 120)
    )
    def test_is_a_part_of_the_text_on_one_line(self, text: str, query: str, num_characters: int) -> None:
        line, found = " ".join(text.split()), shown(text, query, num_characters)
        part = found.removeprefix(ELLIPSIS).removesuffix(ELLIPSIS)
        assert part in line and len(part) <= num_characters
        assert bool(part) == bool(line)
        if found == part:
            assert part == line
        assert line.startswith(part) or found.startswith(ELLIPSIS)
        assert line.endswith(part) or found.endswith(ELLIPSIS)

    def test_shows_what_matched_from_the_beginning_of_its_sentence(self) -> None:
        assert shown(TEXT, "how are beans ground under pressure", 70) == f"{ELLIPSIS}{ESPRESSO} Tea is{ELLIPSIS}"

    def test_forms_of_a_word_are_one(self) -> None:
        assert ESPRESSO in shown(TEXT, "pressures of grounds", 70)

    def test_more_different_words_beat_more_of_one(self) -> None:
        text = f"beans beans beans beans beans. {FILLER}{ESPRESSO}"
        assert "Espresso" in shown(text, "espresso beans", 60)

    @pytest.mark.parametrize("query", ["nothing of it", "", "the of and"])
    def test_without_a_match_it_is_the_beginning(self, query: str) -> None:
        assert shown(TEXT, query, 25) == f"Coffee is a drink. Tea is{ELLIPSIS}"

    def test_whole_words_alone(self) -> None:
        for num_characters in range(10, 90):
            found = shown(TEXT, "pressure", num_characters).strip(ELLIPSIS)
            assert set(found.split()) <= set(TEXT.split())

    def test_a_short_text_is_shown_whole(self) -> None:
        assert shown(f"  {ESPRESSO}\n", "beans", 200) == ESPRESSO
        assert shown("", "beans", 200) == ""

    def test_a_script_without_spaces(self) -> None:
        for query in ("大阪", "食べ物", "美味しい"):
            found = shown(JAPANESE, query, 20)
            assert query in found and len(found) <= 22
        assert shown(JAPANESE, "何もない", 9) == f"今日は東京へ行く。{ELLIPSIS}"

    def test_a_word_longer_than_the_snippet_is_cut(self) -> None:
        assert shown("x" * 500, "y", 20) == "x" * 20 + ELLIPSIS

    def test_of_a_long_text_only_the_beginning_is_looked_at(self) -> None:
        text = "tea " * (MOST_READ // 4 + 1) + "espresso"
        assert shown(text, "espresso", 10) == f"tea tea{ELLIPSIS}"

    @settings(deadline=None)
    @given(
        st.lists(ALPHABET, max_size=60).map(" ".join), st.lists(ALPHABET, max_size=4).map(" ".join), st.integers(1, 90)
    )
    def test_the_short_way_cuts_as_the_long_one(self, text: str, query: str, num_characters: int) -> None:
        found = shown(text, query, num_characters)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "is_spaced", lambda _: False)
            assert shown(text, query, num_characters) == found
