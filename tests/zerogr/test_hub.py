"""Data sets on the Hugging Face hub, read through `huggingface_hub` from a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reading import read, refused
from zerogr.config.file import load_config
from zerogr.config.tree import CorpusConfig
from zerogr.corpus.collection import Collection
from zerogr.corpus.document import Document
from zerogr.corpus.readers import detect_format, source_hash
from zerogr.errors import UserError
from zerogr.store import cache, hub


def json_lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


class Hub:
    """What the server holds: {data set: {revision: {path: content}}}, and what it refuses."""

    def __init__(self) -> None:
        self.datasets: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()

    def add(self, name: str, revision: str = "main", **files: bytes) -> None:
        self.datasets.setdefault(name, {})[revision] = {path.replace("__", "/"): data for path, data in files.items()}


class Handler(BaseHTTPRequestHandler):
    """The three requests of the hub's API that reading takes: the data set, its tree, its files."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix("/api")
        name = "/".join(path.split("/")[2:4])
        rest = path.split("/", 4)[4] if path.count("/") > 3 else "revision/main"
        verb, _, place = rest.partition("/")
        revisions = self.hub.datasets.get(name)
        if revisions is None:
            return self.answer(404, b"{}", "RepoNotFound")
        revision = next((r for r in sorted(revisions, key=len, reverse=True) if f"{place}/".startswith(f"{r}/")), None)
        if revision is None:
            return self.answer(404, b"{}", "RevisionNotFound")
        files, below = revisions[revision], place.removeprefix(revision).lstrip("/")
        if verb == "revision":
            return self.answer(200, json.dumps({"id": name, "sha": "0" * 40}).encode())
        if verb == "tree":
            return self.tree(files, below, recursive="recursive=true" in url.query.lower())
        if name in self.hub.gated:
            return self.answer(403, b"{}", "GatedRepo")
        if below not in files:
            return self.answer(404, b"{}", "EntryNotFound")
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        data = files[below]
        self.answer(206 if span else 200, data[int(span[1]) : int(span[2] or len(data)) + 1] if span else data)

    do_HEAD = do_GET

    def tree(self, files: dict[str, bytes], below: str, *, recursive: bool) -> None:
        prefix = f"{below}/" if below else ""
        inside = {path[len(prefix) :]: data for path, data in files.items() if path.startswith(prefix)}
        if not inside:
            return self.answer(404, b"{}", "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path, data in inside.items():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "oid": "1" * 40, "size": 0, "path": prefix + folder}
            oid = hashlib.sha1(data).hexdigest()
            entries[path] = {"type": "file", "oid": oid, "size": len(data), "path": prefix + path}
        kept = [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path]
        self.answer(200, json.dumps(kept).encode())

    def answer(self, status: int, body: bytes, error: str | None = None) -> None:
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def move_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    of_a_file = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + of_a_file)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of the test's own."""
    import huggingface_hub.constants

    content = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": content}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the tests' environment says True
    move_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield content
    huggingface_hub.HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


ROWS = json_lines({"_id": "a", "text": "x"}, {"_id": "b", "text": "y"})
DOCUMENTS = [Document("a", "", "x"), Document("b", "", "y")]


