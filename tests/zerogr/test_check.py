"""The check of a version: what was published passes, in another precision too, and what is not that is refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.stages import build_index
from zerogr.config.file import validate_config
from zerogr.index.index import CHECK, Index
from zerogr.index.versions import Version, name_of, number_before
from zerogr.retriever import Retriever
from zerogr.search.answer import Hit
from zerogr.search.check import Asked, CheckError, check_answer, check_files, queries_of, read_check, write_check
from zerogr.store import storage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path) -> str:
    """An index with its check."""
    uri = str(tmp_path_factory.mktemp("checked") / "index")
    build_index(validate_config(tiny.settings(uri, collection, tiny_model, training__num_epochs=4)))
    write_check(Index(uri), Retriever.load(uri, device="cpu"), queries_of(Index(uri)))
    return uri


@pytest.fixture
def copy(published: str, tmp_path: Path) -> Index:
    """The index, to be damaged."""
    shutil.copytree(published, tmp_path / "index")
    return Index(str(tmp_path / "index"))


def check_of(index: Index) -> Any:
    check = read_check(index, index.manifest())
    assert check is not None
    return check


class TestFiles:
    def test_what_was_published_passes(self, published: str) -> None:
        index = Index(published)
        check = check_of(index)
        check_files(index, index.manifest(), check)
        assert {"trie/meta.json", "retriever/model.safetensors", "retriever/tokenizer.json"} <= check.files.keys()

    @pytest.mark.parametrize("name", ["retriever/model.safetensors", "trie/tail_tokens.bin"])
    def test_a_flipped_bit_is_found(self, copy: Index, name: str) -> None:
        file = Path(copy.path(name))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
        with pytest.raises(
            CheckError, match=f"the file '.*{name}' of version .* was published; .* copy the index again"
        ):
            check_files(copy, copy.manifest(), check_of(copy))

    def test_a_missing_file_is_named(self, copy: Index) -> None:
        Path(copy.path("retriever/model.safetensors")).unlink()
        with pytest.raises(CheckError, match="lacks the file '.*retriever/model.safetensors'"):
            check_files(copy, copy.manifest(), check_of(copy))


class TestAnswer:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_rounding_passes(self, published: str, dtype: str) -> None:
        check_answer(Retriever.load(published, device="cpu", dtype=dtype), check_of(Index(published)))

    def test_other_weights_are_found(self, copy: Index, tmp_path: Path) -> None:
        """The files fit each other in name and shape; only the answer tells."""
        other = tiny.save_model(tmp_path / "other", seed=1, initializer_range=0.3)
        shutil.copy(other / "model.safetensors", copy.path("retriever/model.safetensors"))
        with pytest.raises(CheckError, match="for its stored query where .* its files do not belong together"):
            check_answer(Retriever.load(copy.uri, device="cpu"), check_of(copy))

    def test_another_document_is_found(self, published: str) -> None:
        check = replace(check_of(Index(published)), best={"doc_id": "nowhere", "score": -1.0})
        with pytest.raises(CheckError, match="where 'nowhere' was the best when it was published"):
            check_answer(Retriever.load(published, device="cpu"), check)

    @pytest.mark.parametrize(("moved", "passes"), [(0.4, True), (-0.4, True), (0.6, False), (-0.6, False)])
    def test_a_score_may_move_a_little(self, moved: float, passes: bool) -> None:
        double = Double({"a query": [("a", -1.0), ("b", -3.0)]})
        check = write_check(Index("memory://score"), double, [Asked("a query")])
        double.answers["a query"][0] = ("a", -1.0 + moved)
        if passes:
            check_answer(double, check)
        else:
            with pytest.raises(CheckError, match=r"scores 'a' -\d.\d00 for its stored query where it was -1.000"):
                check_answer(double, check)

    def test_others_may_change_places(self) -> None:
        double = Double({"a query": [("b", -3.0), ("a", -1.0), ("c", -3.1)]})
        check = write_check(Index("memory://order"), double, [Asked("a query")])
        double.answers["a query"] = [("c", -3.0), ("d", -3.05), ("a", -1.01)]
        check_answer(double, check)

    def test_without_a_check_it_has_to_answer_at_all(self) -> None:
        double = Double({})
        with pytest.raises(KeyError):
            check_answer(double, None)

    def test_an_index_that_finds_nothing(self) -> None:
        double = Double({"what is it about?": []})
        check = write_check(Index("memory://nothing"), double, [])
        assert check.best is None
        check_answer(double, check)


class Double:
    """A retriever of a version without files."""

    def __init__(self, answers: dict[str, list[tuple[str, float]]]) -> None:
        self.answers = answers
        self.manifest: dict[str, Any] = {"config": {}, "stages": {}}

    def search(self, queries: list[str], *, instruction: str | None, k: int) -> list[list[Hit]]:
        return [
            [Hit(doc_id, "", rank, score) for rank, (doc_id, score) in enumerate(self.answers[query][:k], 1)]
            for query in queries
        ]


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubles have none."""
    import zerogr.search.check as check

    files_of = check._files
    monkeypatch.setattr(
        check, "_files", lambda index, manifest: files_of(index, manifest) if manifest["stages"] else {}
    )


class TestWriting:
    def test_the_query_whose_best_document_leads_is_stored(self) -> None:
        answers = {"near": [("a", -1.0), ("b", -1.1)], "far": [("c", -5.0), ("a", -9.0)], "nothing": []}
        queries = [Asked("near"), Asked("far", "Find it."), Asked("nothing")]
        check = write_check(Index("memory://lead"), Double(answers), queries)
        assert (check.query, check.instruction) == ("far", "Find it.")
        assert check.best == {"doc_id": "c", "score": -5.0}

    def test_queries_are_the_indexs_own(self, published: str) -> None:
        queries = queries_of(Index(published))
        assert len(queries) == 8 and {asked.instruction for asked in queries} == {"Find the text that answers."}
        assert check_of(Index(published)).query in {asked.query for asked in queries}

    def test_a_check_of_something_else_is_none(self, copy: Index) -> None:
        manifest = copy.manifest()
        manifest["stages"]["trie"]["fingerprint"] = "0" * 16
        assert read_check(copy, manifest) is None

    def test_a_rebuilt_stage_takes_the_check_with_it(self, copy: Index) -> None:
        """The same inputs may give other bytes, under the same name."""
        copy.rebuild("evaluation")
        assert storage.exists(copy.path(CHECK))
        copy.rebuild("retriever")
        assert not storage.exists(copy.path(CHECK))

    def test_an_update_has_its_own(self, copy: Index) -> None:
        manifest = copy.manifest()
        first = Version.of(manifest)
        updated = {**manifest, "version": {**first.as_json(), "number": 3, "last": 3}}
        assert read_check(copy, updated) is None
        storage.write_json(
            copy.path("versions/000003", CHECK), {**vars_of(check_of(copy)), "version": name_of(updated)}
        )
        found = read_check(copy, updated)
        assert found is not None and found.version.endswith("+3")
        # Rolled back to the beginning, it is what it was before there was any update.
        rolled_back = {**manifest, "version": {**first.as_json(), "last": 3}}
        assert name_of(rolled_back) == name_of(manifest)
        assert read_check(copy, rolled_back) == check_of(copy)


def test_the_version_before_is_the_one_it_was_made_from(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    storage.write_json(index.path("versions/000004/update.json"), {"before": 2})
    assert (number_before(index, 4), number_before(index, 0)) == (2, None)


def vars_of(check: Any) -> dict[str, Any]:
    return {name: getattr(check, name) for name in check.__slots__}
