from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from tests.examples import asked, example, targets
from tests.launches import Launches
from tests.zerogr.test_examples import computed, load, make_examples, pack
from tests.zerogr.test_training import SETTINGS
from zerogr.errors import UserError
from zerogr.ranking.likelihood import Likelihood, LikelihoodSettings
from zerogr.ranking.ranker import Data
from zerogr.retriever import Retriever
from zerogr.search.answer import Documents
from zerogr.search.writer import Writer
from zerogr.store import storage
from zerogr.training import learner as learner_module
from zerogr.training import normalisation, throughput
from zerogr.training.attention import BLOCKS, PACKED, packed_attention, register_packed
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, TextExample
from zerogr.training.learner import Learner, SelectedTargets, TrainingSettings, greedy_hits
from zerogr.training.log import TrainingLog
from zerogr.training.normalisation import Allowed
from zerogr.training.packing import passes
from zerogr.training.sizes import Sizes, sizes_for
from zerogr.training.throughput import Cost, Meter
from zerogr.trie import DocidTrie

pytestmark = pytest.mark.usefixtures("one_thread")


def after_steps(folder: Path, settings: TrainingSettings, num_steps: int = 2) -> tuple[Learner, list[float]]:
    """Returns a learner that has taken steps on all examples, and their losses."""
    model, chat = load(folder)
    examples, learner = make_examples(chat), Learner(model, settings)
    ids = np.arange(len(examples))
    return learner, [learner.step(learner.prepare(examples, ids), 1e-3).loss for _ in range(num_steps)]


class TestPasses:
    @pytest.mark.parametrize("pass_tokens", [64, 128, 300])
    def test_every_example_is_in_one_of_them(self, tiny_model: Path, pass_tokens: int) -> None:
        examples = make_examples(load(tiny_model)[1])
        found = passes(examples, np.arange(len(examples)), 64, pass_tokens)
        assert len(found) > 1
        pieces: Counter[tuple[int, ...]] = Counter()
        for batch in found:
            assert batch.tokens.numel() <= pass_tokens or len(batch.tokens) == 1
            for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
                pieces.update(tuple(tokens[segments == i].tolist()) for i in range(1, int(segments.max()) + 1))
        assert pieces == Counter(tuple(computed(examples, i)) for i in range(len(examples)))

    def test_the_rows_of_a_pass_are_of_like_lengths(self, tiny_model: Path) -> None:
        examples = make_examples(load(tiny_model)[1])
        lengths = [len(batch.tokens[0]) for batch in passes(examples, np.arange(len(examples)), 64, 128)]
        assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_their_gradients_add_up_to_those_of_one(self, tiny_model: Path, precision: Any) -> None:
        whole, losses = after_steps(tiny_model, replace(SETTINGS, precision=precision, pass_tokens=10**6))
        parts, losses_of_parts = after_steps(tiny_model, replace(SETTINGS, precision=precision, pass_tokens=64))
        assert losses_of_parts == pytest.approx(losses, rel=1e-4 if precision == "fp32" else 5e-3)
        if precision == "fp32":
            for name, weight in whole.weights.items():
                # AdamW's moments are linear and quadratic in the gradient; its weights forgive a wrong factor.
                one, two = (learner.optimizer.state[learner.weights[name]]["exp_avg"] for learner in (whole, parts))
                torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-3)
                assert one.abs().max() > 0, weight.shape

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_activations_computed_twice_give_the_same_weights(self, tiny_model: Path, precision: Any) -> None:
        weights, num_calls = [], []
        for activation_checkpointing in (False, True):
            model, chat = load(tiny_model)
            calls: list[int] = []
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            changes = {"precision": precision, "activation_checkpointing": activation_checkpointing}
            learner = Learner(model, replace(SETTINGS, **changes))
            learner.step(learner.prepare(make_examples(chat), np.arange(8)), 1e-3)
            weights.append(learner.weights)
            num_calls.append(len(calls))
        assert num_calls == [1, 2]
        assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


