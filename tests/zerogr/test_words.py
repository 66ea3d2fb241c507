from __future__ import annotations

import math
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr.text.terms import DocumentFrequency, Term, rank_terms
from zerogr.text.words import (
    _STRETCH,
    _WORD,
    FUNCTION_WORDS,
    MAX_WORD_CHARACTERS,
    beginning,
    is_spaced,
    is_topical,
    stretches,
    words,
)


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Hello, World!", ["hello", "world"]),
            ("C++ and C# on Python 3.11.", ["c++", "and", "c#", "on", "python", "3.11"]),
            ("os.path.join(a, b)", ["os.path.join", "a", "b"]),
            ("state-of-the-art -- really", ["state-of-the-art", "really"]),
            ("don't snake_case", ["don", "t", "snake", "case"]),
            ("ภาษาไทย นี่", ["ภาษา", "าษาไ", "ษาไท", "าไทย", "นี่"]),  # no spaces between words: grams of four letters
            ("東京タワー、日本", ["東京", "タワー", "日本"]),
            ("京都大学へ行く", ["京都", "都大", "大学", "学へ", "へ行", "行く"]),  # … of two
            ("らーめんの店", ["らーめ", "めん", "んの", "の店"]),  # the long vowel belongs to its letter
            ("Python3.11とC++を使う2024年", ["python3.11", "と", "c++", "を使", "使う", "2024", "年"]),
            ("ປະເທດລາວ ປີ ໒໐໒໔", ["ປະເທ", "ະເທດ", "ເທດລ", "ທດລາ", "ດລາວ", "ປີ", "໒໐໒໔"]),
            ("می\u200cخواهم क्\u200dष Donau\u00addampf", ["میخواهم", "क्ष", "donaudampf"]),  # joiners, soft hyphen
            ("한국어 العربية हिन्दी", ["한국어", "العربية", "हिन्दी"]),
            ("ﬁne ＡＢＣ ①", ["fine", "abc", "1"]),  # ligature, full width, circled
            ("cafe\u0301", ["café"]),
            ("?! … — 😀", []),
            ("", []),
        ],
    )
    def test_of_any_script(self, text: str, expected: list[str]) -> None:
        assert words(text) == expected

    def test_a_text_has_the_grams_of_its_parts(self) -> None:
        for part, text in (("ขนมปัง", "สูตรทำขนมปังที่บ้าน"), ("机器学习", "我们用机器学习方法")):
            assert set(words(part)) <= set(words(text))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("x" * 400, ["x" * MAX_WORD_CHARACTERS]),
            ("rye-" + "x" * 70 + ".bread", ["rye", "x" * MAX_WORD_CHARACTERS, "bread"]),
            ("x" * MAX_WORD_CHARACTERS, ["x" * MAX_WORD_CHARACTERS]),
            ("ก" * 400, ["กกกก"] * 397),
        ],
    )
    def test_no_word_is_a_giant(self, text: str, expected: list[str]) -> None:
        assert words(text) == expected

    @given(st.one_of(st.text(), st.text("ไท่ยกา東ーかタa1+.-\u3099\u200d"), st.text("aé.\u0301ก", min_size=60)))
    def test_joined_words_are_the_same_words(self, text: str) -> None:
        """A docid is words joined by spaces; read again it must be itself."""
        assert words(" ".join(words(text))) == words(text)

    def test_composed_after_lowering(self) -> None:
        assert words("J\u030cJ") == words("\u01f0j")


class TestTopical:
    @pytest.mark.parametrize("word", ["bread", "c++", "3.11", "東", "ก", "r2", "é"])
    def test_topics(self, word: str) -> None:
        assert is_topical(word)

    @pytest.mark.parametrize("word", ["the", "and", "q", "7", "of"])
    def test_others(self, word: str) -> None:
        assert not is_topical(word)

    def test_function_words_are_written_as_words_are(self) -> None:
        assert all(word == word.lower() for word in FUNCTION_WORDS)