class TestReading:
    @pytest.mark.parametrize(
        "source", ["hf:owner/name", "hf://datasets/owner/name", "hf:owner/name/", "hf:owner/name@main"]
    )
    def test_a_data_set(self, online: Hub, source: str) -> None:
        online.add("owner/name", **{"README.md": b"# Name", ".gitattributes": b"*", "data__train.jsonl": ROWS})
        assert read(source) == DOCUMENTS

    @pytest.mark.parametrize("source", ["hf:owner/name/corpus", "hf:owner/name/corpus/c-0.parquet"])
    def test_a_folder_and_a_file_of_one(self, online: Hub, source: str) -> None:
        files = {"corpus__c-0.parquet": parquet(_id=["a", "b"], text=["x", "y"]), "queries__q-0.parquet": b"no Parquet"}
        online.add("owner/name", **files)
        assert read(source) == DOCUMENTS

    def test_a_file_longer_than_a_block(self, online: Hub) -> None:
        rows = [{"_id": f"d{i}", "text": "word " * 2000} for i in range(700)]
        online.add("owner/name", **{"c.jsonl": json_lines(*rows)})
        assert [row.doc_id for row in read("hf:owner/name")] == [row["_id"] for row in rows]

    @pytest.mark.parametrize("revision", ["v1", "refs/convert/parquet"])
    def test_a_revision(self, online: Hub, revision: str) -> None:
        online.add("owner/name", **{"c.jsonl": json_lines({"_id": "new", "text": "x"})})
        online.add("owner/name", revision, **{"all__c.jsonl": ROWS})
        assert read(f"hf:owner/name@{revision}/all") == read(f"hf:owner/name@{revision}") == DOCUMENTS
        assert [row.doc_id for row in read("hf:owner/name")] == ["new"]

    def test_mair(self, online: Hub) -> None:
        online.add(
            "MAIR-Bench/MAIR-Docs", **{f"{task}__docs.jsonl": json_lines({"id": task, "doc": "x"}) for task in "AB"}
        )
        query = {"qid": "q", "instruction": "Find.", "query": "x", "labels": [{"id": "A", "score": 1}]}
        online.add("MAIR-Bench/MAIR-Queries", **{"A__queries.jsonl": json_lines(query)})
        assert detect_format(CorpusConfig(source="hf:MAIR-Bench/MAIR-Docs/A")) == "mair"
        assert read("hf:MAIR-Bench/MAIR-Docs/A") == [Document("A", "", "x")]
        assert Collection.load("hf:MAIR-Bench/MAIR-Queries/A").qrels == {"q": {"A": 1}}
        assert refused("hf:MAIR-Bench/MAIR-Docs").startswith(
            "corpus.source 'hf:MAIR-Bench/MAIR-Docs' holds 2 corpora (A/docs"
        )

    def test_a_beir_folder(self, online: Hub) -> None:
        qrels = b"query-id\tcorpus-id\tscore\nq\ta\t1\n"
        files = {"corpus.jsonl": ROWS, "queries.jsonl": json_lines({"_id": "q", "text": "x"}), "qrels__test.tsv": qrels}
        online.add("owner/name", **files)
        assert read("hf:owner/name") == DOCUMENTS
        assert Collection.load("hf:owner/name").qrels == {"q": {"a": 1}}
        with pytest.raises(UserError, match="'hf:owner/name' holds no split 'dev'; the splits that exist: test$"):
            Collection.load("hf:owner/name", "dev")

    def test_folders_are_not_read_as_one_unless_that_is_said(self, online: Hub) -> None:
        """The queries of a collection would be found as its documents."""
        online.add("owner/name", **{"corpus__c.jsonl": ROWS, "queries__q.jsonl": json_lines({"_id": "q", "text": "z"})})
        assert refused("hf:owner/name") == (
            "corpus.source 'hf:owner/name' holds 2 corpora (corpus, queries); name one, or set corpus.format to read them "
            "as one"
        )
        assert [row.doc_id for row in read("hf:owner/name", format="jsonl")] == ["a", "b", "q"]

    def test_the_hash_is_of_the_content(self, online: Hub) -> None:
        online.add("owner/name", **{"c.jsonl": ROWS})
        online.add("other/copy", **{"data__d.jsonl": ROWS})
        online.add("other/name", **{"c.jsonl": ROWS.replace(b"x", b"z")})
        hashes = [source_hash(CorpusConfig(source=f"hf:{name}")) for name in ("owner/name", "other/copy", "other/name")]
        assert hashes[0] == hashes[1] != hashes[2]
        assert cache.version("hf:owner/name") != cache.version("hf:other/name")


class TestErrors:
    @pytest.mark.parametrize("source", ["hf:owner/absent", "hf:owner/name@absent", "hf:owner/absent/c.jsonl"])
    def test_no_such_data_set_or_revision(self, online: Hub, source: str) -> None:
        online.add("owner/name", **{"c.jsonl": ROWS})
        assert refused(source) == (
            f"there is no '{source}' on the Hugging Face hub, or not for you; check owner, name and revision, and set HF_TOKEN "
            "if it is private"
        )

    def test_no_such_folder_or_file(self, online: Hub) -> None:
        online.add("owner/name", **{"c.jsonl": ROWS})
        assert "corpus.source 'hf:owner/name/absent' does not exist; give " in refused("hf:owner/name/absent")
        assert "has no jsonl file to read; check the path" in refused("hf:owner/name/absent.jsonl")

    @pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:owner//name"])
    def test_what_names_no_data_set(self, online: Hub, source: str) -> None:
        assert refused(source) == (
            f"'{source}' names no data set; write hf:owner/name, hf:owner/name@revision, or a folder or file below it, "
            "hf:owner/name/folder"
        )

    def test_a_file_behind_a_form(self, online: Hub) -> None:
        online.add("owner/name", **{"c.jsonl": ROWS})
        online.gated.add("owner/name")
        assert re.fullmatch(
            r"the Hugging Face hub refuses 'hf:owner/name/c\.jsonl' \(403 .*\); where it asks for consent, give it on its page "
            "there and set HF_TOKEN",
            refused("hf:owner/name"),
        )

    def test_offline(self, online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        expected = (
            r"'hf:owner/name' is on the Hugging Face hub, which cannot be reached from here \(.+\); connect this "
            "machine, or copy the data set to it and name its folder"
        )
        move_hub("http://127.0.0.1:9", monkeypatch)
        assert re.fullmatch(expected, refused("hf:owner/name"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert re.fullmatch(expected, refused("hf:owner/name"))
        with pytest.raises(UserError, match=expected):
            Collection.load("hf:owner/name")


def test_a_name_on_the_hub_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["corpus.source=hf:owner/name@main/folder"]).corpus.source == "hf:owner/name@main/folder"
    assert not hub.is_hub("hf/owner/name")
