from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.decoding import STRATEGIES, Decoded, decode
from zerogr.decoding.schedule import temperature
from zerogr.trie import DocidTrie

V = 6
EOS = 2  # neither the smallest nor the largest token, so that the order of ties is seen
NORMALISATIONS = ("allowed", "vocabulary")

Docid = tuple[int, ...]

docids_strategy = st.lists(st.lists(st.sampled_from([0, 1, 3, 4, 5]), max_size=5).map(tuple), max_size=20)
some_docids = docids_strategy.filter(bool)


class TableModel:
    """Logits that depend on the prefix alone; remembers what it was asked."""

    def __init__(self, seed: int = 0, spread: float = 2.0):
        self.seed, self.spread = seed, spread
        self.asked: list[Docid] = []

    def logits(self, prefix: Docid) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(repr((self.seed, prefix)).encode()))
        return self.spread * random.normal(size=V)

    def __call__(self, prefixes: list[Docid]) -> np.ndarray:
        self.asked += prefixes
        return np.stack([self.logits(prefix) for prefix in prefixes])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def allowed_tokens(docids: list[Docid], prefix: Docid) -> list[int]:
    ended = [(*docid, EOS) for docid in docids]
    return sorted({path[len(prefix)] for path in ended if path[: len(prefix)] == prefix and len(path) > len(prefix)})


def path_log_probs(
    model: TableModel, docids: list[Docid], docid: Docid, normalise: str = "allowed", at: float = 1.0
) -> list[float]:
    """Log-probability of each token of the docid and of its end, by definition."""
    log_probs = []
    path = (*docid, EOS)
    for i, token in enumerate(path):
        allowed = allowed_tokens(docids, path[:i])
        logits = model.logits(path[:i]) / at
        if normalise == "allowed":
            log_probs.append(log_softmax(logits[allowed])[allowed.index(token)])
        else:
            log_probs.append(log_softmax(logits)[token])
    return log_probs


def exhaustive(model: TableModel, docids: list[Docid], normalise: str) -> list[Decoded]:
    """All documents, ranked by likelihood."""
    score = {docid: float(sum(path_log_probs(model, docids, docid, normalise))) for docid in set(docids)}
    ranked = sorted(score, key=lambda docid: (-score[docid], (*docid, EOS)))
    return [Decoded(row, d, score[d]) for d in ranked for row, other in enumerate(docids) if other == d]


def assert_same(found: list[Decoded], expected: list[Decoded]) -> None:
    assert [d[:2] for d in found] == [d[:2] for d in expected]
    assert [d.score for d in found] == pytest.approx([d.score for d in expected], abs=1e-9)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(
    ("strategy", "options"), [*((s, {}) for s in STRATEGIES), ("reverse_annealing", {"without_replacement": "exact"})]
)
class TestEveryStrategy:
    """What holds for any strategy, whatever the docids."""

    @settings(deadline=None, max_examples=25)
    @given(docids=docids_strategy, k=st.integers(1, 25), seed=st.integers(0, 2**64 - 1))
    def test_distinct_documents_with_their_scores(self, strategy, options, normalise, docids, k, seed) -> None:
        model = TableModel(seed % 100)
        decoded = decode(
            model,
            DocidTrie.build(docids),
            k,
            eos_token_id=EOS,
            strategy=strategy,
            seed=seed,
            normalise=normalise,
            **options,
        )
        assert len(decoded) == min(k, len(docids))
        rows = [d.row for d in decoded]
        assert len(set(rows)) == len(rows)
        assert [d.tokens for d in decoded] == [docids[row] for row in rows]
        expected = [sum(path_log_probs(model, docids, d.tokens, normalise)) for d in decoded]
        assert [d.score for d in decoded] == pytest.approx(expected, abs=1e-9)
        # Documents that share a docid come out together, in row order.
        in_order = list(dict.fromkeys(d.tokens for d in decoded))
        assert rows == [row for tokens in in_order for row, docid in enumerate(docids) if docid == tokens][:k]

        again = decode(
            TableModel(seed % 100), DocidTrie.build(docids), k,
            eos_token_id=EOS, strategy=strategy, seed=seed, normalise=normalise, **options,
        )  # fmt: skip
        assert again == decoded

    @settings(deadline=None, max_examples=25)
    @given(docids=some_docids, k=st.integers(1, 25))
    def test_the_model_is_asked_once_and_only_where_it_matters(self, strategy, options, normalise, docids, k) -> None:
        model = TableModel()
        decoded = decode(
            model, DocidTrie.build(docids), k, eos_token_id=EOS, strategy=strategy, normalise=normalise, **options
        )
        assert len(set(model.asked)) == len(model.asked) == decoded.num_scored
        if normalise == "allowed":
            assert all(len(allowed_tokens(docids, prefix)) > 1 for prefix in model.asked)

    @settings(deadline=None, max_examples=40)
    @given(docids=some_docids, k=st.integers(1, 25), data=st.data())
    def test_some_documents_only(self, strategy, options, normalise, docids, k, data) -> None:
        """A filter answers as if the trie had been built from the documents that are left."""
        rows = st.sets(st.integers(0, len(docids) - 1))
        allow, deny = data.draw(st.none() | rows), data.draw(rows)
        left = [row for row in range(len(docids)) if (allow is None or row in allow) and row not in deny]
        decode_from = dict(k=k, eos_token_id=EOS, strategy=strategy, seed=1, normalise=normalise, **options)
        trie = DocidTrie.build(docids).filter(allow=None if allow is None else sorted(allow), deny=sorted(deny))
        found = decode(TableModel(), trie, **decode_from)
        expected = decode(TableModel(), DocidTrie.build([docids[row] for row in left]), **decode_from)
        assert found == [Decoded(left[row], tokens, score) for row, tokens, score in expected]
        assert (found.num_scored, found.num_rounds) == (expected.num_scored, expected.num_rounds)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
