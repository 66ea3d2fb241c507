"""Continuous decoding: whenever a search enters and whoever is beside it, it finds what it finds alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zerogr.decoding import decode_batch
from zerogr.decoding.language_model import TreeModel
from zerogr.decoding.pool import OpenScorer
from zerogr.decoding.scoring import Request
from zerogr.decoding.stream import Search, Stream
from zerogr.trie import DocidTrie

V, EOS = 40, 2
SHARED = [(5, 9, 9), (6,), ()]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> TreeModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    found = LlamaForCausalLM(config).eval()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return TreeModel(found)


@pytest.fixture(scope="module")
def trie() -> DocidTrie:
    draw = np.random.default_rng(0)
    return DocidTrie.build([draw.integers(3, 12, draw.integers(1, 6)).tolist() for _ in range(80)])


def drawn(draw: np.random.Generator, trie: DocidTrie) -> Search:
    """Returns a search at random."""
    strategy = str(draw.choice(["greedy", "beam", "nucleus", "reverse_annealing", "stochastic_beam", "best_first"]))
    options: dict[str, Any] = {"lookahead": 4} if strategy in ("greedy", "nucleus") else {}
    rows = draw.permutation(80)[: draw.integers(0, 80)]
    return Search(
        prompt=(SHARED[draw.integers(3)], draw.integers(3, V, draw.integers(1, 6)).tolist()),
        trie=[trie, trie.filter(allow=rows), trie.filter(deny=rows)][draw.integers(3)],
        k=int(draw.integers(1, 30)),
        strategy=strategy,
        seed=int(draw.integers(5)),
        normalise=str(draw.choice(["allowed", "vocabulary"])),
        options=options,
    )


def alone(model: TreeModel, search: Search) -> list[tuple[int, float]]:
    [found] = decode_batch(
        model.start([search.prompt]), search.trie, search.k, eos_token_id=EOS, strategy=search.strategy, seed=search.seed,
        normalise=search.normalise, **search.options,
    )  # fmt: skip
    return [(each.row, each.score) for each in found]


@pytest.mark.parametrize("seed", range(12))
def test_searches_that_come_and_go_find_what_they_find_alone(model: TreeModel, trie: DocidTrie, seed: int) -> None:
    draw = np.random.default_rng(seed)
    waiting = [drawn(draw, trie) for _ in range(14)]
    stream = Stream(model, eos_token_id=EOS)
    dropped, found = set(), {}
    every = list(waiting)
    while waiting or len(stream):
        for _ in range(draw.integers(0, 4)):
            if waiting:
                stream.enter(waiting.pop(0))
        if draw.random() < 0.2 and stream._searches:
            search = list(stream._searches)[0]
            stream.leave(search)
            dropped.add(search)
        for search, documents in stream.round():
            assert search not in found and search not in dropped
            found[search] = [(each.row, each.score) for each in documents]
    assert set(found) | dropped == set(every)
    for search, rows in found.items():
        expected = alone(model, search)
        assert [row for row, _ in rows] == [row for row, _ in expected]
        assert [score for _, score in rows] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_slots_are_given_back(model: TreeModel, trie: DocidTrie) -> None:
    """Else a service that runs for days holds the keys and values of everything that it was ever asked."""
    stream = Stream(model, eos_token_id=EOS)
    held = []
    for number in range(6):
        for other in range(3):
            stream.enter(Search(prompt=(SHARED[0], [7 + number, 4 + other]), trie=trie, k=20, strategy="beam"))
        while len(stream):
            list(stream.round())
        held.append(stream._scorer.num_slots_held)
        assert stream.num_slots <= 1 + len(SHARED[0])  # the instruction, and the empty slot
    assert len(set(held)) == 1


def test_memory_is_let_go_when_nobody_searches(model: TreeModel, trie: DocidTrie) -> None:
    stream = Stream(model, eos_token_id=EOS, most_slots=100)
    stream.enter(Search(prompt=((), [7]), trie=trie, k=60, strategy="best_first"))
    while len(stream):
        list(stream.round())
    assert stream._scorer.num_slots_held == 0


def test_a_mistake_of_one_search_leaves_the_others(model: TreeModel, trie: DocidTrie) -> None:
    stream = Stream(model, eos_token_id=EOS)
    good = Search(prompt=(SHARED[0], [7]), trie=trie, k=5, strategy="beam")
    stream.enter(good)
    for wrong in (
        Search(prompt=(SHARED[0], []), trie=trie, k=5, strategy="beam"),
        Search(prompt=(SHARED[0], [7]), trie=trie, k=0, strategy="beam"),
        Search(prompt=(SHARED[0], [7]), trie=trie, k=5, strategy="beams"),
        Search(prompt=(SHARED[0], [7]), trie=trie, k=5, strategy="beam", options={"width": 3}),
        Search(prompt=(SHARED[0], [7]), trie=trie, k=5, strategy="nucleus", options={"top_p": 7.0}),
    ):
        with pytest.raises(ValueError):
            stream.enter(wrong)
    assert len(stream) == 1
    found = {}
    while len(stream):
        found |= dict(stream.round())
    assert [(each.row, pytest.approx(each.score, abs=1e-4)) for each in found[good]] == alone(model, good)


def test_an_ancestor_that_was_passed_over_is_known_later(model: TreeModel) -> None:
    """A scorer is asked for a prefix whose state came with that of a longer one."""
    scorer = OpenScorer(model)
    query = scorer.enter((SHARED[0], [7, 8]))
    tokens = np.arange(V)
    [deep] = scorer.log_probs([Request(query, (3, 4, 5), tokens)], ["vocabulary"])
    [middle, root] = scorer.log_probs([Request(query, (3,), tokens), Request(query, (), tokens)], ["vocabulary"] * 2)
    fresh = model.start([(SHARED[0], [7, 8])])
    for found, prefix in ((deep, (3, 4, 5)), (middle, (3,)), (root, ())):
        assert np.allclose(found, fresh.log_probs([Request(0, prefix, tokens)], "vocabulary")[0], atol=1e-4)
