"""Updates: documents come and go, versions stand side by side, and nothing is lost or doubled on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs import index as index_job
from jobs import update as update_job
from jobs.cli import main
from jobs.parser import METHOD_NAMES
from tests import tiny
from tests.jobs.updating import LENIENT, find_all, update
from tests.published import files
from zerogr import Retriever
from zerogr.config.file import load_config
from zerogr.config.owned import METHOD
from zerogr.corpus.collection import Collection
from zerogr.editing.update import Request, begin, update_config
from zerogr.errors import UserError
from zerogr.evaluation.baselines.systems import Documents
from zerogr.evaluation.explain import training_queries
from zerogr.index.index import Index
from zerogr.index.versions import Live, Version, publish
from zerogr.plugins import built_in
from zerogr.store import storage

METHODS = built_in(METHOD.package)


class TestAVersion:
    def test_new_documents_can_be_found_and_removed_ones_cannot(self, place: Path) -> None:
        before = find_all(place)
        found = update(place, add="new.jsonl", remove=("chess-0", "coffee-3"))
        assert (found["version"], found["added"], found["removed"], found["documents"]) == (1, 8, 2, 38)
        for strategy in ("beam", "greedy", "nucleus", "reverse_annealing", "stochastic_beam", "best_first"):
            now = find_all(place, strategy=strategy)
            assert set(now) == set(before) - {"chess-0", "coffee-3"} | {f"bicycles-{i}" for i in range(8)}, strategy

    def test_the_old_version_stays_and_can_be_brought_back(self, place: Path) -> None:
        published = files(str(place / "index"), "corpus", "docids", "queries", "trie", "retriever")
        before = find_all(place)
        update(place, add="new.jsonl", remove=("chess-0",))
        assert files(str(place / "index"), "corpus", "docids", "queries", "trie", "retriever") == published
        old = Retriever.load(str(place / "index"), device="cpu", version=0)
        assert [hit.doc_id for hit in old.search(["what about it"], k=100)[0]] == before
        assert main(["update", str(place / "index"), "--rollback", "0"]) == 0
        assert find_all(place) == before
        assert update(place, add="new-0.jsonl")["version"] == 2, "the folder of a version is never used again"
        assert main(["update", str(place / "index"), "--rollback", "1"]) == 0
        assert "bicycles-7" in find_all(place)

    def test_a_version_that_never_was(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["update", str(place / "index"), "--rollback", "7"]) == 2
        assert "has no version 7; the current one is 0" in capsys.readouterr().err

    def test_removed_documents_are_shown_nowhere(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        update(place, remove=("chess-0",))
        index = Index(str(place / "index"))
        retriever = Retriever.load(str(place / "index"), device="cpu")
        assert "chess-0" not in retriever.doc_ids()
        assert retriever.num_documents == 31
        assert "chess-0" not in Documents.read(index, {"chess-0", "chess-1"}).doc_ids
        assert training_queries(index, ["chess-0"]) == {}
        assert all(
            "chess-0" not in table.column("doc_id").to_pylist() for table in Live(index).tables("corpus", ["doc_id"])
        )
        assert main(["explain", str(place / "index"), "chess", "--doc", "chess-0"]) == 2
        assert "the index holds no document 'chess-0'" in capsys.readouterr().err
        restricted = retriever.restricted(allow=["chess-0", "chess-1"])
        assert [hit.doc_id for hit in restricted.search(["chess"], k=10)[0]] == ["chess-1"]

    def test_a_document_is_replaced(self, place: Path) -> None:
        row = {"_id": "chess-0", "title": "", "text": "A new text on the endgame clock and gambit of the bishop."}
        (place / "again.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        found = update(place, add="again.jsonl", remove=("chess-0",))
        assert (found["added"], found["removed"], found["documents"]) == (1, 1, 32)
        assert find_all(place).count("chess-0") == 1
        [text] = [
            each["text"]
            for table in Live(Index(str(place / "index"))).tables("corpus", ["doc_id", "text"])
            for each in table.to_pylist()
            if each["doc_id"] == "chess-0"
        ]
        assert text == row["text"]

    def test_a_duplicate_shares_its_docid_and_a_collision_does_not(self, place: Path) -> None:
        first = tiny.documents()[0]
        close = {**first, "_id": "close", "text": first["text"] + " And no word more."}
        (place / "twins.jsonl").write_text(json.dumps({**first, "_id": "twin"}) + "\n" + json.dumps(close) + "\n")
        update(place, add="twins.jsonl")
        retriever = Retriever.load(str(place / "index"), device="cpu")
        docid_of = {hit.doc_id: hit.docid for hit in retriever.search(["coffee"], k=100)[0]}
        assert docid_of["twin"] == docid_of[first["_id"]]
        assert len(set(docid_of.values())) == len(docid_of) - 1
        update(place, remove=(first["_id"],))
        assert "twin" in find_all(place)

    def test_compaction_changes_no_answer(self, place: Path) -> None:
        for number in range(4):
            update(place, add=f"new-{number}.jsonl", remove=(f"chess-{number}",))
        queries = ["chess", "the tyre of bicycles", "bread and espresso"]

        def answers() -> str:
            retriever = Retriever.load(str(place / "index"), device="cpu")
            found = [
                retriever.search(queries, k=20, strategy=strategy, seed=3)
                for strategy in ("beam", "reverse_annealing", "best_first", "stochastic_beam")
            ]
            return repr(found)

        before = answers()
        found = update(place, compact=True)
        assert (found["version"], found["documents"]) == (5, 32)
        assert answers() == before
        assert Version.of(Index(str(place / "index")).manifest()).addition is None
        update(place, add="new-5.jsonl", remove=("bicycles-0",))
        assert {"bicycles-5"} <= set(find_all(place)) and "bicycles-0" not in find_all(place)

    def test_evaluation_sees_the_current_version(self, place: Path, before_updates: Path) -> None:
        update(place, add="new.jsonl", remove=("chess-0",))
        whole = tiny.write_collection(place / "whole")
        options = ["--dataset", str(whole), "--strategy", "beam", "--baseline", "bm25", "--json"]
        assert main(["evaluate", str(place / "index"), *options]) == 0
        kept = Collection.load(str(whole)).restricted_to(Retriever.load(str(place / "index"), device="cpu").doc_ids())
        assert len(kept.queries) == 39

    def test_status_says_which_version(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        update(place, add="new.jsonl", remove=("chess-0",))
        assert main(["status", str(place / "index")]) == 0
        assert "version 1, 39 documents; the stages are those it began with" in capsys.readouterr().out
        assert main(["status", str(place / "index"), "--json"]) == 0
        version = json.loads(capsys.readouterr().out)["version"]
        assert version == {"number": 1, "documents": 39, "updates": 1, "is_compact": False, "unfinished_update": False}

    def test_a_rebuilt_index_forgets_its_updates(self, place: Path) -> None:
        update(place, add="new.jsonl")
        Index(str(place / "index")).rebuild("trie")
        assert Version.of(Index(str(place / "index")).manifest()).number == 0
        assert not (place / "index" / "versions").exists()

    @pytest.mark.parametrize("stage", ["trie", "retriever"])
    def test_a_rebuilt_index_forgets_an_unfinished_update(self, place: Path, stage: str) -> None:
        """What it has learnt is of a retriever that is no more."""
        begin_only(place)
        Index(str(place / "index")).rebuild(stage)
        assert not (place / "index" / "versions").exists()

    def test_an_update_of_what_the_index_was_is_not_gone_on_with(self, place: Path) -> None:
        begin_only(place)
        index = Index(str(place / "index"))
        manifest = index.manifest()
        manifest["stages"]["retriever"]["fingerprint"] = "another"
        storage.write_json(index.path("index.json"), manifest)
        with pytest.raises(
            UserError, match="begun before the index was built anew; forget it with `zerogr update .* --discard`"
        ):
            update(place, add="new.jsonl")


def begin_only(place: Path) -> None:
    """Begins the update that adds `new.jsonl`, and leaves it."""
    root, request = Index(str(place / "index")), Request(source=str(place / "new.jsonl"))
    assert begin(root, request, update_config(root, request, [*LENIENT, "update.method.name=none"]))
    assert (place / "index" / "versions" / "000001" / "update.json").exists()


class TestMethods:
    def test_the_help_names_them_all(self) -> None:
        assert sorted(METHOD_NAMES) == METHODS

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_makes_a_version_that_answers(self, place: Path, method: str) -> None:
        found = update(place, add="new.jsonl", method=method)
        assert {f"bicycles-{i}" for i in range(8)} <= set(find_all(place))
        assert found["measured"]["num_new"] == 8
        again = update(place, add="new.jsonl", method=method)
        assert again == {
            "index": str(place / "index"), "version": 1, "documents": 40, "done_before": True
        }  # fmt: skip

    @pytest.mark.parametrize("method", ["finetune", "certificate", "memit"])
    def test_what_was_learnt_stays_when_more_comes(self, place: Path, method: str) -> None:
        update(place, add="new-0.jsonl", method=method)
        learnt = Retriever.load(str(place / "index"), device="cpu").writer.model
        old = Retriever.load(str(place / "index"), device="cpu", version=0).writer.model
        update(place, remove=("chess-7",))
        now = Retriever.load(str(place / "index"), device="cpu").writer.model
        weights = {name: weight for name, weight in learnt.model.named_parameters()}
        assert all(weight.equal(weights[name]) for name, weight in now.model.named_parameters())
        assert len(now.terms) == len(learnt.terms)
        config = Index(str(place / "index")).manifest()["config"]
        assert config["corpus"]["source"].endswith("collection"), "the index keeps its own configuration"
        changed = [name for name, weight in old.model.named_parameters() if not weight.equal(weights[name])]
        assert bool(changed) == (method != "certificate")
        assert bool(len(now.terms)) == (method == "certificate")

    def test_too_much_forgotten_stays_unpublished(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = [
            "update", str(place / "index"), "--add", str(place / "new.jsonl"), "--method", "finetune",
            "--set", "update.method.learning_rate=0.05", "--set", "update.max_forgetting=0",
        ]  # fmt: skip
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "version 1 of" in said and "stays unpublished" in said and "--discard" in said
        assert Version.of(Index(str(place / "index")).manifest()).number == 0
        assert "bicycles-0" not in find_all(place)
        assert main([*command[:-1], "update.max_forgetting=1"]) == 0
        assert "bicycles-0" in find_all(place)


class TestOtherSchemes:
    @pytest.mark.parametrize(
        "changes",
        [
            {"docids__scheme": "keywords"},
            {"docids__scheme": "title"},
            {"docids__scheme": "terms", "ranking": {"name": "mix", "parts": {"terms": 0.5, "lexical": 0.5}}},
        ],
        ids=["keywords", "title", "terms"],
    )
    def test_updates_find_new_documents_and_lose_removed_ones(
        self, tmp_path: Path, before_updates: Path, changes: dict[str, Any]
    ) -> None:
        rows = tiny.documents()
        collection = tiny.write_collection(tmp_path / "collection", rows[:32])
        tree = tiny.settings(str(tmp_path / "index"), collection, before_updates / "model", **changes)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        index_job.run(load_config(str(tmp_path / "config.yaml")))
        for number in (0, 1):
            shutil.copy(before_updates / f"new-{number}.jsonl", tmp_path)
            update(
                tmp_path,
                add=f"new-{number}.jsonl",
                remove=(f"chess-{number}",),
                method="finetune" if number else "none",
            )
        retriever = Retriever.load(str(tmp_path / "index"), device="cpu")
        expected = {row["_id"] for row in rows[32:34]} | {row["_id"] for row in rows[:32]} - {
            "chess-0",
            "chess-1",
        }
        assert retriever.doc_ids() == expected
        found = {
            hit.doc_id
            for hits in retriever.search([row["text"] for row in rows], k=40, strategy="beam")
            for hit in hits
        }
        assert "chess-0" not in found and "chess-1" not in found
        assert {"bicycles-0", "bicycles-1"} <= found

    def test_no_number_is_left(self, place: Path) -> None:
        """A scheme may run out of docids that the retriever can write: the document is rejected, with the reason."""
        from zerogr.docids.scheme import Proposal
        from zerogr.editing.existing import Existing
        from zerogr.errors import Fault
        from zerogr.llm.generation import Rejection

        update(place, add="new-0.jsonl")
        existing = Existing(Index(str(place / "index" / "versions" / "000001")))

        class Scheme:
            def tell_apart(self, docid: str, own: Any, rival: Any) -> Any:
                return iter(())

            def numbered(self, docid: str, number: int) -> str:
                return f"{docid} {number}"

        def written(docid: str) -> Any:
            if docid.endswith((" 2", " 3")):
                return [1]
            raise Fault("no token")

        known = existing.documents.names(0)[1]
        proposal = Proposal(candidates=[known], sources=["scheme"])
        document = {"title": "", "text": "something else"}
        [told_apart] = existing.settle([document], [proposal], Scheme())
        assert isinstance(told_apart, Proposal) and told_apart.candidates[:2] == [f"{known} 2", f"{known} 3"]
        existing.rows_with = lambda docid: np.array([0]) if docid == known else written(docid)  # type: ignore
        [rejected] = existing.settle([document], [proposal], Scheme())
        assert isinstance(rejected, Rejection) and rejected.reason == "no_docid_left"


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "there is nothing to do; give --add SOURCE, --remove FILE or --compact"),
            (["--remove", "nowhere.txt"], "there is no file 'nowhere.txt'"),
            (["--add", "nowhere.jsonl"], "nowhere.jsonl"),
            (["--add", "new.jsonl", "--method", "magic"], "update.method.name is 'magic': must be one of"),
            (["--compact", "--set", "docids.scheme=title"], "every version of an index has the same docids"),
            (
                ["--compact", "--set", "update.method={name: rome, layers: [0, 1]}"],
                "'update.method.layers' is a setting of",
            ),
        ],
    )
    def test_get_one_sentence(
        self, place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch
    ) -> None:
        monkeypatch.chdir(place)
        assert main(["update", str(place / "index"), *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("zerogr: ") and said in error
        assert not (place / "index" / "versions").exists() or arguments[0] == "--add"
        assert len(find_all(place)) == 32

    def test_documents_that_are_not_there(self, place: Path) -> None:
        with pytest.raises(UserError, match=r"2 of the 3 documents to remove are not in .*first is 'a'; take them out"):
            update(place, remove=("a", "chess-0", "b"))

    def test_the_last_document_stays(self, place: Path) -> None:
        with pytest.raises(UserError, match="no document of .* would be left"):
            update(place, remove=tuple(row["_id"] for row in tiny.documents()[:32]))

    def test_documents_that_are_there_already(self, place: Path) -> None:
        rows = [tiny.documents()[0], tiny.documents()[39]]
        (place / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = update_job.run(
            str(place / "index"),
            Request(source=str(place / "both.jsonl")),
            [*LENIENT, "compute.max_rejected_fraction=1"],
        )
        assert (found["added"], found["documents"]) == (1, 33)
        assert Index(str(place / "index" / "versions" / "000001")).num_rejected("corpus") == {"duplicate_doc_id": 1}

    def test_another_update_was_begun(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any) -> None:
            raise UserError("stop here")

        with monkeypatch.context() as patched:
            patched.setattr(update_job, "measure", fail)
            with pytest.raises(UserError, match="stop here"):
                update(place, add="new-0.jsonl")
        with pytest.raises(UserError, match=r"another update of .* was begun and not finished \(adds .*new-0.jsonl"):
            update(place, add="new-1.jsonl")
        assert main(["update", str(place / "index"), "--discard"]) == 0
        assert update(place, add="new-1.jsonl")["version"] == 1
        assert {"bicycles-1"} == set(find_all(place)) - {row["_id"] for row in tiny.documents()[:32]}


def test_many_updates_in_a_row(place: Path) -> None:
    """Each document can be found after its update, and the index looks the same as one that got them at once."""
    for number in range(8):
        update(place, add=f"new-{number}.jsonl", method="certificate")
        assert f"bicycles-{number}" in find_all(place)
    one_by_one = sorted(find_all(place))
    root = Index(str(place / "index"))
    assert len(Version.of(root.manifest()).layers) == 9
    publish(root, 0)
    update(place, add="new.jsonl", method="certificate")
    assert sorted(find_all(place)) == one_by_one