class TestExactSearch:
    """Strategies that promise the true ranking, against scoring every docid."""

    @settings(deadline=None, max_examples=40)
    @given(docids=some_docids, k=st.integers(1, 25), batch_size=st.integers(1, 8), seed=st.integers(0, 999))
    def test_best_first(self, normalise, docids, k, batch_size, seed) -> None:
        model = TableModel(seed)
        found = decode(
            model, DocidTrie.build(docids), k,
            eos_token_id=EOS, strategy="best_first", normalise=normalise, batch_size=batch_size,
        )  # fmt: skip
        assert_same(found, exhaustive(model, docids, normalise)[:k])
        assert not found.bound_hit

    @settings(deadline=None, max_examples=40)
    @given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 999))
    def test_beam_as_wide_as_the_trie(self, normalise, docids, k, seed) -> None:
        model = TableModel(seed)
        found = decode(
            model, DocidTrie.build(docids), k,
            eos_token_id=EOS, strategy="beam", normalise=normalise, beam_width=max(k, len(docids)),
        )  # fmt: skip
        assert_same(found, exhaustive(model, docids, normalise)[:k])

    @settings(deadline=None, max_examples=40)
    @given(docids=some_docids, k=st.integers(1, 25), bound=st.integers(1, 6))
    def test_best_first_with_a_bound_says_when_it_is_hit(self, normalise, docids, k, bound) -> None:
        model = TableModel()
        found = decode(
            model, DocidTrie.build(docids), k,
            eos_token_id=EOS, strategy="best_first", normalise=normalise, max_expansions=bound, batch_size=1,
        )  # fmt: skip
        assert len({d.row for d in found}) == min(k, len(docids))
        if not found.bound_hit:
            assert_same(found, exhaustive(model, docids, normalise)[:k])


def test_the_bound_of_best_first_is_hit_where_the_search_needs_more() -> None:
    docids = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    bounded = decode(
        TableModel(),
        DocidTrie.build(docids),
        8,
        eos_token_id=EOS,
        strategy="best_first",
        max_expansions=3,
        batch_size=1,
    )
    assert bounded.bound_hit and len(bounded) == 8
    free = decode(TableModel(), DocidTrie.build(docids), 8, eos_token_id=EOS, strategy="best_first")
    assert not free.bound_hit


