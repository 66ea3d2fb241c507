"""Updates: documents come and go, versions stand side by side, and nothing is lost or doubled on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from jobs import index as index_job
from jobs import update as update_job
from jobs.cli import main
from jobs.parser import METHOD_NAMES
from tests import tiny
from tests.published import files
from zerogr import Retriever
from zerogr.config.file import config_of, load_config
from zerogr.config.owned import METHOD
from zerogr.corpus.collection import Collection
from zerogr.decoding.scoring import Request as Scored
from zerogr.editing.rehearsal import Known, kept
from zerogr.editing.states import States
from zerogr.editing.update import Request
from zerogr.errors import UserError
from zerogr.evaluation.baselines.systems import Documents
from zerogr.evaluation.explain import training_queries
from zerogr.index.index import Index
from zerogr.index.versions import Live, Version, publish
from zerogr.plugins import built_in

LENIENT = ["update.max_forgetting=1"]
METHODS = built_in(METHOD.package)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished index of the first 32 documents, and files of the others."""
    folder = tmp_path_factory.mktemp("update")
    rows = tiny.documents()
    collection = tiny.write_collection(folder / "collection", rows[:32])
    for number, row in enumerate(rows[32:]):
        (folder / f"new-{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[32:]), encoding="utf-8")
    model = tiny.save_model(folder / "model")
    tree = tiny.settings(str(folder / "index"), collection, model, training__num_epochs=12, docids__scheme="tfidf")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    index_job.run(load_config(str(folder / "config.yaml")))
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for file in built.glob("new*.jsonl"):
        shutil.copy(file, tmp_path)
    shutil.copytree(built / "index", tmp_path / "index")
    return tmp_path


def update(place: Path, *, add: str | None = None, remove: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """Runs an update of the index at a place."""
    method = options.pop("method", "none")
    source = None if add is None else str(place / add)
    request = Request(source=source, remove=remove, **options)
    return update_job.run(str(place / "index"), request, [*LENIENT, f"update.method.name={method}"])


def find_all(place: Path, query: str = "what about it", **options: Any) -> list[str]:
    """Returns the doc_ids of everything that a search can find."""
    retriever = Retriever.load(str(place / "index"), device="cpu")
    [hits] = retriever.search([query], k=100, **{"strategy": "beam", **options})
    return [hit.doc_id for hit in hits]


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

    def test_evaluation_sees_the_current_version(self, place: Path, built: Path) -> None:
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
        self, tmp_path: Path, built: Path, changes: dict[str, Any]
    ) -> None:
        rows = tiny.documents()
        collection = tiny.write_collection(tmp_path / "collection", rows[:32])
        tree = tiny.settings(str(tmp_path / "index"), collection, built / "model", **changes)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        index_job.run(load_config(str(tmp_path / "config.yaml")))
        for number in (0, 1):
            shutil.copy(built / f"new-{number}.jsonl", tmp_path)
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


KILL = """
import os, sys
from zerogr.store import storage
left = int(sys.argv.pop(1))
def counting(function):
    def call(uri, *arguments, **options):
        global left
        if "/index" in str(uri) and (left := left - 1) < 0:
            os.kill(os.getpid(), 9)
        return function(uri, *arguments, **options)
    return call
storage.write_bytes = counting(storage.write_bytes)
storage.create_json = counting(storage.create_json)
copy = storage._copy_local
storage._copy_local = lambda source, target: counting(lambda uri: copy(source, target))(target)
from jobs.cli import main
from jobs.parser import METHOD_NAMES
sys.exit(main(sys.argv[1:]))
"""


class TestKilled:
    @pytest.mark.parametrize(("method", "stride"), [("none", 3), ("memit", 6)])
    def test_at_any_write_the_old_version_answers_and_the_rerun_finishes(
        self, place: Path, method: str, stride: int, tmp_path: Path
    ) -> None:
        """Writes of the index are places to die: at the first, then a few further each time, from where the last run died."""
        command = ["update", str(place / "index"), "--add", str(place / "new.jsonl"), "--method", method]
        command += ["--set", LENIENT[0]]
        (tmp_path / "remove.txt").write_text("chess-0\n")
        command += ["--remove", str(tmp_path / "remove.txt")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        before, deaths, step = find_all(place), 0, 1
        while deaths < 40:
            run = subprocess.run(
                [sys.executable, "-c", KILL, str(step), *command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode == 0:
                break
            assert run.returncode == -9, run.stderr
            deaths += 1
            step += stride
            if Version.of(Index(str(place / "index")).manifest()).number == 0:
                assert find_all(place) == before
        assert deaths > 3
        now = find_all(place)
        assert sorted(now) == sorted(set(before) - {"chess-0"} | {f"bicycles-{i}" for i in range(8)})
        rows = [
            doc_id
            for table in Live(Index(str(place / "index"))).tables("docids", ["doc_id"])
            for doc_id in table.column(0).to_pylist()
        ]
        assert len(rows) == len(set(rows)) == 39


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


class TestWhatIsHandedOn:
    """An update that learns hands its sample of old queries to the next, and their states if no weight has changed."""

    def test_the_sample_is_the_one_that_the_shards_give(self, place: Path) -> None:
        root = Index(str(place / "index"))
        config = config_of({**root.manifest()["config"], "index": root.uri})

        def sample(number: int, **changed: Any) -> list[Known]:
            return kept(root, config, replace(Version.of(root.manifest()), **changed), number)

        update(place, add="new-0.jsonl", method="certificate")
        update(place, remove=("chess-7", "bicycles-0"))
        update(place, add="new-1.jsonl", method="none")
        assert sample(4096) == sample(4096, kept=None)
        update(place, add="new-0.jsonl", method="certificate")
        assert Version.of(root.manifest()).kept == 4
        assert sample(4096) == sample(4096, kept=None)
        found = {known.doc_id for known in sample(4096)}
        assert {"bicycles-0", "bicycles-1"} < found and "chess-7" not in found
        assert sample(3) == sample(3, kept=None), "a sample of another size is read anew"

    def test_states_are_those_of_the_model(self, place: Path) -> None:
        root = Index(str(place / "index"))
        update(place, add="new-0.jsonl", method="certificate")
        first = Version.of(root.manifest())
        update(place, remove=("chess-7",))
        assert Version.of(root.manifest()).states == first.states
        update(place, add="new-1.jsonl", method="certificate")
        version = Version.of(root.manifest())
        assert version.states is not None and version.states != first.states
        states = States.load(root.path(version.states))
        config = config_of({**root.manifest()["config"], "index": root.uri})
        known = [each for each in kept(root, config, version, 4096) if each.doc_id in ("bicycles-1", "bicycles-0")]
        assert known and not states.missing(known)
        writer = Retriever.load(root.uri, device="cpu").writer
        prompts = [
            (writer.chat.prefix(each.example.instruction), writer.chat.query(each.example.query)) for each in known
        ]
        scorer = writer.model.start(prompts)
        expected = scorer.hidden([Scored(query, (), np.empty(0, np.int64)) for query in range(len(known))])
        torch.testing.assert_close(states.of(known), expected.float(), atol=1e-4, rtol=1e-4)

        update(place, add="new-2.jsonl", method="memit")
        assert Version.of(root.manifest()).states is None
