"""The trie stage: what the retriever may write, tokenised as it will write it, becomes a memory-mappable trie.

Its rows are the documents, each with its docid, or with `docids.unit: word` the words of all docids; then postings say which
documents have a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_tokenizer, resolve_model, tokenizer_hash
from zerogr.progress import Progress
from zerogr.ragged import offsets_of
from zerogr.ranking.postings import Postings
from zerogr.store import storage
from zerogr.trie import DocidTrie

VERSION = 5
POSTINGS = "postings"
"""Folder below that of the trie."""
_AT_ONCE = 2**16


def trie_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the trie is made from."""
    tokenizer = tokenizer_hash(resolve_model(config.retriever.model))
    return {
        "docids": index.require("docids").fingerprint,
        "docids.unit": config.docids.unit,
        "retriever.tokenizer": tokenizer,
        "version": VERSION,
    }


def build_trie(config: Config, index: Index) -> dict[str, Any]:
    """Builds and publishes the trie, and where the retriever writes words the postings; returns the stage's counts.

    Docids are tokenised shard by shard, so that of all of them only the tokens are held, four bytes each.
    """
    folder = resolve_model(config.retriever.model)
    chat = ChatFormat.of(load_tokenizer(folder))
    postings = None
    if config.docids.unit == "word":
        columns = ["docid", "terms", "term_counts", "length"]
        parts = (tuple(map(part.column, columns)) for part in _docids(index, columns))
        postings, words = Postings.build(parts, config.docids.num_terms)
        texts: Iterable[list[str]] = (words[i : i + _AT_ONCE] for i in range(0, len(words), _AT_ONCE))
    else:
        texts = (part.column("docid").to_pylist() for part in _docids(index, ["docid"]))
    tokens, lengths = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for part in texts:
        part_tokens, offsets = chat.docids(part)
        tokens.append(part_tokens)
        lengths.append(np.diff(offsets))
    all_lengths = np.concatenate(lengths)
    if not len(all_lengths):
        raise UserError(f"'{index.uri}' has no docid; every document was rejected, see `zerogr status {index.uri}`")
    all_tokens = np.concatenate(tokens)
    del tokens, lengths
    trie = DocidTrie.build((all_tokens, offsets_of(all_lengths)))
    counts = {"rows": trie.num_rows, "docids": trie.num_docids, "nodes": trie.num_nodes, "bytes": trie.nbytes}
    with storage.staging_folder(index.path("trie")) as target:
        trie.save(target, extra={"tokenizer": tokenizer_hash(folder), "unit": config.docids.unit})
        if postings:
            postings.save(target / POSTINGS)
            counts = {
                "rows": postings.num_rows, "words": trie.num_docids, "nodes": trie.num_nodes,
                "bytes": trie.nbytes + postings.nbytes,
            }  # fmt: skip
    return counts


def _docids(index: Index, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields columns of one shard of docids after the other, and says how far it is."""
    shards = shards_in(index.path("docids"))
    progress = Progress("trie", total=len(shards), unit="shards")
    for shard in shards:
        yield from storage.read_parquet(index.shard("docids", shard), columns).to_batches()
        progress.advance(1)
    progress.close()


def read_docids(index: Index) -> pa.Table:
    """Returns doc_id and docid of every document of the index, in row order: that of the trie, or of the postings."""
    tables = list(_shards(index))
    return (
        pa.concat_tables(tables).combine_chunks()
        if tables
        else pa.table({"doc_id": pa.array([], pa.string()), "docid": pa.array([], pa.string())})
    )


def _shards(index: Index) -> Iterator[pa.Table]:
    for shard in shards_in(index.path("docids")):
        yield storage.read_parquet(index.shard("docids", shard), ["doc_id", "docid"])
