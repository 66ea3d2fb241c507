from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.zerogr.test_training import SETTINGS, load, make_examples, pack
from zerogr import storage
from zerogr.errors import UserError
from zerogr.training import throughput
from zerogr.training.examples import Examples, passes
from zerogr.training.learner import Learner, SelectedTargets, TrainingSettings, greedy_hits, summed_loss
from zerogr.training.log import TrainingLog
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
        found = passes(examples, range(len(examples)), 64, pass_tokens)
        assert len(found) > 1
        pieces: Counter[tuple[int, ...]] = Counter()
        for batch in found:
            assert batch.tokens.numel() <= pass_tokens or len(batch.tokens) == 1
            for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
                pieces.update(tuple(tokens[segments == i].tolist()) for i in range(1, int(segments.max()) + 1))
        bounds = zip(examples.offsets, examples.offsets[1:], strict=False)
        assert pieces == Counter(tuple(examples.tokens[start:end].tolist()) for start, end in bounds)

    def test_the_rows_of_a_pass_are_of_like_lengths(self, tiny_model: Path) -> None:
        examples = make_examples(load(tiny_model)[1])
        lengths = [len(batch.tokens[0]) for batch in passes(examples, range(len(examples)), 64, 128)]
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

    def test_the_losses_are_those_of_fp32(self, tiny_model: Path) -> None:
        _, exact = after_steps(tiny_model, SETTINGS, num_steps=4)
        _, rounded = after_steps(tiny_model, replace(SETTINGS, precision="bf16"), num_steps=4)
        assert rounded == pytest.approx(exact, rel=0.01)
        assert exact[-1] < exact[0]


@pytest.fixture
def trained(tiny_model: Path) -> tuple[Any, Examples, Any]:
    """A model that has learnt some of its examples, whose docids are partly prefixes of each other."""
    model, chat = load(tiny_model)
    docids = ["oven", "oven gear", "oven gear mast", "mast wind", "mast", "knight rook", "knight"]
    trie = DocidTrie.build([chat.docid(docid) for docid in docids])
    rows = [("Find.", f"{docid} {i}", docid, 1.0) for i, docid in enumerate(docids * 3)]
    examples = Examples.build(rows, chat, trie)
    learner = Learner(model, SETTINGS)
    for _ in range(12):
        learner.step(learner.prepare(examples, np.arange(len(examples))), 3e-3)
    return model.eval(), examples, (trie, chat.end_token_id)


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

    def test_equal_those_of_decoding(self, trained: tuple[Any, Examples, Any]) -> None:
        model, examples, (trie, end) = trained
        expected = []
        for i in range(len(examples)):
            own = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]].tolist()
            count = int(examples.num_targets[i])
            prompt = [*examples.prefixes[examples.task[i]], *own[:-count]]
            expected.append(self.decoded(model, prompt, trie, end) == own[-count:])
        assert 0 < sum(expected) < len(expected)
        module = SelectedTargets(model)
        with torch.no_grad():
            for i, is_hit in enumerate(expected):
                batch = pack(examples, [i], 64)
                assert greedy_hits(module(batch), batch, trie) == is_hit, i
            whole = pack(examples, range(len(examples)), 64)
            assert greedy_hits(module(whole), whole, trie) == sum(expected)
            whole.weights.zero_()
            assert greedy_hits(module(whole), whole, trie) == 0  # an idle rank finds nothing

    def test_are_part_of_the_evaluation(self, trained: tuple[Any, Examples, Any]) -> None:
        model, examples, (trie, _) = trained
        ids = np.arange(len(examples))
        batch = pack(examples, ids, 64)
        with torch.no_grad():
            hits = greedy_hits(SelectedTargets(model)(batch), batch, trie)
        assert Learner(model, SETTINGS).evaluate(examples, ids, trie)["evaluation_acc@1"] == round(hits / len(ids), 4)


class TestForcedTokens:
    """What the trie forces is not learnt: nine tenths of the loss would be spent on what decoding never asks for."""

    def test_the_loss_is_that_of_the_free_tokens(self, trained: tuple[Any, Examples, Any]) -> None:
        model, examples, (trie, end) = trained
        ids = np.arange(len(examples))
        module = SelectedTargets(model)
        by_weight = {}
        for forced_weight in (0.0, 0.25, 1.0):
            learner = Learner(model, replace(SETTINGS, forced_weight=forced_weight))
            work = learner.prepare(examples, ids)
            assert work.num_targets == pytest.approx(sum(float(batch.weights.sum()) for batch in work.passes))
            with torch.no_grad():
                by_weight[forced_weight] = sum(float(summed_loss(module(batch), batch)) for batch in work.passes)
        free = 0.0
        for i in ids:
            own = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]].tolist()
            *docid, last = own[-int(examples.num_targets[i]) :]
            assert last == end
            node, num_free = trie.root, 0
            while trie.docids_below(node)[1] > 1 and num_free < len(docid):
                tokens, nodes = trie.children(node)
                node, num_free = int(nodes[tokens.tolist().index(docid[num_free])]), num_free + 1
            num_free += trie.docids_below(node)[1] > 1  # other docids go on where this one ends
            prefix = examples.prefixes[examples.task[i]]
            with torch.no_grad():
                log_probs = model(input_ids=torch.tensor([prefix + own])).logits[0].log_softmax(-1)
            start = len(prefix) + len(own) - len(docid) - 1
            free -= sum(float(log_probs[start + j - 1, [*docid, end][j]]) for j in range(num_free))
        assert 0 < by_weight[0.0] < by_weight[1.0]
        assert by_weight[0.0] == pytest.approx(free, rel=1e-4)
        assert by_weight[0.25] == pytest.approx(0.75 * by_weight[0.0] + 0.25 * by_weight[1.0], rel=1e-4)

    def test_accuracy_counts_whatever_the_weights(self, trained: tuple[Any, Examples, Any]) -> None:
        model, examples, (trie, _) = trained
        ids = np.arange(len(examples))
        found = [
            Learner(model, replace(SETTINGS, forced_weight=weight)).evaluate(examples, ids, trie)["evaluation_acc@1"]
            for weight in (0.0, 1.0)
        ]
        assert found[0] == found[1] > 0

    @pytest.mark.parametrize("missing", ["oven gear mast", "oven", "gear"])
    def test_docid_that_is_not_in_the_trie(self, tiny_model: Path, missing: str) -> None:
        _, chat = load(tiny_model)
        trie = DocidTrie.build([chat.docid(docid) for docid in ["oven gear"]])
        with pytest.raises(UserError, match="--rebuild trie"):
            Examples.build([("Find.", "bread", missing, 1.0)], chat, trie)


class TestThroughput:
    def test_readings(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(throughput, "peak_flops", lambda _: 1e12)
        now = [100.0]
        monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
        cost = Cost(load(tiny_model)[0])
        meter = Meter(cost, torch.device("cpu"), num_ranks=2)
        meter.add(useful=120, tokens=90, padding=10, targets=20)
        meter.add(useful=80, tokens=90, padding=10, targets=20)
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
