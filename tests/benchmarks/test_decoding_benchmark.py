"""The peers that ours is measured against: a peer that does something else than it should makes any speed-up a lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.docids import recombined
from benchmarks.peers import (
    bare_forwards_s,
    constrained_beam,
    dict_trie,
    draw,
    plain_scores,
    remove,
    truncated_trie,
)
from tests import tiny
from zerogr.decoding import decode
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.trie import DocidTrie

END = 2  # of the tiny model
DOCIDS = ["coffee"] + [
    f"{topic} {' '.join(terms.split()[first : first + 3])}"
    for topic, terms in tiny.TOPICS.items()
    for first in range(5)
]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, ChatFormat]:
    """The tiny model, with weights large enough that its distributions are not flat."""
    model, tokenizer = load_model(str(tiny_model), device="cpu")
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    chat = ChatFormat.of(tokenizer)
    assert chat.end_token_id == END
    return model, chat


@pytest.mark.parametrize("width", [2, 4, 10, len(DOCIDS), len(DOCIDS) + 30])
def test_constrained_beam_has_the_semantics_of_ours_under_vocabulary(
    loaded: tuple[Any, ChatFormat], width: int
) -> None:
    model, chat = loaded
    docids = [tuple(chat.docid(text)) for text in DOCIDS]
    for query in ("which beans", "boats"):
        prompt = chat.prompt("Find the text.", query)
        found = constrained_beam(
            model, prompt, dict_trie(docids, END), width,
            end=END, max_tokens=max(map(len, docids)) + 1, has_scores=True,
        )  # fmt: skip
        expected = decode(
            plain_scores(model, prompt), DocidTrie.build(docids), width,
            eos_token_id=END, strategy="beam", normalise="vocabulary",
        )  # fmt: skip
        assert [docid for docid, _ in found] == [item.tokens for item in expected]
        np.testing.assert_allclose([score for _, score in found], [item.score for item in expected], atol=1e-3)


def test_draws_with_removal_give_every_docid_once(loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    prompt = chat.prompt("Find the text.", "tyres")
    trie, path_of = truncated_trie([chat.docid(text) for text in DOCIDS], END)
    torch.manual_seed(0)
    drawn = []
    for number in range(len(DOCIDS)):
        drawn.append(draw(model, prompt, trie, temperature=1.5 * number / len(DOCIDS), end=END))
        remove(trie, drawn[-1])
    assert sorted(drawn) == sorted(path_of.values())
    assert trie == {}


def test_the_first_draw_is_greedy(loaded: tuple[Any, ChatFormat]) -> None:
    model, chat = loaded
    docids = [tuple(chat.docid(text)) for text in DOCIDS]
    prompt = chat.prompt("Find the text.", "a loaf")
    trie, path_of = truncated_trie(docids, END)
    [expected] = decode(
        plain_scores(model, prompt), DocidTrie.build(docids), 1, eos_token_id=END, strategy="greedy"
    )  # fmt: skip
    assert draw(model, prompt, trie, temperature=0.0, end=END) == path_of[expected.tokens]


@given(st.sets(st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple), min_size=1))
def test_a_truncated_path_is_the_shortest_that_no_other_docid_begins_with(docids: set[tuple[int, ...]]) -> None:
    trie, path_of = truncated_trie(docids, END)
    assert path_of.keys() == docids
    for docid, path in path_of.items():
        whole = (*docid, END)
        others = [(*other, END) for other in docids - {docid}]
        own = min(
            whole[:length]
            for length in range(1, len(whole) + 1)
            if not any(other[:length] == whole[:length] for other in others)
        )
        assert path == (own if own == whole else (*own, END))
    for docid in docids:
        remove(trie, path_of[docid])
    assert trie == {}


def test_plain_scores_are_those_of_single_forward_passes(loaded: tuple[Any, ChatFormat]) -> None:
    model, _ = loaded
    prompt = [5, 9, 31]
    prefixes = [(7, 8, 9), (), (7,), (3, 3), (7, 8), (3, 4), (7, 8, 9, 9, 9)]
    scores = plain_scores(model, prompt, batch_size=2)
    for asked in (prefixes[:3], prefixes):  # the second time some are remembered
        with torch.inference_mode():
            single = [model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].numpy() for prefix in asked]
        np.testing.assert_allclose(scores(asked), np.stack(single), atol=1e-4)


def test_bare_forwards_have_the_shapes_they_stand_for(loaded: tuple[Any, ChatFormat]) -> None:
    model, _ = loaded
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            (*kwargs["input_ids"].shape, kwargs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    bare_forwards_s(model, [(20, 2, 10), (7, 3, 40)])
    hook.remove()
    assert seen == [(2, 10, 0), (3, 3, 37)]


def test_recombined_docids_begin_with_the_real_ones(loaded: tuple[Any, ChatFormat]) -> None:
    _, chat = loaded
    tokens, offsets = recombined(chat, DOCIDS, 500)
    docids = [tuple(part.tolist()) for part in np.split(tokens, offsets[1:-1])]
    assert docids[: len(DOCIDS)] == [tuple(chat.docid(text)) for text in DOCIDS]
    assert len(docids) == 500
    real_words = {word for text in DOCIDS for word in text.split()}
    for docid in docids[len(DOCIDS) :: 50]:
        written = chat.tokenizer.decode(docid).split()
        assert len(written) == 8 and set(written) <= real_words
