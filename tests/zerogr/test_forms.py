from __future__ import annotations

import math
import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zerogr.test_decoding import EOS, NORMALISATIONS, TableModel, path_log_probs
from tests.zerogr.test_trie import nodes_by_prefix
from zerogr.decoding import STRATEGIES, decode
from zerogr.decoding.scoring import CallableScorer
from zerogr.decoding.trace import trace_batch
from zerogr.docids.forms import form_for, forms
from zerogr.training.choices import Choices
from zerogr.trie import DocidTrie

WORDS = "lift drag wing flow heat".split()
TOKENS = {"lift": (0,), "drag": (0, 1), "wing": (3,), "flow": (4, 1), "heat": (5,)}
"""Words as tokens: the first is the beginning of the second, as `lift` is of `lifting`."""

docids_strategy = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True).map(" ".join), min_size=1, max_size=8
)


def tokens_of(form: str) -> tuple[int, ...]:
    return tuple(token for word in form.split() for token in TOKENS[word])


def build(docids: list[str], num_free_words: int) -> tuple[DocidTrie, list[list[tuple[int, ...]]]]:
    """Returns the trie and, by document, the tokens of its forms."""
    written = [list(map(tokens_of, forms(docid, num_free_words))) for docid in docids]
    rows = [row for row, of_docid in enumerate(written) for _ in of_docid]
    return DocidTrie.build([form for of_docid in written for form in of_docid], rows), written


class TestForms:
    def test_by_the_number_of_free_words(self) -> None:
        assert forms("a b c", 0) == ["a b c"]
        assert forms("a b c", 1) == ["a b c", "b a c", "c a b"]
        assert sorted(forms("a b c", 2)) == sorted(map(" ".join, permutations("abc")))
        assert len(forms("a b c d e f g h", 2)) == 56
        assert forms("a", 2) == ["a"]

    def test_a_word_that_comes_twice(self) -> None:
        assert forms("the art of the deal", 1) == [
            "the art of the deal", "art the of the deal", "of the art the deal", "deal the art of the",
        ]  # fmt: skip

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(0, 2), st.text("liftdragw ng"))
    def test_a_query_teaches_one_of_them(self, parts: list[str], num_free_words: int, query: str) -> None:
        docid = " ".join(parts)
        form = form_for(query, docid, num_free_words, lambda word: 1.0, random.Random(0))
        assert form in forms(docid, num_free_words)

    def test_words_that_the_query_names_come_first(self) -> None:
        docid = "boundary layer slipstream lift"
        taught = [
            form_for("The lift of wings in slipstreams", docid, 2, len, random.Random(seed)) for seed in range(40)
        ]
        assert set(taught) == {"slipstream lift boundary layer", "lift slipstream boundary layer"}
        assert taught.count("slipstream lift boundary layer") > 20  # the heavier word more often
        first = {form_for("lift, slipstream", docid, 1, len, random.Random(seed)) for seed in range(40)}
        assert first == {"slipstream boundary layer lift", "lift boundary layer slipstream"}
        assert form_for("something else", docid, 2, len, random.Random(0)) == docid
        assert form_for("lift", docid, 0, len, random.Random(0)) == docid


