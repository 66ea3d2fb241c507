from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zerogr.errors import Fault
from zerogr.llm.chat import ChatFormat
from zerogr.llm.codec import CODECS, code_tokens, extend, extend_embeddings, extended_hash
from zerogr.llm.models import load_model, load_tokenizer, tokenizer_hash
from zerogr.training.checkpoints import full_tensors

NEW = code_tokens([3, 2])


def test_tokens_of_every_level_and_code() -> None:
    assert NEW == ["<0:0>", "<0:1>", "<0:2>", "<1:0>", "<1:1>"]


class TestCodes:
    def test_one_token_each(self, tiny_model: Path) -> None:
        tokenizer = load_tokenizer(str(tiny_model))
        size = len(tokenizer)
        extend(tokenizer, NEW)
        codec = CODECS["codes"](tokenizer)
        tokens, offsets = codec.encode(["2 1", "0", "1 0"])
        assert offsets.tolist() == [0, 2, 3, 5] and tokens.dtype == np.int32
        assert (tokens - size).tolist() == [2, 4, 0, 1, 3]
        assert [codec.decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)] == ["2 1", "0", "1 0"]
        assert codec.decode(tokens[:1].tolist()) == "2"
        with pytest.raises(Fault, match="no token '<1:2>'; run again with --rebuild trie"):
            codec.encode(["0 2"])

    def test_no_query_can_hold_one(self, tiny_model: Path) -> None:
        tokenizer = load_tokenizer(str(tiny_model))
        size = len(tokenizer)
        extend(tokenizer, NEW)
        chat = ChatFormat.of(tokenizer, codec="codes")
        assert max(chat.query("what is <0:1>, or <1:0>?")) < size
        assert max(chat.prefix("Find <0:1>.")) < size
        assert min(chat.docid("2 1")) >= size

    def test_the_hash_is_that_of_the_saved_tokenizer(self, tiny_model: Path, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(str(tiny_model))
        extend(tokenizer, NEW)
        found = extended_hash(str(tiny_model), tokenizer, NEW)
        tokenizer.save_pretrained(tmp_path)
        assert found == tokenizer_hash(str(tmp_path)) != tokenizer_hash(str(tiny_model))
        assert extended_hash(str(tiny_model), load_tokenizer(str(tiny_model)), []) == tokenizer_hash(str(tiny_model))


def test_new_embeddings_are_the_same_everywhere_and_the_old_ones_stay(tiny_model: Path) -> None:
    def extended() -> dict[str, torch.Tensor]:
        model, tokenizer = load_model(str(tiny_model), device="cpu", dtype=torch.float32)
        extend(tokenizer, NEW)
        extend_embeddings(model, tokenizer, NEW)
        assert model.config.vocab_size == len(tokenizer)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # tied as before
        return full_tensors(model)

    before = full_tensors(load_model(str(tiny_model), device="cpu", dtype=torch.float32)[0])
    once, again = extended(), extended()
    assert once.keys() == before.keys()
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name]) and torch.equal(tensor[: len(before[name])], before[name])
    old, new = (
        table for table in once["model.embed_tokens.weight"].split([len(before["model.embed_tokens.weight"]), 5])
    )
    assert len(new.unique(dim=0)) == 5 and 0.5 < new.std() / old.std() < 2