def test_beam_narrower_than_the_trie_keeps_the_best_prefixes() -> None:
    # Token 0 has .6 at first, but its docids share that evenly; below token 1 one docid takes nearly all of .4.
    docids = [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1)]
    table = {(): [0.6, 0.4], (0,): [0.25] * 4, (1,): [0.99, 0.01]}

    def scores(prefixes: list[Docid]) -> np.ndarray:
        logits = np.full((len(prefixes), V), -50.0)
        for row, prefix in zip(logits, prefixes, strict=True):
            row[allowed_tokens(docids, prefix)] = np.log(table[prefix])
        return logits

    def found(**options) -> list[Docid]:
        decoded = decode(scores, DocidTrie.build(docids), 1, eos_token_id=EOS, strategy="beam", **options)
        return [d.tokens for d in decoded]

    assert found() == [(0, 0)]
    assert found(beam_width=2) == [(1, 0)]


@pytest.mark.parametrize("strategy", ["greedy", "beam", "best_first"])
def test_ties_go_to_the_smaller_token_then_the_smaller_row(strategy: str) -> None:
    docids = [(5,), (3, 4), (3,), (1,), (3, 1), (5,), (0,)]
    # Two choices of three tokens each everywhere, all alike: the end token, 2, is smaller than 3 and 4.
    decoded = decode(
        lambda prefixes: np.zeros((len(prefixes), V)), DocidTrie.build(docids), 7, eos_token_id=EOS, strategy=strategy
    )
    by_depth = [6, 3, 0, 5, 4, 2, 1]  # (0), (1), (5) twice: 1/4 each; below 3 in token order: (3, 1), (3, end), (3, 4)
    by_token = [6, 3, 4, 2, 1, 0, 5]
    assert [d.row for d in decoded] == (by_token if strategy == "greedy" else by_depth)


@settings(deadline=None, max_examples=40)
@given(docids=some_docids, seed=st.integers(0, 999))
def test_greedy_repeats_the_walk_along_the_best_remaining_tokens(docids: list[Docid], seed: int) -> None:
    model = TableModel(seed)
    remaining, expected = set(docids), []
    while remaining:
        path: Docid = ()
        while EOS not in path:
            tokens = allowed_tokens(list(remaining), path)
            path = (*path, tokens[int(np.argmax(model.logits(path)[tokens]))])
        expected.append(path[:-1])
        remaining.remove(path[:-1])
    decoded = decode(model, DocidTrie.build(docids), len(docids), eos_token_id=EOS, strategy="greedy")
    assert list(dict.fromkeys(d.tokens for d in decoded)) == expected


@settings(deadline=None, max_examples=40)
@given(docids=some_docids, k=st.integers(1, 25), seed=st.integers(0, 999), lookahead=st.integers(2, 30))
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("greedy", {}),
        ("nucleus", {"top_p": 0.7}),
        ("reverse_annealing", {"schedule_length": 10}),
        ("reverse_annealing", {"schedule_length": 10, "without_replacement": "exact"}),
    ],
)
def test_draws_side_by_side_equal_draws_one_by_one(strategy, options, docids, k, seed, lookahead) -> None:
    def run(lookahead: int) -> list[Decoded]:
        return decode(
            TableModel(seed), DocidTrie.build(docids), k,
            eos_token_id=EOS, strategy=strategy, seed=seed, lookahead=lookahead, **options,
        )  # fmt: skip

    side_by_side, one_by_one = run(lookahead), run(1)
    assert side_by_side == one_by_one
    assert side_by_side.num_rounds <= one_by_one.num_rounds


def test_side_by_side_needs_no_more_rounds_than_the_trie_is_deep() -> None:
    docids = [(a, b, c) for a in (0, 1, 3) for b in (0, 1, 3) for c in (0, 1, 3)]
    trie = DocidTrie.build(docids)
    for strategy in ("greedy", "nucleus", "reverse_annealing"):
        assert decode(TableModel(), trie, 27, eos_token_id=EOS, strategy=strategy).num_rounds == 3


