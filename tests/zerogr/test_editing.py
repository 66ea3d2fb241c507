"""Editing: what is read of a model, the closed forms, and what the methods do to weights, against slow references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.editing import ALLOWED, INSTRUCTION, known, new_of, setting_of
from zerogr.config.file import config_of
from zerogr.editing import closed_form
from zerogr.editing.edits import nearness, remaining
from zerogr.editing.method import Setting, load_method
from zerogr.editing.positions import Reader
from zerogr.editing.sample import Known
from zerogr.editing.statistics import Statistics, layers_between, patch
from zerogr.editing.values import Search, find_values
from zerogr.training.attention import PACKED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture
def setting(folder: Path, tmp_path: Path) -> Setting:
    return setting_of(folder, tmp_path)


def one_by_one(setting: Setting, queries: list[Known], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns keys and outputs of a layer at the positions that predict open tokens, a plain pass per query."""
    keys, states = [], []
    setting.model.set_attn_implementation("sdpa")
    module = setting.model.get_decoder().layers[layer]
    for each in queries:
        prompt = setting.chat.prompt(INSTRUCTION, each.example.query)
        open_part = setting.choices.open_part(setting.chat.docid(each.docid))
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            module.mlp.down_proj.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(key=inputs[0][0])),
            module.register_forward_hook(
                lambda _, __, output, seen=seen: seen.update(
                    state=(output[0] if isinstance(output, tuple) else output)[0]
                )
            ),
        ]
        with torch.no_grad():
            setting.model(torch.tensor([[*prompt, *open_part[:-1]]]), use_cache=False)
        for hook in hooks:
            hook.remove()
        keys.append(seen["key"][len(prompt) - 1 :])
        states.append(seen["state"][len(prompt) - 1 :])
    setting.model.set_attn_implementation(PACKED)
    return torch.cat(keys), torch.cat(states)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows in an order of their own: batches are packed in another order than examples stand."""
    return rows[np.lexsort(rows.double().numpy().round(6).T[::-1])]


class TestReading:
    def test_packed_keys_are_those_of_plain_passes(self, setting: Setting) -> None:
        queries = [known(i) for i in range(5)]
        reader = Reader(setting.model, setting.choices)
        batches = reader.batches(setting.tokenised(queries))
        seen = [reader.read(batch, [0, 1], 0) for batch in batches]
        for layer in (0, 1):
            keys, states = one_by_one(setting, queries, layer)
            found = torch.cat([each.keys[layer] for each in seen])
            torch.testing.assert_close(sorted_rows(found), sorted_rows(keys), atol=1e-9, rtol=0)
        _, states = one_by_one(setting, queries, 0)
        found = torch.cat([each.states for each in seen])
        torch.testing.assert_close(sorted_rows(found), sorted_rows(states), atol=1e-9, rtol=0)

    def test_the_layers_above_see_what_is_added(self, setting: Setting) -> None:
        """Only predicting positions are computed; a whole pass with the same addition must end alike."""
        reader = Reader(setting.model, setting.choices)
        [batch] = reader.batches(setting.tokenised([known(i) for i in range(5)]))
        seen = reader.read(batch, [], 0)
        delta = torch.randn(seen.states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def add(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            flat = hidden.flatten(0, 1).index_add(0, batch.predicting, delta)
            return flat.view_as(hidden)

        hook = reader.layers[0].register_forward_hook(add)
        whole = setting.model.get_decoder()(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        ).last_hidden_state.flatten(0, 1)[batch.predicting]
        hook.remove()
        found = reader.above(batch, seen, 0)(seen.states + delta)
        torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)

    @pytest.mark.parametrize("labels", ["hard", "hybrid"])
    def test_values_make_the_right_tokens_likely(self, setting: Setting, labels: Any) -> None:
        reader = Reader(setting.model, setting.choices)
        [batch] = reader.batches(setting.tokenised([known(i) for i in range(5)]))
        seen = reader.read(batch, [], 0)
        search = Search(labels, 60, 0.1, 0.0, 100.0)
        _, before = find_values(reader, batch, seen, 0, search._replace(num_steps=0), ALLOWED)
        values, after = find_values(reader, batch, seen, 0, search, ALLOWED)
        assert float(after.mean()) < 0.2 < float(before.mean())
        tight = search._replace(max_norm=0.01)
        values, _ = find_values(reader, batch, seen, 0, tight, ALLOWED)
        share = (values - seen.states).norm(dim=-1) / seen.states.norm(dim=-1)
        assert float(share.max()) <= 0.01 + 1e-9

    def test_soft_labels_alone_keep_what_was_thought(self, setting: Setting) -> None:
        reader = Reader(setting.model, setting.choices)
        [batch] = reader.batches(setting.tokenised([known(i) for i in range(5)]))
        seen = reader.read(batch, [], 0)
        search = Search("soft", 60, 0.1, 0.0, 100.0)
        _, soft = find_values(reader, batch, seen, 0, search, ALLOWED)
        _, hard = find_values(reader, batch, seen, 0, search._replace(labels="hard"), ALLOWED)
        assert float(soft.mean()) > 2 * float(hard.mean())


def problem(seed: int = 0, n: int = 5, width: int = 12, height: int = 4) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    old = torch.randn(200, width, generator=draw, dtype=torch.float64)
    keys = torch.randn(n, width, generator=draw, dtype=torch.float64)
    residuals = torch.randn(n, height, generator=draw, dtype=torch.float64)
    return keys, residuals, old.T @ old / len(old), old


class TestClosedForms:
    def test_least_squares_is_the_minimum(self) -> None:
        keys, residuals, moment, old = problem()
        delta = closed_form.least_squares(keys, residuals, moment, 30.0)

        def loss(change: torch.Tensor) -> float:
            return float((residuals - keys @ change.T).square().sum() + 30 * (old @ change.T).square().sum() / len(old))

        draw = torch.Generator().manual_seed(1)
        for _ in range(20):
            other = delta + 1e-3 * torch.randn(delta.shape, generator=draw, dtype=torch.float64)
            assert loss(delta) < loss(other)

    def test_equality_gives_every_key_its_value(self) -> None:
        keys, residuals, moment, _ = problem()
        delta = closed_form.equality(keys, residuals, moment, ridge=0.0)
        torch.testing.assert_close(keys @ delta.T, residuals, atol=1e-4, rtol=0)
        slow = residuals.T @ torch.linalg.inv(keys @ torch.linalg.inv(moment) @ keys.T + 0.1 * torch.eye(5)) @ keys
        slow = slow @ torch.linalg.inv(moment)
        torch.testing.assert_close(closed_form.equality(keys, residuals, moment, 0.1), slow, atol=1e-4, rtol=0)

    def test_one_by_one_is_a_chain_of_rank_one_changes(self) -> None:
        keys, residuals, moment, _ = problem()
        weight = torch.zeros(4, 12, dtype=torch.float64)
        for key, residual in zip(keys, residuals, strict=True):
            direction = torch.linalg.inv(moment) @ key
            weight = weight + torch.outer(residual - weight @ key, direction) / (direction @ key)
        found = closed_form.one_by_one(keys, residuals, moment)
        torch.testing.assert_close(found, weight, atol=1e-4, rtol=0)
        torch.testing.assert_close(found @ keys[-1], residuals[-1], atol=1e-6, rtol=0)

    def test_the_null_space_leaves_old_keys_alone(self) -> None:
        keys, residuals, _, old = problem()
        old = old[:, :6] @ torch.randn(6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        moment = old.T @ old / len(old)
        earlier = torch.zeros(12, 12)
        delta = closed_form.null_space(keys, residuals, moment, earlier, threshold=1e-3, ridge=1e-3)
        assert float((old @ delta.T).abs().max()) < 1e-8
        assert float((residuals - keys @ delta.T).norm()) < float(residuals.norm())
        projection = closed_form.projection_of(moment, 1e-3)
        assert round(float(projection.trace())) == 6
        slow = torch.linalg.solve(
            projection @ (keys.T @ keys) + 1e-3 * torch.eye(12), projection @ keys.T @ residuals
        ).T
        torch.testing.assert_close(delta, slow, atol=1e-6, rtol=0)

    def test_shares_of_what_is_lacking(self) -> None:
        layers = [14, 15, 16, 17, 18]
        for share in (remaining, nearness):
            left = 1.0
            taken = []
            for number in range(5):
                taken.append(left * share(number, layers))
                left -= taken[-1]
            assert left == pytest.approx(0)
            if share is nearness:
                assert taken == sorted(taken), "the nearer to the last, the more"
            else:
                assert taken == pytest.approx([0.2] * 5)


class TestMethods:
    @pytest.mark.parametrize("name", ["rome", "memit", "emmet", "alphaedit", "dome"])
    def test_weights_are_the_old_ones_and_the_closed_form(self, setting: Setting, name: str) -> None:
        """The values are taken from the method; keys, residuals and the change itself are computed one by one."""
        from zerogr.editing import edits, values

        tree: dict[str, Any] = {"name": name, "num_steps": 30, "learning_rate": 0.1}
        tree |= {"layer": 0.99} if name in ("rome", "emmet") else {"layers": [0.99, 0.99]}
        settings = config_of({"update": {"method": tree}}).update.method
        new = new_of(setting, [3, 4])
        before = setting.model.get_decoder().layers[1].mlp.down_proj.weight.detach().clone()
        keys, states = one_by_one(setting, list(new.known), 1)
        wanted: list[torch.Tensor] = []
        original = values.find_values

        def remember(*arguments: Any) -> Any:
            found = original(*arguments)
            wanted.append(found[0])
            return found

        values.find_values, moment = remember, setting.statistics.moments[1].double()
        try:
            change = load_method(settings).update(setting, new)
        finally:
            values.find_values = original
        reader = Reader(setting.model, setting.choices)
        with torch.no_grad():
            reader.weight(1).copy_(before)
        read = [reader.read(batch, [1], 1) for batch in reader.batches(new.examples)]
        torch.testing.assert_close(
            sorted_rows(torch.cat([each.keys[1] for each in read])), sorted_rows(keys), atol=1e-9, rtol=0
        )
        keys, states = torch.cat([each.keys[1] for each in read]), torch.cat([each.states for each in read])
        lacking = torch.cat(wanted) - states
        if name == "rome":
            groups = edits.groups_of(new, edits.first_queries(new, 10), reader.batches(new.examples))
            keys, lacking = edits.means_of(keys, groups), edits.means_of(lacking, groups)
            expected = torch.zeros_like(before)
            for key, residual in zip(keys, lacking, strict=True):
                direction = torch.linalg.pinv(moment + 1e-6 * moment.diagonal().mean() * torch.eye(64)) @ key
                expected = expected + torch.outer(residual - expected @ key, direction) / (direction @ key)
        elif name == "emmet":
            inverse = torch.linalg.inv(moment + 1e-6 * moment.diagonal().mean() * torch.eye(64))
            expected = (
                lacking.T @ torch.linalg.inv(keys @ inverse @ keys.T + 0.1 * torch.eye(len(keys))) @ keys @ inverse
            )
        elif name == "alphaedit":
            projection = closed_form.projection_of(moment, 0.02)
            left = projection @ (keys.T @ keys) + 10 * torch.eye(64)
            expected = torch.linalg.solve(left, projection @ keys.T @ lacking).T
        else:
            weight = 15_000 if name == "memit" else setting.statistics.num_keys
            system = weight * moment + keys.T @ keys
            system = system + 1e-6 * system.diagonal().mean() * torch.eye(64)
            expected = torch.linalg.solve(system, keys.T @ lacking).T
        [(changed, delta)] = change.deltas.items()
        assert changed == "model.layers.1.mlp.down_proj.weight"
        torch.testing.assert_close(before + delta.double(), before + expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", ["memit", "dome"])
    def test_several_layers_are_edited_one_after_the_other(self, setting: Setting, name: str) -> None:
        """Keys and what is lacking are those of the model as it is when a layer's turn comes, computed from the beginning."""
        from zerogr.editing import values

        tree = {"name": name, "num_steps": 20, "learning_rate": 0.1, "layers": [0.0, 0.99], "preserve": 10.0}
        settings = config_of({"update": {"method": tree}}).update.method
        new, wanted = new_of(setting, [3, 4]), list[torch.Tensor]()
        old = [layer.mlp.down_proj.weight.detach().clone() for layer in setting.model.get_decoder().layers]
        moments, original = setting.statistics.moments, values.find_values

        def remember(*arguments: Any) -> Any:
            found = original(*arguments)
            wanted.append(found[0])
            return found

        values.find_values = remember
        try:
            change = load_method(settings).update(setting, new)
        finally:
            values.find_values = original
        reader = Reader(setting.model, setting.choices)
        with torch.no_grad():
            for layer, weight in enumerate(old):
                reader.weight(layer).copy_(weight)
        keys_of = {}
        for number, layer in enumerate([0, 1]):
            seen = [reader.read(batch, [layer], 1) for batch in reader.batches(new.examples)]
            keys_of[layer] = keys = torch.cat([each.keys[layer] for each in seen])
            lacking = torch.cat(wanted) - torch.cat([each.states for each in seen])
            lacking = lacking * (remaining if name == "memit" else nearness)(number, [0, 1])
            delta = closed_form.least_squares(keys, lacking, moments[layer], 10.0)
            torch.testing.assert_close(
                change.deltas[f"model.layers.{layer}.mlp.down_proj.weight"].double(), delta, atol=1e-4, rtol=1e-4
            )
            with torch.no_grad():
                reader.weight(layer).add_(delta)
        assert change.statistics is not None
        expected = Statistics(moments, {}, setting.statistics.num_keys).learnt(keys_of)
        torch.testing.assert_close(change.statistics.moments[1], expected.moments[1], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("name", ["memit", "dome", "emmet"])
    def test_new_documents_become_likelier(self, setting: Setting, name: str) -> None:
        new = new_of(setting, [3, 4])
        reader = Reader(setting.model, setting.choices)
        [batch] = reader.batches(new.examples)

        def likelihood() -> float:
            states = setting.model.get_decoder()(
                input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
            ).last_hidden_state.flatten(0, 1)[batch.predicting]
            logits = ALLOWED.logits(states, setting.model.get_output_embeddings(), batch)
            return float(ALLOWED.log_probs(logits, batch).mean())

        tree: dict[str, Any] = {"name": name, "max_norm": 10.0, "learning_rate": 0.1}
        if name != "emmet":
            tree |= {"layers": [0.0, 0.99], "preserve": 1.0}
        before = likelihood()
        load_method(config_of({"update": {"method": tree}}).update.method).update(setting, new)
        assert likelihood() > before + 0.3

    def test_statistics_know_what_was_taught(self, setting: Setting, tmp_path: Path) -> None:
        draw = torch.Generator().manual_seed(0)
        old, new = torch.randn(30, 8, generator=draw), torch.randn(10, 8, generator=draw)
        start = Statistics({3: old.T @ old / 30}, {}, 30)
        after = start.learnt({3: new}).learnt({3: new[:4]})
        every = torch.cat([old, new, new[:4]])
        torch.testing.assert_close(after.moments[3], every.T @ every / 44)
        torch.testing.assert_close(after.added[3], new.T @ new + new[:4].T @ new[:4])
        after.patched, after.unpatched = {0: 0.5, 1: 0.25}, 0.75
        after.save(tmp_path)
        loaded = Statistics.load(tmp_path)
        assert (loaded.num_keys, loaded.patched, loaded.unpatched) == (44, after.patched, 0.75)
        assert loaded.moments[3].equal(after.moments[3]) and loaded.added[3].equal(after.added[3])

    def test_layers_by_relative_depth(self) -> None:
        assert layers_between([0.583, 0.75], 24) == [14, 15, 16, 17, 18]
        assert layers_between([0.75, 0.75], 30) == [22]
        assert layers_between([0.0, 1.0], 2) == [0, 1]

    def test_patching_replaces_one_layer_at_a_time(self, setting: Setting) -> None:
        reader = Reader(setting.model, setting.choices)
        examples = setting.tokenised([known(i) for i in range(5)])
        patched, whole = patch(reader, examples, ALLOWED)
        assert set(patched) == {0, 1} and all(0 <= share <= 1 for share in patched.values())
        assert patch(reader, examples, ALLOWED) == (patched, whole), "no hook is left behind"