class TestTrie:
    """Of the forms below a prefix that one document has alone, one is kept; a form too few would hide a document."""

    @settings(deadline=None, max_examples=150)
    @given(docids_strategy, st.integers(1, 2))
    def test_against_brute_force(self, docids: list[str], num_free_words: int) -> None:
        trie, written = build(docids, num_free_words)
        rows_of = {
            form: {row for row, of_docid in enumerate(written) if form in of_docid}
            for of_docid in written
            for form in of_docid
        }

        def documents_below(prefix: tuple[int, ...]) -> set[frozenset[int]]:
            return {frozenset(rows) for form, rows in rows_of.items() if form[: len(prefix)] == prefix}

        kept: dict[tuple[int, ...], list[int]] = {}
        for prefix, node in nodes_by_prefix(trie).items():
            if len(rows := trie.ends(node)):
                kept[prefix] = rows.tolist()
        for form, rows in rows_of.items():
            alone = next((i for i in range(len(form) + 1) if len(documents_below(form[:i])) == 1), None)
            twins = [other for other in kept if alone is not None and other[:alone] == form[:alone]]
            if alone is None:  # another docid goes on where it ends
                assert kept[form] == sorted(rows)
            else:
                assert len(twins) == 1 and kept[twins[0]] == sorted(rows)
        assert set(kept) <= set(rows_of)
        assert (trie.num_docids, trie.num_rows) == (len(kept), len(docids))

        for row in range(len(docids)):
            places = trie.docids_of_rows([row]).tolist()
            assert places and sorted(places) == places
            assert all(row in trie.docid_documents(place) for place in places)
        every = [trie.docids_of_rows([row]).tolist() for row in range(len(docids))]
        assert trie.docids_of_rows(range(len(docids))).tolist() == [place for places in every for place in places]
        assert sum(map(len, every)) == len(trie.row_order)

    def test_one_document_needs_one_form(self) -> None:
        trie, _ = build(["lift wing heat"], 2)
        assert (trie.num_docids, trie.num_rows) == (1, 1)

    @pytest.mark.parametrize(
        ("rows", "complaint"),
        [
            ([0], "a document for each of 2 docids, got 1"),
            ([0, 2], "stay or rise by 1"),
            ([1, 1], "must begin with 0"),
            ([0, -1], "stay or rise by 1"),
        ],
    )
    def test_rows_that_name_no_documents(self, rows: list[int], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            DocidTrie.build([[1], [3]], rows)

    @settings(deadline=None, max_examples=60)
    @given(docids_strategy, st.integers(1, 2))
    def test_every_form_can_be_taught(self, docids: list[str], num_free_words: int) -> None:
        trie, written = build(docids, num_free_words)
        choices = Choices(trie, EOS)
        for row, of_docid in enumerate(written):
            for form in of_docid:
                taught = choices.open_part(form)
                choices.along([taught])  # raises where the trie does not allow it
                node = trie.root
                for token in taught:
                    if token != EOS:
                        tokens, nodes = trie.children(node)
                        node = int(nodes[tokens.tolist().index(token)])
                assert row in trie.rows(node)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(
    ("strategy", "options"), [*((s, {}) for s in STRATEGIES), ("reverse_annealing", {"without_replacement": "exact"})]
)
class TestEveryStrategy:
    """A document with many forms must not take the places of others, nor come twice."""

    @settings(deadline=None, max_examples=30)
    @given(docids=docids_strategy, k=st.integers(1, 10), seed=st.integers(0, 99), num_free_words=st.integers(1, 2))
    def test_k_documents(self, strategy, options, normalise, docids, k, seed, num_free_words) -> None:
        trie, written = build(docids, num_free_words)
        in_trie = [
            prefix for prefix, node in nodes_by_prefix(trie).items() if len(trie.ends(node))
        ]  # what the trie kept of the forms is, for the decoder, what there is
        decode_from = dict(k=k, eos_token_id=EOS, strategy=strategy, seed=seed, normalise=normalise, **options)
        found = decode(TableModel(seed), trie, **decode_from)
        assert len(found) == min(k, len(docids)) == len({each.row for each in found})
        for each in found:
            assert each.tokens in written[each.row]
            scores = [
                sum(path_log_probs(TableModel(seed), in_trie, form, normalise))
                for form in in_trie
                if form in written[each.row]
            ]
            assert each.score <= np.logaddexp.reduce(scores) + 1e-9
            assert each.score >= sum(path_log_probs(TableModel(seed), in_trie, each.tokens, normalise)) - 1e-9
        if strategy in ("beam", "best_first"):
            assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        assert decode(TableModel(seed), trie, **decode_from) == found

    @settings(deadline=None, max_examples=20)
    @given(docids=docids_strategy, k=st.integers(1, 10), data=st.data())
    def test_some_documents_only(self, strategy, options, normalise, docids, k, data) -> None:
        allow = sorted(data.draw(st.sets(st.integers(0, len(docids) - 1))))
        trie, _ = build(docids, 2)
        view = trie.filter(allow=allow)
        found = decode(TableModel(), view, k=k, eos_token_id=EOS, strategy=strategy, normalise=normalise, **options)
        assert {each.row for each in found} <= set(allow)
        assert len(found) == min(k, len(allow))
        denied = sorted(set(range(len(docids))) - set(allow))
        twin = trie.filter(deny=denied)
        assert found == decode(
            TableModel(), twin, k=k, eos_token_id=EOS, strategy=strategy, normalise=normalise, **options
        )


def test_a_beam_over_everything_sums_the_forms() -> None:
    docids = ["lift wing", "wing heat", "heat lift flow"]
    trie, written = build(docids, 2)
    in_trie = [prefix for prefix, node in nodes_by_prefix(trie).items() if len(trie.ends(node))]
    found = decode(TableModel(), trie, k=3, eos_token_id=EOS, strategy="beam", beam_width=50)
    for each in found:
        scores = [sum(path_log_probs(TableModel(), in_trie, form)) for form in in_trie if form in written[each.row]]
        assert each.score == pytest.approx(np.logaddexp.reduce(scores), abs=1e-9)
    assert math.fsum(math.exp(each.score) for each in found) == pytest.approx(1)


def test_a_trace_follows_the_form_that_the_model_would_write() -> None:
    docids = ["lift wing", "wing heat", "heat lift flow"]
    trie, written = build(docids, 2)
    [traces] = trace_batch(CallableScorer(TableModel()), trie, [written], eos_token_id=EOS)
    in_trie = [prefix for prefix, node in nodes_by_prefix(trie).items() if len(trie.ends(node))]
    for row, steps in enumerate(traces):
        *tokens, end = (step.token for step in steps)
        assert end == EOS and tuple(tokens) in written[row]
        log_probs = path_log_probs(TableModel(), in_trie, tuple(tokens))
        assert [step.log_prob for step in steps] == pytest.approx(log_probs, abs=1e-9)
        firsts = {form[0]: path_log_probs(TableModel(), in_trie, form)[0] for form in written[row] if form in in_trie}
        assert tokens[0] == max(firsts, key=lambda token: firsts[token])
