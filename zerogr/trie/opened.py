"""The documents and the trie of a version of an index, opened: those of its base, and what was added and removed since.

Whoever searches maps the documents instead of reading them: once per machine and version they are written into the cache as one
Arrow file, which all its processes share and of which memory holds what was looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from zerogr.index.index import Index, shards_in
from zerogr.index.versions import Version
from zerogr.store import cache, storage
from zerogr.store.arrays import load_arrays
from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.grown import GrownTrie
from zerogr.trie.trie import DocidTrie

DOCUMENTS = "documents.parquet"
"""In the folder trie/ of an update: the documents that its trie holds, a row each."""
DOCUMENTS_SCHEMA = pa.schema([("row_id", pa.int64()), ("doc_id", pa.string()), ("docid", pa.string())])
MAPPED = "documents.arrow"
"""The same, in the cache of a machine."""
ROWS = "rows"
ROW_ARRAYS = ("in_base", "denied")


@dataclass(frozen=True, slots=True)
class OpenedTrie:
    """The trie of a version; row i is the i-th of `read_documents`."""

    trie: DocidTrie | FilteredTrie | GrownTrie
    """Of the documents that were not removed."""
    extra: dict[str, object]
    """What was saved with it: the hash of the tokenizer."""
    denied: np.ndarray
    """int64, ascending: the rows of removed documents."""
    num_rows: int
    """Removed documents included."""
    folder: Path
    """Of the base's trie; local."""

    def whole(self) -> DocidTrie:
        """Returns one trie of all documents, removed ones included; merged in memory where some were added."""
        trie = self.trie.merged() if isinstance(self.trie, GrownTrie) else self.trie
        return cast(DocidTrie, trie.whole) if isinstance(trie, FilteredTrie) else trie


def open_trie(index: Index, version: Version) -> OpenedTrie:
    """Opens the trie of a version as memory maps. Raises UserError if it is missing or damaged."""
    folder = cache.local_folder(index.path(version.base, "trie"))
    base = DocidTrie.load(folder)
    if version.addition is None:
        return OpenedTrie(base, base.extra, np.empty(0, np.int64), base.num_rows, folder)
    added = cache.local_folder(index.path(version.addition, "trie"))
    arrays, _ = load_arrays(added / ROWS, ROW_ARRAYS, "list of rows", stage="trie")
    grown, denied = GrownTrie(base, DocidTrie.load(added), arrays["in_base"]), arrays["denied"]
    left = grown.filter(deny=denied) if len(denied) else grown
    return OpenedTrie(left, base.extra, denied, grown.num_rows, folder)


def read_documents(index: Index, version: Version) -> pa.Table:
    """Returns row_id, doc_id and docid of every document of a version, removed ones included, in the order of its trie."""
    compacted = index.path(version.base, "trie", DOCUMENTS)
    base = storage.read_parquet(compacted) if version.base else read_docids(index)
    return pa.concat_tables([base, read_added(index, version)]).combine_chunks()


def map_documents(index: Index, version: Version) -> pa.Table:
    """Returns what `read_documents` does, each column in one piece of a memory map; reads the Parquet files the first time.

    Raises:
        Fault: The disk of the cache is full.
    """
    base = index.path(version.base, "trie") if version.base else index.path("docids")
    parts = [base] if version.addition is None else [base, index.path(version.addition, "trie")]
    name = hashlib.sha256(repr([cache.version(part) for part in parts]).encode()).hexdigest()[:24]

    def fill(folder: Path) -> None:
        table = read_documents(index, version)
        with pa.OSFile(str(folder / MAPPED), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    file = cache.cached(cache.cache_folder() / "documents" / name, fill) / MAPPED
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def read_docids(index: Index) -> pa.Table:
    """Returns the same of the documents whose docids an index, or an update, has given."""
    uris = [index.shard("docids", shard) for shard in shards_in(index.path("docids"))]
    tables = [storage.read_parquet(uri, DOCUMENTS_SCHEMA.names) for uri in uris]
    return pa.concat_tables([DOCUMENTS_SCHEMA.empty_table(), *tables])


def read_added(index: Index, version: Version) -> pa.Table:
    """Returns the same of the documents that were added to the base."""
    if version.addition is None:
        return DOCUMENTS_SCHEMA.empty_table()
    return storage.read_parquet(index.path(version.addition, "trie", DOCUMENTS))