class TestPrecision:
    def test_the_model_computes_with_rounded_masters(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        start = {name: weight.clone() for name, weight in model.named_parameters()}
        learner = Learner(model, replace(SETTINGS, precision="bf16"))
        buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
        assert set(buffers.values()) == {torch.float32}  # rotary frequencies
        work = learner.prepare(make_examples(chat), np.arange(4))
        for _ in range(3):
            learner.step(work, 1e-6)  # far less than a bf16 weight can tell
        for name, weight in model.named_parameters():
            master = learner.weights[f"model.{name}"]
            assert weight.dtype == torch.bfloat16 and master.dtype == torch.float32
            assert torch.equal(weight, master.to(torch.bfloat16))
            assert (master - start[name]).abs().max() > 1e-6  # yet nothing is lost
        learner.release()
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        assert torch.equal(
            model.model.layers[0].mlp.up_proj.weight, learner.weights["model.model.layers.0.mlp.up_proj.weight"]
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_auto_is_what_the_device_is_fast_in(
        self, tiny_model: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(learner_module, "fastest_dtype", lambda device: dtype)
        model, _ = load(tiny_model)
        assert Learner(model, replace(SETTINGS, precision="auto")).dtype == dtype
        assert {weight.dtype for weight in model.parameters()} == {dtype}

    def test_the_losses_are_those_of_fp32(self, tiny_model: Path) -> None:
        _, exact = after_steps(tiny_model, SETTINGS, num_steps=4)
        _, rounded = after_steps(tiny_model, replace(SETTINGS, precision="bf16"), num_steps=4)
        assert rounded == pytest.approx(exact, rel=0.01)
        assert exact[-1] < exact[0]


DOCIDS = ["oven", "oven gear", "oven gear mast", "mast wind", "mast", "knight rook", "knight"]
"""Some of them prefixes of others."""
Trained = tuple[Any, Examples, DocidTrie, Choices]


@pytest.fixture
def trained(tiny_model: Path) -> Trained:
    """A model that has learnt some of its examples, of whole docids."""
    model, chat = load(tiny_model)
    trie = DocidTrie.build([chat.docid(docid) for docid in DOCIDS])
    examples = Examples.build(examples_of(DOCIDS), chat)
    learner = Learner(model, SETTINGS)
    for _ in range(12):
        learner.step(learner.prepare(examples, np.arange(len(examples))), 3e-3)
    learner.release()
    return model.eval(), examples, trie, Choices(trie, chat.end_token_id)


def examples_of(docids: list[str]) -> list[TextExample]:
    return [example("Find.", f"{docid} {i}", (docid, 1.0)) for i, docid in enumerate(docids * 3)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_learns_the_same(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, losses = after_steps(tiny_model, SETTINGS, num_steps=3)
    compiled, losses_compiled = after_steps(tiny_model, replace(SETTINGS, compile=True), num_steps=3)
    assert losses_compiled == pytest.approx(losses, rel=1e-4)
    for name, weight in plain.weights.items():
        torch.testing.assert_close(compiled.weights[name], weight, atol=1e-4, rtol=1e-3)
    assert any(file.suffix == ".so" for file in tmp_path.rglob("*"))  # it was compiled indeed


class TestGreedyHits:
    """Training reports the accuracy of decoding; a mask off by one token would promise what search does not keep."""

    @staticmethod
    def decoded(model: Any, prompt: list[int], trie: DocidTrie, end: int) -> list[int]:
        """The slow reference: one whole forward pass of the stock model per token."""
        node, written = trie.root, []
        while True:
            tokens, nodes = trie.children(node)
            allowed = sorted([*tokens.tolist(), *([end] if len(trie.ends(node)) else [])])
            logits = model(input_ids=torch.tensor([prompt + written])).logits[0, -1]
            token = allowed[int(logits[allowed].argmax())]
            written.append(token)
            if token == end:
                return written
            node = int(nodes[tokens.tolist().index(token)])

    def test_equal_those_of_decoding(self, trained: Trained) -> None:
        model, examples, trie, choices = trained
        expected = []
        for i in range(len(examples)):
            target = targets(examples, i)
            expected.append(self.decoded(model, asked(examples, i), trie, target[-1]) == target)
        assert 0 < sum(expected) < len(expected)
        module = SelectedTargets(model, Allowed())
        with torch.no_grad():
            for i, is_hit in enumerate(expected):
                batch = pack(examples, [i], 64, choices)
                assert greedy_hits(module(batch).logits, batch) == is_hit, i
            whole = pack(examples, range(len(examples)), 64, choices)
            assert greedy_hits(module(whole).logits, whole) == sum(expected)

    @pytest.mark.parametrize("normalise", ["allowed", "vocabulary"])
    def test_are_part_of_the_evaluation(self, trained: Trained, normalise: Any, tiny_model: Path) -> None:
        model, examples, _, choices = trained
        if normalise == "allowed":  # docids cut behind their last choice are found as often
            examples = Examples.build(examples_of(DOCIDS), load(tiny_model)[1], choices)
            assert len(examples.answer_tokens) < len(trained[1].answer_tokens)
        ids = np.arange(len(examples))
        batch = pack(trained[1], ids, 64, choices)
        with torch.no_grad():
            hits = greedy_hits(SelectedTargets(model, Allowed())(batch).logits, batch)
        found = Learner(model, replace(SETTINGS, normalise=normalise)).evaluate(examples, ids, choices)
        assert found["evaluation_acc@1"] == round(hits / len(ids), 4)


class TestChoices:
    """What the trie forces is not learnt: seven eighths of the loss would be spent on what decoding never asks for."""

    def test_the_loss_is_the_log_probability_that_decoding_gives(self, trained: Trained, tiny_model: Path) -> None:
        model, _, trie, choices = trained
        chat = load(tiny_model)[1]
        examples = Examples.build(examples_of(DOCIDS), chat, choices)
        ids = np.arange(len(examples))
        learner = Learner(model, replace(SETTINGS, normalise="allowed"))
        loss = learner.evaluate(examples, ids, choices)["evaluation_loss"]
        learner.release()
        retriever = Retriever(
            Writer(model.eval(), chat, trie),
            Likelihood(LikelihoodSettings(), Data(Path("trie"))),
            Documents(pa.array([str(i) for i in range(len(DOCIDS))]), pa.array(DOCIDS)),
            instruction="Find.",
            decoding={"strategy": "beam", "k": len(DOCIDS), "normalise": "allowed"},
        )
        queries = [query for _, query, _ in examples_of(DOCIDS)]
        scores = 0.0
        for i, hits in enumerate(retriever.search(queries, k=len(DOCIDS))):
            scores += {hit.docid: hit.score for hit in hits}[DOCIDS[i % len(DOCIDS)]]
        assert loss * len(examples.answer_tokens) == pytest.approx(-scores, rel=1e-3)

    def test_a_docid_ends_where_no_choice_is_left(self, trained: Trained, tiny_model: Path) -> None:
        _, whole, _, choices = trained
        chat = load(tiny_model)[1]
        cut = Examples.build(examples_of(DOCIDS), chat, choices)
        for i, docid in enumerate(DOCIDS):
            tokens = [*chat.docid(docid), chat.end_token_id]
            assert targets(whole, i) == tokens
            rivals = [[*chat.docid(other), chat.end_token_id] for other in DOCIDS if other != docid]
            shared = max(len(os.path.commonprefix([tokens, rival])) for rival in rivals)
            assert targets(cut, i) == tokens[: shared + 1]

    def test_nothing_else_is_allowed(self, trained: Trained) -> None:
        _, examples, trie, choices = trained
        batch = pack(examples, range(len(DOCIDS)), 64, choices)
        is_allowed = batch.is_allowed()
        for target, number in enumerate(batch.answer.tolist()):
            before = [int(batch.targets[j]) for j in range(target) if batch.answer[j] == number]
            continuations = {
                tokens[len(before)]
                for tokens in (targets(examples, i) for i in range(len(DOCIDS)))
                if tokens[: len(before)] == before and len(tokens) > len(before)
            }
            assert set(batch.columns[is_allowed[batch.predicted_by[target]]].tolist()) == continuations
            assert batch.columns[batch.column[target]] == batch.targets[target]

    def test_the_only_docid_is_learnt_by_its_first_token(self, tiny_model: Path) -> None:
        _, chat = load(tiny_model)
        trie = DocidTrie.build([chat.docid("oven gear")])
        choices = Choices(trie, chat.end_token_id)
        assert choices.open_part(chat.docid("oven gear")) == chat.docid("oven gear")[:1]

    def test_path_that_the_trie_does_not_allow(self, trained: Trained) -> None:
        with pytest.raises(ValueError, match="no docid that begins"):
            trained[3].along(np.array([9999]), np.array([0, 1]))

    @pytest.mark.parametrize("missing", ["oven gear mast", "oven", "gear"])
    def test_docid_that_is_not_in_the_trie(self, tiny_model: Path, missing: str) -> None:
        _, chat = load(tiny_model)
        choices = Choices(DocidTrie.build([chat.docid(docid) for docid in ["oven gear"]]), chat.end_token_id)
        with pytest.raises(UserError, match="--rebuild trie"):
            Examples.build([example("Find.", "bread", (missing, 1.0))], chat, choices)


class TestPackedAttention:
    @pytest.mark.parametrize(("num_heads", "num_keys"), [(4, 4), (6, 2), (3, 1)])
    def test_is_the_library_s(self, num_heads: int, num_keys: int) -> None:
        torch.manual_seed(0)
        shapes = [(2, heads, 12, 8) for heads in (num_heads, num_keys, num_keys)]
        mask = (torch.rand(2, 1, 12, 12) < 0.5) | torch.eye(12, dtype=torch.bool)
        found = []
        for is_ours in (True, False):
            torch.manual_seed(1)
            query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
            if is_ours:
                output, _ = packed_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
            else:
                copies = [states.repeat_interleave(num_heads // num_keys, 1) for states in (key, value)]
                output = functional.scaled_dot_product_attention(query, *copies, attn_mask=mask, scale=0.3)
                output = output.transpose(1, 2)
            (output * torch.arange(output.numel()).view(output.shape)).sum().backward()
            found.append([output, query.grad, key.grad, value.grad])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)

    def test_the_model_has_its_own_again_afterwards(self, tiny_model: Path) -> None:
        model, _ = load(tiny_model)
        before = model.config._attn_implementation
        learner = Learner(model, SETTINGS)
        assert model.config._attn_implementation == PACKED
        learner.release()
        assert model.config._attn_implementation == before

    def test_a_model_with_another_kind_keeps_it(self, tiny_model: Path) -> None:
        model, _ = load(tiny_model)
        model.set_attn_implementation("eager")
        Learner(model, SETTINGS)
        assert model.config._attn_implementation == "eager"


class TestThroughput:
    def test_readings(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(throughput, "peak_flops", lambda _: 1e12)
        now = [100.0]
        monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
        cost = Cost(load(tiny_model)[0])
        meter = Meter(cost, torch.device("cpu"), num_ranks=2)
        meter.add(useful=120, tokens=90, padding=10, in_head=20)
        meter.add(useful=80, tokens=90, padding=10, in_head=20)
        now[0] += 4
        reading = meter.read()
        assert reading["useful_tokens_per_s"] == 50 and reading["tokens_per_s"] == 50 and reading["padding"] == 0.1
        assert reading["mfu"] == pytest.approx(cost.flops(180, 40) / 4 / 2e12, abs=1e-4)
        now[0] += 100
        meter.skip()
        now[0] += 4
        assert meter.read()["useful_tokens_per_s"] == 0
        assert meter.useful_tokens_per_s == 25  # what was skipped took no time

    def test_cost_by_hand(self, tiny_model: Path) -> None:
        model = load(tiny_model)[0]
        vocabulary, width = model.get_input_embeddings().weight.shape
        body = sum(weight.numel() for weight in model.model.parameters()) - vocabulary * width
        assert Cost(model).flops(10, 3) == 6 * (10 * body + 3 * vocabulary * width)

    @pytest.mark.parametrize(
        ("name", "peak"),
        [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40", 181e12), ("Something", None)],
    )
    def test_peak_by_name(self, name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        assert throughput.peak_flops(torch.device("cuda")) == peak
        assert throughput.peak_flops(torch.device("cpu")) is None


class TestLog:
    def test_a_resumed_run_takes_its_steps_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TrainingLog, "PUBLISH_EVERY_S", 0)
        uri = str(tmp_path / "log.jsonl")
        log = TrainingLog(uri)
        for step in (10, 20, 30):
            log.add({"step": step, "loss": 1.0})
        again = TrainingLog(uri)
        again.add({"step": 20, "loss": 0.5})
        assert again.text() == '{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n'
        assert storage.read_bytes(uri).decode() == again.text()

    def test_is_not_written_at_every_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TrainingLog, "PUBLISH_EVERY_S", math.inf)
        log = TrainingLog(str(tmp_path / "log.jsonl"))
        log.add({"step": 10})
        assert not storage.exists(str(tmp_path / "log.jsonl"))


class TestOnAGpu:
    """What can be known of a step on a GPU without one."""

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_step_launches_little_more_than_its_forward_and_backward(self, trained: Trained, precision: str) -> None:
        model, examples, _, choices = trained
        settings = replace(SETTINGS, precision=precision, normalise="allowed")
        learner = Learner(model, settings)
        work = learner.prepare(examples, np.arange(len(examples)), choices)
        learner.step(work, 1e-4)
        with Launches() as bare:
            for batch in work.passes:
                learner._module(batch).logits.float().sum().backward()
        learner.optimizer.zero_grad()
        for parameter in learner._trained.values():
            parameter.grad = None
        with Launches() as whole:
            learner.step(work, 1e-4)
        assert whole.count <= 1.3 * bare.count
        assert whole.waits == 1  # loss and gradient norm, once

    def test_passes_take_what_the_memory_leaves(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, _ = load(tiny_model)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        memory = SimpleNamespace(total_memory=18 * num_parameters + 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        per_token = model.config.num_hidden_layers * (
            24 * model.config.hidden_size + 5 * model.config.intermediate_size
        )
        cuda = torch.device("cuda")
        row_tokens, pass_tokens, *_ = sizes_for(model, None, None, device=cuda)
        assert row_tokens == 1024 and 0.6 * 10**9 - 1024 * per_token < pass_tokens * per_token <= 0.6 * 10**9
        assert sizes_for(model, 128, 512, device=cuda) == (128, 512, 128, 4)
        assert sizes_for(model, None, None, device=torch.device("cpu")) == (256, 4096, 1, 1)

    def test_padding_to_few_shapes_changes_nothing(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        examples = make_examples(chat)
        found = []
        for steps in ({}, {"length_step": 32, "row_step": 4}):
            learner = Learner(load(tiny_model)[0], SETTINGS)
            learner._sizes = Sizes(64, 512, **steps)
            work = learner.prepare(examples, np.arange(len(examples)))
            if steps:
                assert all(batch.tokens.shape[1] % 32 == 0 and len(batch.tokens) % 4 == 0 for batch in work.passes)
            step = learner.step(work, 1e-3)
            found.append((step.loss, step.gradient_norm, step.num_tokens))
        assert found[1] == pytest.approx(found[0], rel=1e-5)

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    def test_attention_by_blocks_is_that_of_the_mask(self, tiny_model: Path) -> None:
        model, chat = load(tiny_model)
        [batch] = passes(make_examples(chat), np.arange(19), 64, 10**6, length_step=128)
        register_packed()
        with torch.inference_mode():
            dense = SelectedTargets(model)(batch).logits
            model.set_attn_implementation(BLOCKS)
            by_blocks = SelectedTargets(model, by_blocks=True)(batch).logits
        torch.testing.assert_close(by_blocks, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_constrained", [True, False])
def test_log_probs_of_targets_and_their_gradients(is_constrained: bool) -> None:
    """Against the softmax of all logits; a position may predict several targets, and one of them twice."""
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    row, column = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 4, 6, 2, 2, 0])
    is_allowed = torch.rand(5, 7) < 0.6
    is_allowed[row, column] = True
    is_allowed[:, 0] = True
    weights = torch.rand(6)
    masked = logits.masked_fill(~is_allowed, -torch.inf) if is_constrained else logits
    expected = masked.log_softmax(-1)[row, column]
    [gradient] = torch.autograd.grad((expected * weights).sum(), logits)
    found = normalisation._log_probs(logits, row, column, is_allowed if is_constrained else None)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), logits)[0], gradient, atol=1e-6, rtol=1e-5)