class TestDistributions:
    """Sampling that is subtly wrong still returns plausible docids: compare with the enumerated probabilities."""

    docids = [(0, 0), (0, 1), (0,), (1, 3), (1, 4), (3,)]
    model = TableModel(seed=3, spread=1.0)
    num_seeds = 3000

    def leaf_probs(self, at: float, remaining: list[Docid] | None = None) -> dict[Docid, float]:
        """Probability of each remaining docid in one draw at a temperature, renormalised node by node."""
        among = self.docids if remaining is None else remaining
        return {d: math.exp(sum(path_log_probs(self.model, among, d, at=at))) for d in among}

    def enumerate_draws(self, temperatures: list[float], mode: str) -> dict[tuple[Docid, ...], float]:
        """Probability of every sequence of draws."""
        sequences: dict[tuple[Docid, ...], float] = {(): 1.0}
        for at in temperatures:
            longer = {}
            for drawn, probability in sequences.items():
                remaining = [d for d in self.docids if d not in drawn]
                if mode == "local":
                    probs = self.leaf_probs(at, remaining)
                else:
                    whole = self.leaf_probs(at)
                    left = sum(whole[d] for d in remaining)
                    probs = {d: whole[d] / left for d in remaining}
                for docid, p in probs.items():
                    longer[*drawn, docid] = probability * p
            sequences = longer
        assert sum(sequences.values()) == pytest.approx(1)
        return sequences

    def sample(self, k: int, **options) -> Counter[tuple[Docid, ...]]:
        trie = DocidTrie.build(self.docids)
        logits = {p: self.model.logits(p) for p in [(), (0,), (1,)]}

        def scores(prefixes: list[Docid]) -> np.ndarray:
            return np.stack([logits[p] for p in prefixes])

        draws = (decode(scores, trie, k, eos_token_id=EOS, seed=seed, **options) for seed in range(self.num_seeds))
        return Counter(tuple(d.tokens for d in decoded) for decoded in draws)

    def excess(self, counts: Counter[tuple[Docid, ...]], probs: dict[tuple[Docid, ...], float]) -> float:
        """The chi-square statistic over the value that a correct sampler passes once in a million."""
        assert set(counts) <= set(probs)
        expected = {outcome: p * self.num_seeds for outcome, p in probs.items()}
        common = [outcome for outcome, e in expected.items() if e >= 5]
        rare = self.num_seeds - sum(expected[outcome] for outcome in common)
        cells = [(counts[outcome], expected[outcome]) for outcome in common]
        if rare >= 5:
            cells.append((self.num_seeds - sum(counts[outcome] for outcome in common), rare))
        freedom = len(cells) - 1
        statistic = sum((observed - e) ** 2 / e for observed, e in cells)
        z = 4.7534  # Wilson and Hilferty's approximation of the quantile
        return statistic / (freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3)

    @pytest.mark.parametrize("mode", ["local", "exact"])
    def test_reverse_annealing(self, mode: str) -> None:
        temperatures = [temperature(draw, 4) for draw in (1, 2)]
        greedy = decode(self.model, DocidTrie.build(self.docids), 1, eos_token_id=EOS, strategy="greedy")[0].tokens
        counts = self.sample(3, strategy="reverse_annealing", schedule_length=4, without_replacement=mode)
        assert self.excess(counts, self.enumerate_after(greedy, temperatures, mode)) < 1
        other = self.enumerate_after(greedy, temperatures, "exact" if mode == "local" else "local")
        assert self.excess(counts, other) > 1, "the two modes must be told apart by this test"

    def enumerate_after(self, first: Docid, temperatures: list[float], mode: str) -> dict[tuple[Docid, ...], float]:
        """Probability of every sequence that begins with the given draw."""
        sequences = self.enumerate_draws([1.0, *temperatures], mode)
        begun = {outcome: p for outcome, p in sequences.items() if outcome[0] == first}
        return {outcome: p / sum(begun.values()) for outcome, p in begun.items()}

    def test_nucleus_of_everything(self) -> None:
        counts = self.sample(2, strategy="nucleus", top_p=1.0, temperature=0.8)
        assert self.excess(counts, self.enumerate_draws([0.8, 0.8], "local")) < 1

    def test_nucleus_leaves_out_what_is_beyond_top_p(self) -> None:
        probs = log_softmax(self.model.logits(())[[0, 1, 3]])
        two_best = float(sum(sorted(np.exp(probs))[1:]))
        drawn = self.sample(1, strategy="nucleus", top_p=two_best - 1e-6)
        assert {docid[0] for (docid,) in drawn} == {0, 1, 3} - {(0, 1, 3)[int(np.argmin(probs))]}

    def test_stochastic_beam(self) -> None:
        counts = self.sample(2, strategy="stochastic_beam", temperature=1.3)
        assert self.excess(counts, self.enumerate_draws([1.3, 1.3], "exact")) < 1


