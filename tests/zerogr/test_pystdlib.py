"""The built-in corpus and the judged collection that goes with it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from zerogr.corpus import pystdlib
from zerogr.corpus.document import KINDS, Document
from zerogr.errors import UserError

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "examples" / "pystdlib"


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    listed = list(pystdlib.read_pystdlib())
    assert len({document.doc_id for document in listed}) == len(listed), "doc_ids must be unique"
    assert [document.doc_id for document in listed] == sorted(document.doc_id for document in listed)
    return {document.doc_id: document for document in listed}


@pytest.fixture(scope="module")
def questions() -> dict[str, str]:
    lines = (COLLECTION / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["_id"] for row in rows}) == len(rows), "question ids must be unique"
    return {row["_id"]: row["text"] for row in rows}


@pytest.fixture(scope="module")
def qrels() -> dict[str, dict[str, dict[str, int]]]:
    """Split -> question id -> doc_id -> grade."""
    splits: dict[str, dict[str, dict[str, int]]] = {"dev": {}, "test": {}}
    for split, judged in splits.items():
        with open(COLLECTION / "qrels" / f"{split}.tsv", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            assert next(reader) == ["query-id", "corpus-id", "score"]
            for question, doc_id, grade in reader:
                assert doc_id not in judged.setdefault(question, {}), f"{question} judges {doc_id} twice"
                judged[question][doc_id] = int(grade)
    return splits


def digest(documents: list[Document]) -> str:
    text = json.dumps([[document.doc_id, document.title, document.text, document.kind] for document in documents])
    return hashlib.sha256(text.encode()).hexdigest()


class TestCorpus:
    def test_documents_are_many_and_none_is_empty(self, documents: dict[str, Document]) -> None:
        assert len(documents) >= 1000
        assert all(document.title.strip() and document.text.strip() for document in documents.values())

    def test_every_sort_and_every_kind_occurs(self, documents: dict[str, Document]) -> None:
        sorts = {doc_id.partition(":")[0] for doc_id in documents}
        assert sorts == {"topic", "module", "class", "function", "method"}
        assert {document.kind for document in documents.values()} == set(KINDS)

    def test_no_private_name_and_nothing_left_out_on_purpose(self, documents: dict[str, Document]) -> None:
        names = [doc_id.partition(":")[2].split(".") for doc_id in documents if not doc_id.startswith("topic:")]
        assert not [name for name in names if any(part.startswith("_") for part in name)]
        assert not {name[0] for name in names} & {"antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo"}

    def test_names_are_those_a_programmer_imports(self, documents: dict[str, Document]) -> None:
        # Defined in posixpath, asyncio.runners, concurrent.futures.thread, datetime or _pydatetime, and in C.
        for name in (
            "function:os.path.join",
            "function:asyncio.run",
            "class:concurrent.futures.ThreadPoolExecutor",
            "class:datetime.timedelta",
            "method:str.split",
        ):
            assert documents[name].title == name.partition(":")[2]
        assert not [doc_id for doc_id in documents if doc_id.partition(":")[2].startswith("posixpath")]

    def test_signature_and_kind(self, documents: dict[str, Document]) -> None:
        assert documents["function:os.path.join"].text.startswith("join(a, *p)\n")
        assert documents["method:str.split"].text.startswith("split(sep=None, maxsplit=-1)\n")
        assert documents["topic:assignment"].title == "Assignment statements"
        assert documents["topic:operator-summary"].kind == "table"
        assert documents["topic:assignment"].kind == "text"
        assert documents["module:json"].kind == "code"  # mostly interactive examples

    def test_same_bytes_in_another_process_and_no_import_with_side_effects(
        self, documents: dict[str, Document]
    ) -> None:
        program = textwrap.dedent("""
            import json, sys
            from zerogr.corpus.pystdlib import read_pystdlib
            rows = [[d.doc_id, d.title, d.text, d.kind] for d in read_pystdlib()]
            print(json.dumps([rows, sorted(sys.modules)]))
        """)
        environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
        output = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout
        rows, imported = json.loads(output)
        assert digest([Document(*row) for row in rows]) == digest(list(documents.values()))
        unwanted = {"antigravity", "idlelib", "test", "this", "tkinter", "turtle", "webbrowser"}
        assert not unwanted & {name.partition(".")[0] for name in imported}

    def test_what_a_program_replaces_is_described_as_it_ships(
        self, documents: dict[str, Document], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("builtins.print", lambda *_args: None)
        monkeypatch.setattr("sys.excepthook", lambda *_args: None)
        assert digest(list(pystdlib.read_pystdlib())) == digest(list(documents.values()))


class TestSmallLibrary:
    """The naming rules, on a library of a few lines."""

    def read(self, root: Path, files: dict[str, str]) -> dict[str, Document]:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(textwrap.dedent(text), encoding="utf-8")
        documents = pystdlib._source_documents(pystdlib._parse_library(root))
        return {document.doc_id: document for document in documents}

    def test_definition_in_a_private_file_takes_the_public_name(self, tmp_path: Path) -> None:
        documents = self.read(
            tmp_path,
            {
                "shelf/__init__.py": "from ._local import *\n__all__ = ['Box']\n",
                "shelf/_local.py": '''
                    class Box:
                        """Holds as many things as you put into it."""
                        def __init__(self, size, /, *, colour="red"):
                            pass
                        def fill(self, things):
                            """Put the things in. Return how many."""
                    class Lid:
                        """Covers a box, but is not exported by anybody."""
                ''',
            },
        )
        assert list(documents) == ["class:shelf.Box"]
        assert documents["class:shelf.Box"].text == (
            "class Box(size, /, *, colour='red')\n\nHolds as many things as you put into it.\n\n"
            "Methods:\n    fill(things)\n        Put the things in."
        )

    def test_shortest_public_name_wins_and_computed_all_is_ignored(self, tmp_path: Path) -> None:
        documents = self.read(
            tmp_path,
            {
                "tools/__init__.py": "from .saw import *\n__all__ = saw.__all__\n",
                "tools/saw.py": '''
                    __all__ = ["cut"]
                    try:
                        from _fast import cut
                    except ImportError:
                        def cut(plank):
                            """Cut the plank into two pieces of equal length."""
                    def _grip():
                        """Hold the handle of the saw with one hand."""
                    def sharpen():
                        """Sharpen the teeth of the saw before using it."""
                ''',
            },
        )
        assert list(documents) == ["function:tools.cut"]

    def test_short_docstrings_tests_and_removed_modules_are_left_out(self, tmp_path: Path) -> None:
        function = '''
            def f(x):
                """{}"""
        '''
        long = function.format("Return x with seven more words behind it.")
        names = ("kept.py", "test/test_kept.py", "site-packages/other.py", "cgi.py", "this.py", "config-3.11/make.py")
        documents = self.read(tmp_path, {name: long for name in names} | {"short.py": function.format("Return x.")})
        assert list(documents) == ["function:kept.f"]

    def test_missing_library_and_missing_topics_are_the_users_to_mend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(UserError, match=f"^pystdlib: {re.escape(str(tmp_path))} holds no sources"):
            list(pystdlib.read_pystdlib())
        (tmp_path / "kept.py").write_text('"""A module with a docstring of eight words."""\n', encoding="utf-8")
        with pytest.raises(UserError, match="topics.py; install the full standard library"):
            list(pystdlib.read_pystdlib())


class TestCollection:
    def test_at_least_150_questions_each_judged_in_exactly_one_split(
        self, questions: dict[str, str], qrels: dict[str, dict[str, dict[str, int]]]
    ) -> None:
        assert len(questions) >= 150
        assert len(set(questions.values())) == len(questions)
        assert not set(qrels["dev"]) & set(qrels["test"])
        assert set(qrels["dev"]) | set(qrels["test"]) == set(questions)
        assert len(qrels["dev"]) >= 45
        assert len(qrels["test"]) >= 110

    def test_judged_documents_exist_and_each_question_has_a_direct_answer(
        self, documents: dict[str, Document], qrels: dict[str, dict[str, dict[str, int]]]
    ) -> None:
        for judged in (qrels["dev"] | qrels["test"]).values():
            assert set(judged) <= set(documents)
            assert set(judged.values()) <= {1, 2}
            assert 2 in judged.values()

    def test_no_question_is_copied_from_a_document_judged_for_it(
        self, documents: dict[str, Document], questions: dict[str, str], qrels: dict[str, dict[str, dict[str, int]]]
    ) -> None:
        def runs(text: str) -> set[tuple[str, ...]]:
            words = re.findall(r"\w+", text.lower())
            return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

        copied = [
            (questions[question], doc_id)
            for question, judged in (qrels["dev"] | qrels["test"]).items()
            for doc_id in judged
            if runs(questions[question]) & runs(f"{documents[doc_id].title} {documents[doc_id].text}")
        ]
        assert not copied
