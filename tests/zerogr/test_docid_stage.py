from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.published import contents
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, load_frequency
from zerogr.docids.rules import Terms
from zerogr.docids.schemes.keywords import check_docids
from zerogr.docids.stage import (
    FOLDER,
    PROPOSAL_SCHEMA,
    DocidProposer,
    assign_docids,
    docids_inputs,
)
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.fake import FakeEngine
from zerogr.store import storage
from zerogr.text.words import words

BREAD = "Sourdough bread needs flour, water and salt; the starter ferments the dough and the oven bakes the crust."
LANGUAGES = {
    "thai": (
        "ขนมปังซาวโดว์",
        "ขนมปังซาวโดว์ทำจากแป้งสาลี น้ำ และเกลือ โดยใช้หัวเชื้อธรรมชาติแทนยีสต์สำเร็จรูป "
        "ผู้อบต้องเลี้ยงหัวเชื้อทุกวันและหมักแป้งไว้ในตู้เย็นข้ามคืนก่อนนำเข้าเตาอบ",
    ),
    "chinese": (
        "酸面包的做法",
        "酸面包用面粉、水和盐制成，依靠天然酵母而不是商业酵母发酵。烘焙师每天喂养酵头，把面团放在冰"
        "箱里过夜，第二天早上再放进烤箱烘烤。",
    ),
    "arabic": (
        "خبز العجين المخمر",
        "يُصنع خبز العجين المخمر من الدقيق والماء والملح، ويعتمد على خميرة طبيعية بدلاً من الخميرة التجارية. "
        "يغذي الخباز البادئ كل يوم ويترك العجين في الثلاجة طوال الليل قبل الخبز في الفرن.",
    ),
    "german": (
        "Sauerteigbrot backen",
        "Sauerteigbrot besteht aus Weizenmehl, Wasser und Salz; statt Backhefe treibt ein Anstellgut den "
        "Teig. Die Bäckerin füttert es täglich, lässt den Teig über Nacht im Kühlschrank gären und heizt "
        "früh den Steinofen.",
    ),
    "hindi": (
        "खमीरी रोटी",
        "खमीरी रोटी आटे, पानी और नमक से बनती है और इसमें बाज़ार के ख़मीर की जगह प्राकृतिक ख़मीर का उपयोग "
        "होता है। बेकर हर दिन ख़मीर को आटा खिलाता है और गूँथे हुए आटे को रात भर ठंडी जगह पर रखता है।",
    ),
    "japanese": (
        "サワードウブレッド",
        "サワードウブレッドは小麦粉と水と塩で作られ、市販のイーストではなく天然酵母で発酵させます。"
        "職人は毎日スターターに餌をやり、生地を冷蔵庫で一晩寝かせてからオーブンで焼きます。",
    ),
}


def config_of(tmp_path: Path, collection: Path, *, index: str, shard_size: int = 8, **docids: Any) -> Config:
    return validate_config(
        {
            "index": str(tmp_path / index),
            "corpus": {"source": str(collection), "shard_size": shard_size},
            "ranking": {"name": "mix" if docids.get("scheme") == "terms" else "likelihood"},
            "docids": docids if "scheme" in docids else {"scheme": "keywords", "engine": "fake", **docids},
        }
    )