@settings(deadline=None)
@given(docids=some_docids)
def test_the_smallest_nucleus_is_greedy(docids: list[Docid]) -> None:
    trie = DocidTrie.build(docids)
    nucleus = decode(TableModel(), trie, 20, eos_token_id=EOS, strategy="nucleus", top_p=1e-9)
    assert nucleus == decode(TableModel(), trie, 20, eos_token_id=EOS, strategy="greedy")


def test_another_seed_gives_another_sample() -> None:
    trie = DocidTrie.build([(a, b) for a in (0, 1, 3, 4) for b in (0, 1, 3, 4)])
    for strategy in ("nucleus", "reverse_annealing", "stochastic_beam"):
        answers = {
            tuple(decode(TableModel(), trie, 16, eos_token_id=EOS, strategy=strategy, seed=seed)) for seed in range(5)
        }
        assert len(answers) == 5


def test_very_low_temperatures_and_very_unlikely_docids_do_not_run_dry() -> None:
    docids = [(a, b) for a in (0, 1, 3) for b in (0, 1, 3)]
    for mode in ("local", "exact"):
        decoded = decode(
            TableModel(spread=300.0), DocidTrie.build(docids), 9,
            eos_token_id=EOS, strategy="reverse_annealing", schedule_length=10_000, without_replacement=mode,
        )  # fmt: skip
        assert len({d.row for d in decoded}) == 9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_docid_needs_no_model(strategy: str) -> None:
    def no_model(prefixes: list[Docid]) -> np.ndarray:
        raise AssertionError(f"asked for {prefixes}")

    decoded = decode(no_model, DocidTrie.build([(1, 0, 5), (1, 0, 5)]), 9, eos_token_id=EOS, strategy=strategy)
    assert decoded == [Decoded(0, (1, 0, 5), 0.0), Decoded(1, (1, 0, 5), 0.0)]
    assert decode(no_model, DocidTrie.build([]), 9, eos_token_id=EOS, strategy=strategy) == []


def test_documents_that_share_a_docid_are_cut_at_k() -> None:
    trie = DocidTrie.build([(1,), (0,), (1,), (1,), (0,)])
    decoded = decode(TableModel(), trie, 4, eos_token_id=EOS, strategy="greedy")
    assert [d.row for d in decoded] in ([0, 2, 3, 1], [1, 4, 0, 2])


def test_schedule() -> None:
    assert temperature(0, 100) == 0
    assert temperature(100, 100) == temperature(150, 100) == pytest.approx(1.5)
    published = {1: 0.041, 5: 0.223, 10: 0.474, 15: 0.725, 20: 0.948, 30: 1.256, 50: 1.463, 99: 1.500}
    assert {draw: round(temperature(draw, 100), 3) for draw in published} == published
    assert temperature(3, 3, max_temperature=0.7) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "beem"}, "unknown strategy 'beem'; did you mean 'beam'?"),
        ({"strategy": "beam", "beamwidth": 3}, "unknown option of beam 'beamwidth'; did you mean 'beam_width'?"),
        ({"strategy": "beam", "tree": 3}, "unknown option of beam 'tree'"),
        ({"strategy": "beam", "normalise": "vocab"}, "unknown normalisation 'vocab'; did you mean 'vocabulary'?"),
        ({"strategy": "beam", "beam_width": 1}, "beam_width must be at least k = 2, got 1"),
        ({"strategy": "nucleus", "top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"strategy": "greedy", "lookahead": 0}, "lookahead must be at least 1, got 0"),
        ({"strategy": "reverse_annealing", "without_replacement": "none"}, "must be local or exact, got 'none'"),
        ({"strategy": "greedy", "k": 0}, "k must be at least 1, got 0"),
        ({"strategy": "greedy", "eos_token_id": 4}, "the end token 4 occurs inside a docid"),
    ],
)
def test_misuse_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        decode(TableModel(), DocidTrie.build([(1, 4), (1, 3)]), **{"k": 2, "eos_token_id": EOS, **arguments})
    assert message in str(error.value)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must be finite"):
        decode(
            lambda prefixes: np.full((len(prefixes), V), np.nan),
            DocidTrie.build([(1,), (3,)]), 2, eos_token_id=EOS, strategy="beam",
        )  # fmt: skip