class TestDocumentFrequency:
    def test_counts_documents_and_not_occurrences(self) -> None:
        frequency = DocumentFrequency()
        frequency.add(["bread", "bread", "oven"])
        frequency.add(["bread"])
        assert (frequency.num_documents, frequency.of("bread"), frequency.of("oven"), frequency.of("rye")) == (
            2,
            2,
            1,
            0,
        )

    def test_idf_by_hand(self) -> None:
        frequency = DocumentFrequency()
        for terms in (["a", "b"], ["a"], ["a", "c"]):
            frequency.add(terms)
        assert frequency.idf("a") == pytest.approx(math.log(4 / 3.5))
        assert frequency.idf("b") == pytest.approx(math.log(4 / 1.5))
        assert frequency.idf("unheard") == pytest.approx(math.log(4 / 0.5))

    def test_what_is_remembered_is_never_out_of_date(self) -> None:
        frequency, other = DocumentFrequency(), DocumentFrequency()
        assert frequency.idf("oven") == pytest.approx(math.log(1 / 0.5))
        frequency.add(["oven", "bread"])
        assert frequency.idf("oven") == pytest.approx(math.log(2 / 1.5))
        other.add(["bread"])
        frequency.add_counts(*other.counts(), 1)
        assert frequency.idf("oven") == pytest.approx(math.log(3 / 1.5))
        assert frequency.idf("bread") == pytest.approx(math.log(3 / 2.5))

    def test_bytes_round_trip(self) -> None:
        frequency, again = DocumentFrequency(), DocumentFrequency()
        for table in (frequency, again):
            table.add(["bread", "東京"])
            table.add([])
        assert frequency.to_bytes() == again.to_bytes()
        restored = DocumentFrequency.from_bytes(frequency.to_bytes())
        assert (restored.num_documents, restored.of("東京"), restored.of("rye")) == (2, 1, 0)
        restored.add(["東京"])
        assert restored.of("東京") == 2


class TestRankTerms:
    def test_weights_by_hand(self) -> None:
        frequency = DocumentFrequency()
        frequency.add(["bread", "oven"])
        frequency.add(["bread"])
        ranked = rank_terms("Oven", "the bread and the bread", frequency)
        assert ranked == [
            Term("oven", pytest.approx((1 + math.log(3)) * math.log(3 / 1.5)), 3),
            Term("bread", pytest.approx((1 + math.log(2)) * math.log(3 / 2.5)), 2),
        ]

    def test_ties_keep_the_order_of_appearance(self) -> None:
        assert [term.word for term in rank_terms("", "pear apple fig", DocumentFrequency())] == ["pear", "apple", "fig"]

    def test_nothing_topical(self) -> None:
        assert rank_terms("", "to be or not to be", DocumentFrequency()) == []


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)
)  # of controls, not all agree what is a space
def test_stretches_joined_are_the_text(text: str) -> None:
    assert "".join(stretches(text)) == text.lstrip()


def test_stretches() -> None:
    assert list(stretches(" two  words\n")) == ["two  ", "words\n"]
    assert list(stretches("ข้อมูลใหม่ abc検索する、x")) == ["ข้อมูล", "ใหม่ ", "abc", "検索する", "、x"]


@given(st.text(max_size=60), st.integers(0, 9))
def test_the_beginning_is_the_first_stretches(text: str, number: int) -> None:
    assert beginning(text, number) == "".join(list(stretches(text))[:number])


@given(st.text(st.sampled_from(string.printable), max_size=30))
def test_ascii_has_the_words_of_every_script(text: str) -> None:
    """It has a pattern of its own, which is faster."""
    assert words(text + " x") == _WORD.findall(text.lower() + " x")


def test_no_script_without_spaces_is_taken_for_one_with() -> None:
    """Two neighbouring letters of such a script are cut into pieces or grams; none of them may be called spaced."""
    letters = (chr(code) for code in range(sys.maxunicode + 1) if chr(code).isalpha())
    assert all(len(_STRETCH.findall(letter * 5)) == 1 for letter in letters if is_spaced(letter))
    assert is_spaced("Caf\u00e9 \u2013 it\u2019s \u00a73") and not is_spaced("\u6771\u4eac") and not is_spaced("\u0e02")
