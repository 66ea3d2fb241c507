"""The documents and the trie that an update adds to those of its base; or, compacted, all of them as one.

    trie/documents.parquet   row_id, doc_id, docid of every document added since the base, in the order of the rows
    trie/*.bin, meta.json    the trie of their docids
    trie/rows/               which of its docids the base has, too, and the rows of removed documents
    trie/metadata.arrow      what those documents can be filtered by, where the index names keys

The addition holds everything since the base, so that opening a version takes two tries however many updates there were. It is
made anew by every update, in time and memory for what was added; compacting takes those for the whole index. Where documents
share identifiers, and where the ranking reads a lexical index, every update compacts: the tables beside the trie have no
additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.docids.scheme import scheme_class
from zerogr.editing.existing import chat_of
from zerogr.editing.update import Update, planned
from zerogr.index.index import Index, shard_name
from zerogr.index.versions import Live, Version
from zerogr.ranking.lexical_index import LexicalIndex
from zerogr.ranking.owners import OWNERS, Owners
from zerogr.ranking.stage import FOLDER as TERMS_FOLDER
from zerogr.ranking.stage import terms_of
from zerogr.search.answer import Documents
from zerogr.store import storage
from zerogr.store.arrays import save_arrays
from zerogr.trie import DocidTrie
from zerogr.trie.grown import same_docids
from zerogr.trie.metadata import documents_of, joined, keys_of, open_table, read_metadata, write_table
from zerogr.trie.opened import DOCUMENTS, ROWS, open_trie, read_added, read_docids, read_documents
from zerogr.trie.stage import tokens_of

VERSION = 1
_AT_ONCE = 2**16


def addition_inputs(update: Update) -> dict[str, Any]:
    """Returns what the documents and the trie of an update are made from."""
    record = update.index.record("docids")
    return {
        **({"docids": record.fingerprint} if record else {}),
        "before": update.before.number,
        "remove": sorted(update.request.remove),
        "compact": update.request.compact,
        "version": VERSION,
    }


def build_addition(update: Update) -> dict[str, Any]:
    """Builds and publishes them; returns the stage's counts."""
    root, before = update.root, update.before
    new = read_docids(update.index)
    known, opened = read_documents(root, before), open_trie(root, before)
    documents = Documents.of(known, opened.denied)
    removed = documents.rows_of(list(update.request.remove))
    denied = np.union1d(opened.denied, removed).astype(np.int64)
    counts = {"rows": len(new), "removed": len(removed)}
    with storage.staging_folder(update.index.path("trie")) as folder:
        if update.is_whole:
            is_live = np.ones(len(known), dtype=bool)
            is_live[denied] = False
            table = pa.concat_tables([known.filter(pa.array(is_live)), new])
            trie = _shared_trie(update, folder) if update.config.docids.has_shared else _trie_of(table, root, before)
        else:
            table = pa.concat_tables([read_added(root, before), new])
            trie = _trie_of(table, root, before)
            base = DocidTrie.load(opened.folder)
            save_arrays(folder / ROWS, {"in_base": same_docids(base, trie), "denied": denied}, {})
        if keys := keys_of(root.manifest()):
            write_table(_metadata_of(update, keys), folder)
        trie.save(folder, extra=opened.extra)
        storage.write_parquet(str(folder / DOCUMENTS), table.combine_chunks())
    return {**counts, "docids": trie.num_docids, "bytes": trie.nbytes}


def _shared_trie(update: Update, folder: Path) -> DocidTrie:
    """Writes which documents have which identifiers, and returns the trie of those."""
    tables = Live(update.root, planned(update, num_removed=0)).tables("docids", ["identifiers"])
    parts = (table.column("identifiers").combine_chunks() for table in tables)
    owners, identifiers = Owners.build(parts, scheme_class(update.config.docids).fold)
    owners.save(folder / OWNERS)
    return _trie_of(pa.table({"docid": identifiers}), update.root, update.before)


def _metadata_of(update: Update, keys: list[str]) -> pa.Table:
    """Returns what the documents of the update's trie can be filtered by."""
    root, before = update.root, update.before
    if update.is_whole:
        live = Live(root, planned(update, num_removed=0))
        shards = (
            (live.read(layer, "docids", shard, ["row_id"]), root.path(layer.folder, "corpus", shard_name(shard)))
            for layer, shard in live.shards("docids")
        )
        return read_metadata(shards, keys)
    added = [open_table(root, before.addition)] if before.addition is not None else []
    return joined([*added, read_metadata(documents_of(update.index), keys)])


def build_lexical_of(update: Update) -> dict[str, Any]:
    """Builds and publishes the lexical index of old and new documents; returns the stage's counts."""
    live = Live(update.root, planned(update, num_removed=0))

    def documents() -> Iterator[tuple[pa.Array, ...]]:
        for layer, shard in live.shards("docids"):
            left = live.read(layer, "docids", shard, ["row_id"]).column("row_id").combine_chunks()
            yield terms_of(update.root.path(layer.folder, TERMS_FOLDER, shard_name(shard)), left)

    lexical = LexicalIndex.build(documents())
    with storage.staging_folder(update.index.path("lexical")) as target:
        lexical.save(target)
    return {"rows": lexical.num_rows, "terms": len(lexical.stems), "bytes": lexical.nbytes}


def _trie_of(table: pa.Table, root: Index, before: Version) -> DocidTrie:
    docids = table.column("docid")
    parts = (docids.slice(begin, _AT_ONCE).to_pylist() for begin in range(0, len(docids), _AT_ONCE))
    return DocidTrie.build(tokens_of(parts, chat_of(root, before)))
