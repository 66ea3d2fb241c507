from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zerogr.test_decoding import EOS, Docid, TableModel, allowed_tokens, log_softmax, path_log_probs, some_docids
from zerogr.decoding.scoring import CallableScorer
from zerogr.decoding.trace import trace_batch
from zerogr.trie import DocidTrie


class TestTrace:
    """An explanation of other numbers than the search's would send people the wrong way."""

    @settings(deadline=None, max_examples=50)
    @given(docids=some_docids, seed=st.integers(0, 100))
    def test_is_what_the_search_saw(self, docids: list[Docid], seed: int) -> None:
        model, trie = TableModel(seed), DocidTrie.build(docids)
        wanted = sorted(set(docids))
        [traces] = trace_batch(CallableScorer(model), trie, [wanted], eos_token_id=EOS)
        assert len(model.asked) == len(set(model.asked))
        for docid, steps in zip(wanted, traces, strict=True):
            assert [step.token for step in steps] == [*docid, EOS]
            assert [step.log_prob for step in steps] == pytest.approx(path_log_probs(model, docids, docid), abs=1e-9)
            for i, step in enumerate(steps):
                allowed = allowed_tokens(docids, docid[:i])
                log_probs = dict(zip(allowed, log_softmax(model.logits(docid[:i])[allowed]), strict=True))
                if step.num_allowed > 1:
                    assert step.num_allowed == len(allowed)
                assert log_probs[step.best] == pytest.approx(step.best_log_prob) == max(log_probs.values())
                assert step.rank == 1 + sum(value > log_probs[step.token] for value in log_probs.values())

    def test_foreign_docids_are_refused(self) -> None:
        trie = DocidTrie.build([(0, 1, 3), (0, 4), (5,)])
        for docid in ((0, 3), (5, 1), (1,), (0,)):
            with pytest.raises(ValueError, match="the trie holds no docid"):
                trace_batch(CallableScorer(TableModel()), trie, [[docid]], eos_token_id=EOS)
