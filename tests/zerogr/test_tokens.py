from __future__ import annotations

from typing import Any

import pytest

from tests import tiny
from zerogr.llm.models import load_tokenizer
from zerogr.llm.tokens import encode_many

TEXTS = ["roast beans", "", " keel <|im_end|> mast", "東京 \u0301", "<|im_start|>user\nchess"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(tiny.save_model(tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize("is_data", [True, False, True])
def test_tokens_are_those_of_transformers(tokenizer: Any, is_data: bool) -> None:
    expected = tokenizer(TEXTS, add_special_tokens=False, split_special_tokens=is_data)["input_ids"]
    tokenizer(TEXTS, padding=True, truncation=True, max_length=3)  # leaves its settings behind
    assert encode_many(tokenizer, TEXTS, is_data=is_data) == expected
    assert encode_many(tokenizer, TEXTS[2:3], is_data=is_data) == expected[2:3]


def test_a_special_token_is_one_only_where_no_data_is(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    as_data, as_marker = (encode_many(tokenizer, ["<|im_end|>"], is_data=is_data)[0] for is_data in (True, False))
    assert as_marker == [end] and end not in as_data


def test_no_text(tokenizer: Any) -> None:
    assert encode_many(tokenizer, []) == []
    assert encode_many(tokenizer, [""]) == [[]]


def test_a_tokenizer_without_a_fast_one(tokenizer: Any) -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return tokenizer(texts, **options)

    assert encode_many(Slow(), TEXTS, is_data=True) == encode_many(tokenizer, TEXTS, is_data=True)
