"""`zerogr plan`: a table for people, or one JSON document and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs import rehearsal
from jobs.cli import main
from tests import tiny
from zerogr.config.file import validate_config
from zerogr.index.index import Index

ROOT = Path(__file__).parents[2]


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert main(["plan", *arguments]) == 0
        return capsys.readouterr().out

    def test_json_is_one_document_and_nothing_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(ROOT / "examples" / "paper.yaml")
        printed = self.run(
            capsys, config, "--documents", "1000000", "--document-bytes", "1500", "--model", "1B", "7B", "--json",
            "--dollars-per-gpu-hour", "2", "--dollars-per-cpu-hour", "0",
        )  # fmt: skip
        found = json.loads(printed)
        assert found["gpu"] == "h200" and found["nodes"] == 8
        small, large = found["plans"]
        assert large["total"]["dollars"] == pytest.approx(2 * large["total"]["gpu_hours"])
        assert small["total"]["gpu_hours"] < large["total"]["gpu_hours"]
        assert {stage["stage"] for stage in small["stages"]} == {"corpus", "docids", "queries", "trie", "retriever"}
        assert found["rates"]["corpus"]["basis"] == "measured"

    def test_the_table_says_what_was_assumed(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(ROOT / "examples" / "paper.yaml")
        printed = self.run(capsys, config, "--documents", "1000", "--document-bytes", "900", "--gpu", "a100")
        assert "documents of 900 bytes, an assumption" in printed
        assert "no price was given" in printed
        assert "a100: not measured" in printed

    def test_a_finished_index_is_compared(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Index(str(tmp_path)).finish("corpus", {}, config={}, counts={"rows": 1000}, seconds=2.0)
        config = str(ROOT / "examples" / "paper.yaml")
        printed = self.run(capsys, config, "--document-bytes", "900", "--against", str(tmp_path))
        assert "1,000 documents" in printed and "more than 25% off" in printed

    @pytest.mark.integration
    def test_a_rehearsal_is_built_and_planned_from(
        self, tmp_path: Path, collection: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(tiny.settings(str(tmp_path / "index"), collection, tiny_model)))
        [plan] = json.loads(self.run(capfd, str(config), "--model", "135M", "--rehearse", "--json"))["plans"]
        for stage in plan["stages"]:
            assert re.match(r"rehearsed with 2 and \d+ documents: a start of \d+ s, then ", stage["formula"]), stage
            assert stage["seconds"] > 0
        assert not (tmp_path / "index").exists()
        capfd.readouterr()
        elsewhere = "docids.engine=vllm"
        assert main(["plan", str(config), "--model", "135M", "--rehearse", "--set", elsewhere]) == 2
        told = capfd.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("zerogr: the rehearsal has failed: engine is 'vllm', but vLLM is not installed")
        few = ["--documents", "3", "--document-bytes", "100", "--model", "135M", "--rehearse"]
        assert main(["plan", str(config), *few]) == 2
        assert "builds indexes of 2 and of at least 4 documents; this corpus has 3" in capfd.readouterr().err

    def test_a_rehearsal_has_as_many_engines_as_the_plan_counts(
        self, tmp_path: Path, collection: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a Ray of its own, which has an address; there one engine is the default."""
        built = []
        monkeypatch.setattr(rehearsal, "_built", lambda tree, _: built.append(validate_config(tree)) or {})
        config = validate_config(tiny.settings(str(tmp_path / "index"), collection, tiny_model))
        rehearsal.rehearse(config, (2, 8), 2)
        assert [small.compute.num_engine_workers for small in built] == [2, 2]
        assert [small.corpus.max_documents / small.corpus.shard_size for small in built] == [2, 2]

    def test_mistakes_are_one_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(ROOT / "examples" / "paper.yaml")
        with pytest.raises(SystemExit):
            main(["plan", config, "--document-bytes", "900"])
        assert "give --documents as well" in capsys.readouterr().err
        assert main(["plan", config, "--documents", "5", "--document-bytes", "9", "--model", "70B"]) == 2
        assert "the size of the model '70B' is not known" in capsys.readouterr().err

    def test_a_corpus_that_is_not_there_is_assumed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(ROOT / "examples" / "laptop.yaml")
        nowhere = f"corpus.source={tmp_path / 'none'}"
        assert "documents of 1,461 bytes, an assumption" in self.run(
            capsys, config, "--documents", "500", "--set", nowhere
        )
        assert main(["plan", config, "--set", nowhere]) == 2