def assigned(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs the corpus and docid stages without Ray; returns the docid rows and the counts."""
    index = Index(config.index)
    build_corpus(config, index)
    proposer = DocidProposer(config, index, FakeEngine() if config.docids.scheme == "keywords" else None)
    for shard in index.pending_shards(FOLDER)[::-1]:  # workers finish in any order
        proposer(shard)
    counts = assign_docids(config, index)
    return [
        row
        for shard in shards_in(index.path("docids"))
        for row in storage.read_parquet(index.shard("docids", shard)).to_pylist()
    ], counts


SCHEMES: dict[str, dict[str, Any]] = {
    "keywords": {},
    **{scheme: {"scheme": scheme} for scheme in ("title", "tfidf", "random", "terms")},
}


class TestStage:
    @pytest.mark.parametrize("scheme", ["keywords", "title", "tfidf", "random", "terms"])
    def test_every_scheme_names_every_document_apart(self, tmp_path: Path, collection: Path, scheme: str) -> None:
        config = config_of(tmp_path, collection, index="index", **SCHEMES[scheme])
        rows, counts = assigned(config)
        assert [row["row_id"] for row in rows] == list(range(40))
        assert len({row["docid"] for row in rows}) == 40
        assert {row["source"] for row in rows} <= (
            {"lm", "repaired", "resolved"} if scheme == "keywords" else {"scheme", "resolved"}
        )
        assert counts["rows"] == 40
        assert counts["collisions"] == sum(row["source"] == "resolved" for row in rows)
        if scheme == "keywords":
            assert check_docids(config, Index(config.index)) == {}
            assert counts["output_tokens"] > 0

    def test_shards_do_not_change_the_docids(self, tmp_path: Path, collection: Path) -> None:
        def docids(shard_size: int) -> list[tuple[str, str]]:
            config = config_of(tmp_path, collection, index=f"index-{shard_size}", shard_size=shard_size, max_words=6)
            return [(row["doc_id"], row["docid"]) for row in assigned(config)[0]]

        assert docids(3) == docids(40) == docids(17)

    def test_a_repeated_shard_is_the_same_shard(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, collection, index="index")
        index = Index(config.index)
        build_corpus(config, index)
        contents = []
        for _ in range(2):
            DocidProposer(config, index, FakeEngine())(2)
            contents.append(storage.read_bytes(index.shard(FOLDER, 2)))
        assert contents[0] == contents[1]

    def test_workers_do_not_change_a_byte(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(
            tmp_path,
            collection,
            index="index",
            scheme="title",
            shard_size=7,
            max_words=2,
        )
        assigned(config)
        index = Index(config.index)
        one, two = [], []
        for num_workers, found in ((1, one), (2, two)):
            storage.delete(index.path("docids"))
            found += [assign_docids(config, index, num_workers=num_workers), contents(config.index, "docids")]
        assert one == two
        assert one[0]["collisions"] > 0

    def test_goes_on_after_a_crash_between_two_shards(
        self, tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = config_of(tmp_path, collection, index="index")
        _, counts = assigned(config)
        undisturbed = contents(config.index, "docids")
        for name in undisturbed:
            storage.delete(Index(config.index).path(name))
        other = Index(config.index).shard("docids", 0)  # made of proposals that were lost

        written = []

        def write_two(uri: str, table: pa.Table) -> None:
            if len(written) == 2:
                raise OSError("the machine is gone")
            written.append(uri)
            write(uri, table)

        write = storage.write_parquet
        with monkeypatch.context() as patched, pytest.raises(OSError, match="the machine is gone"):
            patched.setattr(storage, "write_parquet", write_two)
            assign_docids(config, Index(config.index), num_workers=1)
        assert len(contents(config.index, "docids")) == 2
        with monkeypatch.context() as patched:
            patched.setattr(storage, "write_parquet", lambda uri, table: (written.append(uri), write(uri, table)))
            assert assign_docids(config, Index(config.index)) == counts
            assert len(written) == len(set(written)) == len(undisturbed)  # nothing twice
            write(other, storage.read_parquet(other).slice(1))
            assert assign_docids(config, Index(config.index)) == counts
            assert written[len(undisturbed) :] == [other]
        assert contents(config.index, "docids") == undisturbed

    def test_a_duplicate_has_docid_and_source_of_the_first(self, tmp_path: Path) -> None:
        rows = [{"_id": f"d{i}", "text": BREAD if i % 2 else f"{BREAD} Number {i}."} for i in range(6)]
        source = tmp_path / "corpus.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = config_of(tmp_path, source, index="index", shard_size=2)
        docids, counts = assigned(config)
        proposals = [
            row
            for shard in range(3)
            for row in storage.read_parquet(Index(config.index).shard(FOLDER, shard)).to_pylist()
        ]
        assert (
            len({row["candidates"][0] for row in proposals[1::2]}) == 3
        )  # a language model's seeds are the document's
        assert len({(row["docid"], row["source"]) for row in docids[1::2]}) == 1
        assert (docids[1]["docid"], docids[1]["source"]) == (proposals[1]["candidates"][0], proposals[1]["sources"][0])
        assert [row["candidates"] for row in docids] == [row["candidates"] for row in proposals]
        assert (counts["duplicates"], counts["collisions_per_round"][-1]) == (2, 0)

    def test_the_report_is_that_of_the_rows(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, collection, index="index", shard_size=11)
        rows, counts = assigned(config)
        index = Index(config.index)
        proposals = [row for shard in range(4) for row in storage.read_parquet(index.shard(FOLDER, shard)).to_pylist()]
        assert counts["repaired"] == sum(row["source"] == "repaired" for row in rows) / 40 > 0
        assert counts["valid_at_first_try"] == sum(not row["violations"] for row in proposals) / 40
        assert counts["violations"] == dict(sorted(Counter(sum((row["violations"] for row in proposals), [])).items()))
        assert counts["words_per_docid"] == pytest.approx(sum(len(row["docid"].split()) for row in rows) / 40, abs=0.01)
        assert counts["collisions_per_round"] == [counts["collisions"], 0, 0, 0]

        frequency = load_frequency(index)
        documents = storage.read_parquet(index.shard("corpus", 0)).to_pylist()
        for document, row, proposal in zip(documents, rows, proposals, strict=False):
            terms = Terms.of(document["title"], document["text"], frequency)
            assert proposal["coverage"] == pytest.approx([terms.coverage(text.split()) for text in row["candidates"]])
        chosen = [
            proposal["coverage"][row["candidates"].index(row["docid"])]
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        assert counts["coverage"] == pytest.approx(sum(chosen) / 40, abs=1e-4)
        assert 0 < counts["coverage"] < 1

    def test_both_styles_of_asking(self, tmp_path: Path, collection: Path) -> None:
        asked: dict[str, list[Prompt]] = {}

        class Recorder(FakeEngine):
            def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
                asked[style] += prompts
                return super().generate(prompts, sampling)

        for style in ("brief", "rules"):
            asked[style] = []
            config = config_of(tmp_path, collection, index=style, prompt_style=style, min_words=5, max_words=9)
            build_corpus(config, Index(config.index))
            DocidProposer(config, Index(config.index), Recorder())(0)
        for brief, rules in zip(asked["brief"], asked["rules"], strict=True):
            assert brief.prefill == "Keywords:" and rules.prefill == ""
            assert "List the 5 to 9 words" in brief.user and "write 5 to 9 keywords on one line" in rules.user
            assert brief.user.partition(">>>")[0] == rules.user.partition(">>>")[0]

    @pytest.mark.parametrize("scheme", ["keywords", "title", "tfidf"])
    def test_any_language(self, tmp_path: Path, scheme: str) -> None:
        source = tmp_path / "corpus.jsonl"
        rows = [{"_id": name, "title": title, "text": text} for name, (title, text) in LANGUAGES.items()]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = config_of(tmp_path, source, index="index", **SCHEMES[scheme])
        docids, counts = assigned(config)
        assert [row["doc_id"] for row in docids] == list(LANGUAGES)
        assert counts["rejected"] == 0
        for row in docids:
            found = row["docid"].split(" ")
            assert words(row["docid"]) == found  # so that what the retriever writes is what the trie holds
            assert len(found) <= 8
            assert max(map(len, found)) < 32
            assert set(found) <= set(words(" ".join(LANGUAGES[row["doc_id"]])))
        if scheme == "keywords":
            assert check_docids(config, Index(config.index)) == {}
        if scheme != "title":
            assert all(len(row["docid"].split(" ")) >= 6 for row in docids)

    def test_versions_and_years_name_documents(self, tmp_path: Path) -> None:
        source = tmp_path / "corpus.jsonl"
        texts = {"3.11": "python 3.11 release of 2022", "3.12": "python 3.12 release of 2023", "c++": "c++ since '98"}
        source.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()))
        docids = {
            row["doc_id"]: set(row["docid"].split(" ")) for row in assigned(config_of(tmp_path, source, index="i"))[0]
        }
        assert docids == {
            "3.11": {"python", "3.11", "release", "2022"},
            "3.12": {"python", "3.12", "release", "2023"},
            "c++": {"c++", "98"},
        }

    def test_rejected_documents_and_duplicates(self, tmp_path: Path) -> None:
        rows = [
            {"_id": "fails", "text": "a question with <<fail>> inside, and bread"},
            {"_id": "wordless", "text": "?!…"},
            {"_id": "one", "text": BREAD},
            {"_id": "two", "text": BREAD},
        ]
        source = tmp_path / "corpus.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = config_of(tmp_path, source, index="index", shard_size=2, document_words=50)
        docids, counts = assigned(config)
        assert [row["doc_id"] for row in docids] == ["one", "two"]
        assert docids[0]["docid"] == docids[1]["docid"]
        assert (counts["rows"], counts["rejected"], counts["duplicates"]) == (2, 2, 1)
        assert Index(config.index).num_rejected("docids") == {"engine_error": 1, "no_words": 1}

    def test_documents_of_one_title_are_told_apart_and_say_so(self, tmp_path: Path) -> None:
        source = tmp_path / "corpus.jsonl"
        texts = ["flour", "water", "flour", "flour"]  # the last two have nothing of their own
        rows = [{"_id": str(i), "title": "Daily Bread", "text": "bread " * i + text} for i, text in enumerate(texts)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        docids, counts = assigned(config_of(tmp_path, source, index="index", scheme="title"))
        assert [row["docid"] for row in docids] == [
            "daily bread",
            "daily bread water",
            "daily bread flour",
            "daily bread 2",
        ]
        assert [row["source"] for row in docids] == ["scheme", "resolved", "resolved", "resolved"]
        assert (counts["resolved_by_terms"], counts["resolved_by_ordinal"]) == (2, 1)

    def test_every_document_rejected(self, tmp_path: Path) -> None:
        source = tmp_path / "corpus.jsonl"
        source.write_text('{"_id": "a", "text": "?!"}\n{"_id": "b", "text": "…"}\n')
        rows, counts = assigned(config_of(tmp_path, source, index="index", scheme="title"))
        assert rows == []
        assert (counts["rows"], counts["rejected"]) == (0, 2)

    def test_terms_are_shared_identifiers(self, tmp_path: Path) -> None:
        """Heaviest first; the docid is told apart, the identifiers need not be."""
        source = tmp_path / "corpus.jsonl"
        texts = ["an oven, two ovens " + 300 * "salt ", "an oven, two ovens " + 299 * "salt "]
        source.write_text(
            "".join(json.dumps({"_id": t[-9:] + str(len(t)), "title": "Bread", "text": t}) + "\n" for t in texts)
        )
        rows, _ = assigned(config_of(tmp_path, source, index="index", scheme="terms", num_terms=2))
        assert rows[0]["docid"] != rows[1]["docid"]
        for row in rows:
            assert [identifier["text"] for identifier in row["identifiers"]] == row["candidates"][0].split()[:2]
            assert [identifier["weight"] for identifier in row["identifiers"]] == [1.0, 1 / (1 + 1 / 16)]

    def test_proposals_keep_their_columns(self, tmp_path: Path, collection: Path) -> None:
        config = config_of(tmp_path, collection, index="index")
        assigned(config)
        table = storage.read_parquet(Index(config.index).shard(FOLDER, 0))
        assert table.schema.remove_metadata() == PROPOSAL_SCHEMA
        assert all(earlier < later for earlier, later in pairwise(table.column("row_id").to_pylist()))


def test_inputs_without_a_language_model_hold_none_of_its_settings(tmp_path: Path, collection: Path) -> None:
    config = config_of(tmp_path, collection, index="index")
    index = Index(config.index)
    counts = build_corpus(config, index)
    index.finish("corpus", {}, config={}, counts=counts, seconds=0)

    def inputs(**docids: Any) -> dict[str, Any]:
        return docids_inputs(config_of(tmp_path, collection, index="index", **docids), index)

    assert "docids.model" not in inputs(scheme="tfidf") and "docids.prompt" not in inputs(scheme="tfidf")
    differing = {key for key, value in inputs().items() if value != inputs(temperature=1.0, candidates=5)[key]}
    assert differing == {"docids.temperature", "docids.candidates"}
    assert "docids.prompt" in inputs()
