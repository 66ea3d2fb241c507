from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from zerogr.decoding import decode
from zerogr.decoding.language_model import CachedTreeScorer
from zerogr.trie import DocidTrie

V = 40
EOS = 2
PROMPT = [5, 9, 9, 31, 4]
SIZES = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=24)),
}
PREFIXES = [(), (3,), (3, 7), (3, 8), (12,), (12, 3), (12, 3, 7), (12, 3, 7, 1), (3, 7, 11)]


@pytest.fixture(autouse=True)
def one_thread():
    """On tiny models, threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def make(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    config._attn_implementation = attention
    model = model_class(config).eval()
    # Larger weights than the initial ones, so that a wrong mask or position changes the logits visibly.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.inference_mode()
def plain_logits(model, prefixes) -> np.ndarray:
    """The reference: every prefix on its own, no cache."""
    return np.stack([model(torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].float().numpy() for prefix in prefixes])


@pytest.mark.parametrize(("name", "attention"), [*((name, "sdpa") for name in MODELS), ("llama", "eager")])
class TestTreeAttention:
    """A wrong mask or position id only makes retrieval worse: nothing fails."""

    def test_equals_plain_decoding(self, name: str, attention: str) -> None:
        model = make(name, attention)
        scorer = CachedTreeScorer(model, PROMPT)
        reference = plain_logits(model, PREFIXES)
        order = np.random.default_rng(0).permutation(len(PREFIXES))
        for batch in np.array_split(order, 4):  # in any order, so that ancestors are missing and come later
            found = scorer([PREFIXES[i] for i in batch])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, reference[batch], atol=1e-4)
        assert scorer.num_forwards <= 5

    def test_missing_ancestors_and_repetitions(self, name: str, attention: str) -> None:
        model = make(name, attention)
        scorer = CachedTreeScorer(model, PROMPT)
        for prefixes in ([(12, 3, 7, 1), (12, 3)], [(12, 3, 7), (12,), (12, 3, 7)], [(12, 3, 7, 1), ()], [()]):
            np.testing.assert_allclose(scorer(prefixes), plain_logits(model, prefixes), atol=1e-4)
        assert scorer.num_forwards == 4  # the prompt's logits are kept


def test_bfloat16_stays_close() -> None:
    model = make("llama")
    reference = plain_logits(model, PREFIXES)
    found = CachedTreeScorer(model.to(torch.bfloat16), PROMPT)(PREFIXES)
    assert found.dtype == np.float32
    assert np.abs(found - reference).max() < 0.1 * np.abs(reference).max()


@pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
def test_best_first_equals_scoring_every_docid(normalise: str) -> None:
    model = make("llama")
    random = np.random.default_rng(1)
    docids = sorted({tuple(random.integers(3, 9, size=random.integers(1, 6)).tolist()) for _ in range(30)})
    found = decode(
        CachedTreeScorer(model, PROMPT), DocidTrie.build(docids), 10,
        eos_token_id=EOS, strategy="best_first", normalise=normalise,
    )  # fmt: skip

    def score(docid: tuple[int, ...]) -> float:
        path, total = (*docid, EOS), 0.0
        for i, token in enumerate(path):
            log_probs = torch.from_numpy(plain_logits(model, [path[:i]])[0]).double()
            others = [d for d in docids if d[:i] == path[:i]]
            allowed = sorted({(*d, EOS)[i] for d in others}) if normalise == "allowed" else list(range(V))
            total += float(log_probs[allowed].log_softmax(-1)[allowed.index(token)])
        return total

    expected = sorted(((score(d), d) for d in docids), reverse=True)[:10]
    assert [d.tokens for d in found] == [docid for _, docid in expected]
    assert [d.score for d in found] == pytest.approx([s for s, _ in expected], abs=1e-4)


def test_what_the_mask_cannot_express_is_refused() -> None:
    scorer = CachedTreeScorer(make("mistral"), PROMPT * 4)
    scorer([(1, 2, 3, 4)])
    with pytest.raises(ValueError, match="prompt and docid have 25 tokens, the model's window 24"):
        scorer([(1, 2, 3, 4, 5)])
    with pytest.raises(ValueError, match="at least one token"):
        CachedTreeScorer(make("llama"), [])
    model = make("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attn_implementation sdpa or eager, the model has 'flash_attention_2'"):
        CachedTreeScorer(model, PROMPT)
