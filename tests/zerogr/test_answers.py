"""Searches that say what a document says, and searches among documents with certain metadata."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.stages import build_index
from zerogr.config.file import validate_config
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.retriever import Retriever
from zerogr.search import views
from zerogr.search.answer import Documents
from zerogr.store import storage
from zerogr.trie.metadata import METADATA, Metadata

QUERIES = ["what about the roast beans of coffee", "the knight and the bishop"]
KEYS = ["topic", "number", "date", "rare"]


def documents() -> list[dict[str, Any]]:
    rows = tiny.documents()
    for place, row in enumerate(rows):
        topic, number = row["_id"].split("-")
        row["metadata"] = {"topic": topic, "number": int(number), "date": f"20{10 + place % 5}-03-01", "tags": [topic]}
    rows[0]["metadata"]["rare"] = True
    del rows[7]["metadata"]
    return rows


METADATA_OF = {row["_id"]: row.get("metadata", {}) for row in documents()}


def build(folder: Path, model: Path, **changes: Any) -> str:
    collection = tiny.write_collection(folder / "collection", documents())
    uri = str(folder / "index")
    build_index(validate_config(tiny.settings(uri, collection, model, serving__filter_keys=KEYS, **changes)))
    return uri


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    return build(tmp_path_factory.mktemp("answers"), tiny_model)


@pytest.fixture(scope="module")
def retriever(built: str) -> Retriever:
    return Retriever.load(built, device="cpu")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Retriever:
    hybrid = {"docids__scheme": "terms", "ranking__name": "mix"}
    return Retriever.load(build(tmp_path_factory.mktemp("answers"), tiny_model, **hybrid), device="cpu")


class TestContents:
    def test_hits_say_what_is_asked_for_and_nothing_else(self, retriever: Retriever) -> None:
        rows = {row["_id"]: row for row in documents()}
        answers = retriever.search(QUERIES, k=20, fields=["metadata", "kind", "text", "title"], snippet_characters=1000)
        for hits, plain in zip(answers, retriever.search(QUERIES, k=20), strict=True):
            assert [(hit.doc_id, hit.docid, hit.rank) for hit in hits] == [(h.doc_id, h.docid, h.rank) for h in plain]
            for hit in hits:
                row = rows[hit.doc_id]
                assert (hit.title, hit.text, hit.kind) == (row["title"], row["text"], "text")
                assert hit.metadata == row.get("metadata", {})
            assert all(hit.as_json().keys() == {"doc_id", "docid", "rank", "score"} for hit in plain)
        [[hit]] = retriever.search(QUERIES[:1], k=1, fields=["kind"])
        assert hit.as_json().keys() == {"doc_id", "docid", "rank", "score", "kind"}

    def test_the_text_is_a_snippet_of_the_query_s_words(self, retriever: Retriever) -> None:
        for query, topic in (("kettle", "coffee"), ("gambit", "chess")):
            [hits] = retriever.search([query], k=40, fields=["text"], snippet_characters=30, filter={"topic": topic})
            texts = [
                hit.text for hit in hits if query in next(r["text"] for r in documents() if r["_id"] == hit.doc_id)
            ]
            assert texts and all(query in text and len(text) <= 32 for text in texts)

    def test_no_characters_are_no_text(self, retriever: Retriever) -> None:
        [[hit]] = retriever.search(QUERIES[:1], k=1, fields=["text", "title"], snippet_characters=0)
        assert hit.text is None and hit.title is not None

    def test_who_asks_for_nothing_reads_nothing(self, retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "read_parquet", lambda *_: pytest.fail("the corpus was read"))
        retriever.search(QUERIES)
        retriever.search(QUERIES, fields=["text"], snippet_characters=0)

    def test_one_read_per_shard_for_a_batch(self, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []
        fresh, original = Retriever.load(built, device="cpu"), storage.read_parquet
        monkeypatch.setattr(storage, "read_parquet", lambda uri, *rest: (read.append(uri), original(uri, *rest))[1])
        fresh.search(QUERIES * 3, k=40, fields=["title"])
        assert sorted(read) == [Index(built).shard("corpus", shard) for shard in range(5)]

    def test_misuse_is_named(self, retriever: Retriever) -> None:
        for fields, given_name in ((["titel"], "titel"), ("title", "title")):
            with pytest.raises(
                UserError, match=f"fields has '{given_name}'; it must be a list of some of title, text, kind"
            ):
                retriever.search(QUERIES, fields=fields)
        with pytest.raises(UserError, match="snippet_characters is -1; it must be 0 or more"):
            retriever.search(QUERIES, snippet_characters=-1)


def test_object_storage_gives_the_same_answers(built: str, retriever: Retriever, s3_server: str) -> None:
    storage.upload_folder(Path(built), "s3://zerogr/answers")
    remote = Retriever.load("s3://zerogr/answers", device="cpu")
    how: dict[str, Any] = {
        "filter": {"number": [2, 3], "date": {"gte": "2011"}},
        "fields": ["title", "text", "metadata"],
    }
    found, expected = (each.search(QUERIES, k=9, **how) for each in (remote, retriever))
    assert found == expected and len(found[0]) > 1


def matches(doc_id: str, wanted: dict[str, Any]) -> bool:
    said = METADATA_OF[doc_id]

    def holds(key: str, condition: Any) -> bool:
        if key not in said:
            return False
        if isinstance(condition, dict):
            return bool(condition.get("gte", said[key]) <= said[key] <= condition.get("lte", said[key]))
        return said[key] in (condition if isinstance(condition, list) else [condition])

    return all(holds(key, condition) for key, condition in wanted.items())


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "topic": st.one_of(
            st.sampled_from([*tiny.TOPICS, "none"]), st.lists(st.sampled_from(list(tiny.TOPICS)), min_size=1)
        ),
        "number": st.one_of(
            st.integers(0, 8), st.fixed_dictionaries({"gte": st.integers(0, 8), "lte": st.sampled_from([2.5, 5, 9])})
        ),
        "date": st.sampled_from(["2012-03-01", {"gte": "2013"}, {"lte": "2011-12-31"}]),
        "rare": st.booleans(),
    },
)
STRICT = settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))


class TestFilters:
    @STRICT
    @given(FILTERS)
    def test_an_exact_search_answers_as_if_it_were_restricted_afterwards(
        self, retriever: Retriever, wanted: dict[str, Any]
    ) -> None:
        how = {"k": 40, "strategy": "best_first", "normalise": "vocabulary"}
        for hits, whole in zip(
            retriever.search(QUERIES, filter=wanted, **how), retriever.search(QUERIES, **how), strict=True
        ):
            left = [hit for hit in whole if matches(hit.doc_id, wanted)]
            assert [hit.doc_id for hit in hits] == [hit.doc_id for hit in left]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in left], abs=1e-4)

    @STRICT
    @given(FILTERS)
    def test_so_does_a_sum_over_terms(self, hybrid: Retriever, wanted: dict[str, Any]) -> None:
        """The lexical ranker weighs a word by how few of the documents that can be found have it, so its scores move."""
        how = {"k": 40, "strategy": "best_first", "ranking": "terms", "normalise": "vocabulary", "num_leaves": 500}
        [hits], [whole] = hybrid.search(QUERIES[:1], filter=wanted, **how), hybrid.search(QUERIES[:1], **how)
        left = {hit.doc_id: hit.score for hit in whole if matches(hit.doc_id, wanted)}
        assert {hit.doc_id: pytest.approx(hit.score, rel=1e-3) for hit in hits} == left

    @STRICT
    @given(FILTERS, st.sampled_from(list(STRATEGIES)), st.sampled_from([1, 5, 40]))
    def test_no_strategy_breaks_it(
        self, retriever: Retriever, hybrid: Retriever, wanted: dict[str, Any], strategy: str, k: int
    ) -> None:
        num_matching = sum(matches(doc_id, wanted) for doc_id in METADATA_OF)
        for searched in (retriever, hybrid):
            for hits in searched.search(QUERIES, filter=wanted, strategy=strategy, k=k):
                assert all(matches(hit.doc_id, wanted) for hit in hits)
                assert len(hits) == min(k, num_matching) or searched is hybrid

    def test_what_matches_nothing_is_an_empty_answer(self, retriever: Retriever, hybrid: Retriever) -> None:
        for searched in (retriever, hybrid):
            for strategy in STRATEGIES:
                assert searched.search(QUERIES, filter={"topic": "tea"}, strategy=strategy, fields=["title"]) == [
                    [],
                    [],
                ]

    def test_on_a_device_too(self, built: str, retriever: Retriever) -> None:
        device = Retriever.load(built, device="cpu", decoder="device")
        for wanted in ({"topic": ["coffee", "chess"]}, {"number": {"lte": 1}}, {"topic": "tea"}):
            found, expected = (each.search(QUERIES, k=9, filter=wanted) for each in (device, retriever))
            assert [[hit.doc_id for hit in hits] for hits in found] == [
                [hit.doc_id for hit in hits] for hits in expected
            ]

    def test_no_condition_leaves_everything(self, retriever: Retriever) -> None:
        """Also where the index has no keys, and so no row in its table."""
        documents = replace(retriever._documents, metadata=Metadata(pa.table({"row_id": pa.array([], pa.int64())}), []))
        assert documents.chosen(None, None, {}).is_everything
        assert retriever.search(QUERIES, filter={}) == retriever.search(QUERIES)

    def test_beside_allow_and_deny(self, retriever: Retriever) -> None:
        some = retriever.restricted(
            allow=["coffee-1", "coffee-5", "chess-6"], deny=["coffee-5"], filter={"topic": "coffee"}
        )
        assert [hit.doc_id for hit in some.search(QUERIES[:1])[0]] == ["coffee-1"]
        tenant = retriever.restricted(deny=["coffee-2"])
        found = tenant.search(QUERIES[:1], filter={"topic": "coffee", "number": {"lte": 3}})[0]
        assert {hit.doc_id for hit in found} == {"coffee-0", "coffee-1", "coffee-3"}

    def test_views_are_kept_but_not_for_ever(self, retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        """And 1 is not true: what is equal to Python must not share a view."""
        fresh, made, original = retriever.restricted(deny=[]), list[Any](), Documents.chosen
        monkeypatch.setattr(Documents, "chosen", lambda self, *which: (made.append(which), original(self, *which))[1])
        monkeypatch.setattr(views, "MOST", 2)

        def search(number: Any) -> int:
            fresh.search(QUERIES[:1], filter={"number": number})
            return len(made)

        assert [search(number) for number in (1, 1, 2, 1, 3, 1, 2)] == [1, 1, 2, 2, 3, 3, 4]
        with pytest.raises(UserError, match="filter.number cannot be compared with True"):
            search(True)

    def test_mistakes_are_named(self, retriever: Retriever) -> None:
        with pytest.raises(UserError, match="filter has the key 'author'; the index can be filtered by topic, number"):
            retriever.search(QUERIES, filter={"author": "x"})
        with pytest.raises(UserError, match="filter is a list"):
            retriever.search(QUERIES, filter=["topic"])  # type: ignore[arg-type]

    def test_the_keys_are_part_of_the_trie(self, built: str, tiny_model: Path, tmp_path: Path) -> None:
        """And where there are none, an index is what it was before there were any."""
        from zerogr.trie.stage import trie_inputs

        collection = tmp_path / "collection"
        with_keys = validate_config(tiny.settings(built, collection, tiny_model, serving__filter_keys=KEYS))
        without = validate_config(tiny.settings(built, collection, tiny_model))
        record = Index(built).require("trie")
        assert trie_inputs(with_keys, Index(built)) == record.inputs
        assert record.counts["documents with"] == {"topic": 39, "number": 39, "date": 39, "rare": 1}
        assert trie_inputs(with_keys, Index(built)).keys() - trie_inputs(without, Index(built)) == {
            "serving.filter_keys"
        }

    @pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"x")])
    def test_a_damaged_table_is_named(self, built: str, tmp_path: Path, damage: Any) -> None:
        shutil.copytree(built, tmp_path / "index")
        damage(tmp_path / "index" / "trie" / METADATA)
        with pytest.raises(UserError, match=r"metadata.arrow' cannot be read .*--rebuild trie"):
            Retriever.load(str(tmp_path / "index"), device="cpu")
