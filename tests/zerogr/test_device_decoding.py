"""Decoding as array programs: they answer what the policies answer, which are the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.launches import Launches
from tests.zerogr.test_decoding import EOS, NORMALISATIONS, Docid, TableModel, docids_strategy
from tests.zerogr.test_language_model import MODELS, PROMPTS, V, make
from zerogr.decoding import DecodedList, decode, decode_batch
from zerogr.decoding.device.decoder import MAX_TRIES, DeviceDecoder, documents, search
from zerogr.decoding.device.exact import most_probable
from zerogr.decoding.device.frontier import Frontier, Options
from zerogr.decoding.device.model import Head, PathScorer
from zerogr.decoding.device.programs import Setting, program
from zerogr.decoding.device.trie import TOKEN, DeviceTrie
from zerogr.decoding.language_model import TreeModel
from zerogr.llm.paths import PathReader, Prompts
from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie

CPU = torch.device("cpu")
STRATEGIES = (
    ("greedy", {}),
    ("nucleus", {"top_p": 0.6}),
    ("nucleus", {"top_p": 1.0, "temperature": 2.0}),
    ("reverse_annealing", {}),
    ("reverse_annealing", {"schedule_length": 7, "max_temperature": 0.7}),
    ("beam", {}),
    ("best_first", {"max_expansions": 10_000}),
    ("stochastic_beam", {}),
    ("stochastic_beam", {"temperature": 1.7}),
)


class TableScorer:
    """Table models, one per query, as a scorer of frontiers."""

    def __init__(self, models: list[TableModel], trie: DeviceTrie) -> None:
        self.num_queries, self._models, self._trie = len(models), models, trie
        self._read: list[list[Docid]] = [[] for _ in models]
        self._prefixes: list[list[Docid]] = [[()] for _ in models]

    def extend(self, frontier: Frontier) -> None:
        tokens = self._trie.tokens[frontier.info[..., TOKEN]].tolist()
        for query, ancestors in enumerate(frontier.ancestors.tolist()):
            read = self._read[query]
            parents = [read[path[-2]] if len(path) > 1 else () for path in ancestors]
            self._prefixes[query] = [(*parent, token) for parent, token in zip(parents, tokens[query], strict=True)]
            assert [path[-1] for path in ancestors] == list(range(len(read), len(read) + len(ancestors)))
            read += self._prefixes[query]

    def log_probs(self, options: Options, normalise: str) -> torch.Tensor:
        found = []
        for model, prefixes, owners, tokens in zip(
            self._models, self._prefixes, options.owner.tolist(),
            self._trie.tokens[options.info[..., TOKEN]].tolist(), strict=True,
        ):  # fmt: skip
            logits = np.stack([model.logits(prefix) for prefix in prefixes])
            if normalise == "vocabulary":
                logits = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found.append(logits[owners, tokens])
        return torch.from_numpy(np.stack(found))


def on_device(models, trie, k, strategy, seed, normalise, options) -> list[DecodedList]:
    if trie.num_docids == 0:
        return [DecodedList() for _ in models]
    is_view = isinstance(trie, FilteredTrie)
    device_trie = DeviceTrie(trie.whole if is_view else trie, EOS, CPU)
    device_trie = device_trie.restricted(trie) if is_view else device_trie
    setting = Setting(device_trie, k, normalise)
    if trie.num_docids == 1 and normalise == "allowed":
        return []
    if strategy == "best_first":
        known = search(program("beam", setting, {}), setting, TableScorer(models, device_trie))
        found, is_bounded = most_probable(setting, lambda _: TableScorer(models, device_trie), known, **options)
        assert not is_bounded.any()
        return documents(found, setting)
    wanted = program(strategy, setting, options)
    assert wanted is not None
    wanted.reseed(seed)
    return documents(search(wanted, setting, TableScorer(models, device_trie)), setting)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
class TestAnswersAreThoseOfTheReference:
    @settings(deadline=None, max_examples=60)
    @given(
        docids=docids_strategy, k=st.integers(1, 25), seed=st.integers(0, 2**64 - 1), spread=st.sampled_from([0.0, 2.0]),
        data=st.data(),
    )  # fmt: skip
    def test_whatever_the_docids(self, strategy, options, normalise, docids, k, seed, spread, data) -> None:
        """Ties (a spread of 0), filters, prefixes of each other, duplicates, fewer docids than k."""
        trie = DocidTrie.build(docids)
        if docids and data.draw(st.booleans()):
            rows = st.sets(st.integers(0, len(docids) - 1))
            allow, deny = data.draw(st.none() | rows), data.draw(rows)
            trie = trie.filter(allow=None if allow is None else sorted(allow), deny=sorted(deny))
        models = [TableModel(seed % 100 + query, spread) for query in range(3)]
        wanted = dict(strategy=strategy, seed=seed, normalise=normalise)
        expected = [decode(model, trie, k, eos_token_id=EOS, **wanted, **options) for model in models]
        for one, other in zip(on_device(models, trie, k, options=options, **wanted), expected, strict=False):
            assert [d[:2] for d in one] == [d[:2] for d in other]
            assert [d.score for d in one] == pytest.approx([d.score for d in other], abs=1e-9)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@settings(deadline=None, max_examples=60)
@given(docids=docids_strategy, k=st.integers(1, 8), more=st.integers(0, 12), seed=st.integers(0, 99))
def test_wider_beams(normalise, docids, k, more, seed) -> None:
    trie, models = DocidTrie.build(docids), [TableModel(seed)]
    options = {"beam_width": k + more}
    expected = decode(models[0], trie, k, eos_token_id=EOS, strategy="beam", normalise=normalise, **options)
    for found in on_device(models, trie, k, "beam", 0, normalise, options):
        assert [d[:2] for d in found] == [d[:2] for d in expected]


DOCIDS = [
    (3,), (3, 7), (3, 7, 11), (3, 8), (3, 8), (12,), (12, 3, 7, 1), (12, 3, 9), (30, 4, 4, 4, 4), (30, 4, 4, 5), (31,), (),
]  # fmt: skip


class TestRealModels:
    """Tiny models of every supported kind, with random weights."""

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("normalise", NORMALISATIONS)
    @pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
    def test_answers_are_those_of_the_reference(self, name, normalise, strategy, options) -> None:
        model = TreeModel(make(name))
        decoder, trie = DeviceDecoder(model), DocidTrie.build(DOCIDS)
        for searched in (trie, trie.filter(deny=[2, 11]), trie.filter(allow=[0, 3, 4, 6, 8, 9])):
            for k in (1, 4, 20):
                how = dict(eos_token_id=EOS, strategy=strategy, seed=3, normalise=normalise, **options)
                found = decoder.decode(PROMPTS, searched, k, **how)
                for one, other in zip(found, decode_batch(model.start(PROMPTS), searched, k, **how), strict=True):
                    assert [d[:2] for d in one] == [d[:2] for d in other]
                    assert [d.score for d in one] == pytest.approx([d.score for d in other], abs=1e-4)

    def test_neighbours_and_their_order_change_nothing(self) -> None:
        model = TreeModel(make("llama"))
        decoder, trie = DeviceDecoder(model), DocidTrie.build(DOCIDS)
        how = dict(eos_token_id=EOS, strategy="reverse_annealing", seed=1)
        together = decoder.decode(PROMPTS, trie, 8, **how)
        for prompt, expected in zip(PROMPTS[::-1], together[::-1], strict=True):
            [alone] = decoder.decode([prompt], trie, 8, **how)
            assert [d[:2] for d in alone] == [d[:2] for d in expected]

    def test_what_has_no_program_is_left_to_the_reference(self) -> None:
        decoder, trie = DeviceDecoder(TreeModel(make("llama"))), DocidTrie.build(DOCIDS)
        exact = {"strategy": "reverse_annealing", "without_replacement": "exact"}
        assert decoder.decode(PROMPTS, trie, 3, eos_token_id=EOS, **exact) is None
        assert decoder.decode(PROMPTS, DocidTrie.build([(3,)]), 3, eos_token_id=EOS, strategy="beam") is None
        window = DeviceDecoder(TreeModel(make("mistral")))
        assert window.decode([((), [3] * 23)], trie, 3, eos_token_id=EOS, strategy="beam") is None

    def test_few_views_are_kept(self) -> None:
        decoder, trie = DeviceDecoder(TreeModel(make("llama"))), DocidTrie.build(DOCIDS)
        how = dict(eos_token_id=EOS, strategy="beam")
        for denied in range(MAX_TRIES + 3):
            [found] = decoder.decode(PROMPTS[:1], trie.filter(deny=[denied % 9]), 20, **how)
            assert {d.row for d in found} == set(range(len(DOCIDS))) - {denied % 9}
        assert len(decoder._tries) <= MAX_TRIES

    def test_a_bound_on_the_work_is_told(self) -> None:
        docids = np.random.default_rng(0).integers(3, V - 1, size=(500, 4)).tolist()
        decoder, trie = DeviceDecoder(TreeModel(make("llama"))), DocidTrie.build(docids)
        how = dict(eos_token_id=EOS, strategy="best_first")
        bounded = decoder.decode(PROMPTS, trie, 20, max_expansions=2, **how)
        assert all(found.bound_hit and len(found) == 20 for found in bounded)
        assert not any(found.bound_hit for found in decoder.decode(PROMPTS, trie, 20, **how))


class TestLaunches:
    """A round outside the model is a fixed number of operators, whatever the batch, and waits for nothing."""

    @pytest.mark.parametrize(
        ("strategy", "options", "ceiling"),
        [
            ("beam", {}, 60),
            ("greedy", {}, 60),
            ("reverse_annealing", {}, 60),
            ("nucleus", {"top_p": 0.6}, 60),
            ("stochastic_beam", {}, 60),
        ],
    )
    def test_per_round(self, strategy, options, ceiling) -> None:
        random = np.random.default_rng(0)
        docids = random.integers(3, V - 1, size=(3000, 5)).tolist()
        trie = DeviceTrie(DocidTrie.build(docids), EOS, CPU)
        model = TreeModel(make("llama"))
        setting = Setting(trie, 20, "allowed")
        wanted = program(strategy, setting, options)
        assert wanted is not None
        counts, launches = [], Launches()

        def forward(*arguments: Any) -> torch.Tensor:
            with launches.paused():
                return PathReader._forward(scorer._reader, *arguments)

        for num_queries in (1, 5, 5):  # what is made once per batch size is made in the second one
            prompts = [((), [3, 4, 5 + i]) for i in range(num_queries)]
            scorer = PathScorer(
                model,
                Head(model, trie),
                trie,
                Prompts.of([own for _, own in prompts], CPU),
                setting.num_places(wanted.width),
            )
            scorer._reader._forward = forward
            state = wanted.begin(num_queries)
            for depth in range(setting.num_rounds):
                launches.operators.clear()
                with torch.inference_mode(), launches:
                    state = wanted.round(state, depth, lambda options: scorer.log_probs(options, "allowed"))  # noqa: B023
                    if depth + 1 < setting.num_rounds:
                        scorer.extend(state.frontier)
                assert launches.waits == 0
                counts.append((num_queries, depth, launches.count))
        assert setting.num_rounds > 2
        found = {
            count
            for num_queries, depth, count in counts[2 * setting.num_rounds :]
            if 0 < depth < setting.num_rounds - 1
        }
        assert max(found) <= ceiling, launches.operators
