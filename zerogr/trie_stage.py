"""The trie stage: the docids of the index, tokenised as the retriever will write them, become a memory-mappable trie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr import storage
from zerogr.chat import ChatFormat
from zerogr.config import Config
from zerogr.docids.forms import forms
from zerogr.errors import UserError
from zerogr.index import Index, shards_in
from zerogr.models import load_tokenizer, resolve_model, tokenizer_hash
from zerogr.progress import Progress
from zerogr.trie import DocidTrie
from zerogr.trie_build import offsets_of

VERSION = 2


def trie_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the trie is made from."""
    tokenizer = tokenizer_hash(resolve_model(config.retriever.model))
    return {
        "docids": index.require("docids").fingerprint,
        "docids.num_free_words": config.docids.num_free_words,
        "retriever.tokenizer": tokenizer,
        "version": VERSION,
    }


def build_trie(config: Config, index: Index) -> dict[str, Any]:
    """Builds and publishes the trie; returns the stage's counts.

    The docids are tokenised in all their forms, shard by shard, so that of them only the tokens are held, four bytes each.
    """
    folder = resolve_model(config.retriever.model)
    chat = ChatFormat.of(load_tokenizer(folder))
    shards = shards_in(index.path("docids"))
    progress = Progress("trie", total=len(shards), unit="shards")
    num_free_words = config.docids.num_free_words
    tokens, lengths, num_forms = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for shard in shards:
        docids = storage.read_parquet(index.shard("docids", shard), ["docid"]).column("docid").to_pylist()
        written = [forms(docid, num_free_words) for docid in docids]
        shard_tokens, offsets = chat.docids([form for of_docid in written for form in of_docid])
        tokens.append(shard_tokens)
        lengths.append(np.diff(offsets))
        num_forms.append(np.array([len(of_docid) for of_docid in written], dtype=np.int64))
        progress.advance(1)
    progress.close()
    all_lengths = np.concatenate(lengths)
    if not len(all_lengths):
        raise UserError(f"'{index.uri}' has no docid; every document was rejected, see `zerogr status {index.uri}`")
    all_tokens, all_forms = np.concatenate(tokens), np.concatenate(num_forms)
    del tokens, lengths, num_forms
    rows = np.repeat(np.arange(len(all_forms)), all_forms) if num_free_words else None
    trie = DocidTrie.build((all_tokens, offsets_of(all_lengths)), rows)
    with storage.staging_folder(index.path("trie")) as target:
        trie.save(target, extra={"tokenizer": tokenizer_hash(folder), "num_free_words": num_free_words})
    return {"rows": trie.num_rows, "forms": trie.num_docids, "nodes": trie.num_nodes, "bytes": trie.nbytes}


def read_docids(index: Index) -> pa.Table:
    """Returns doc_id and docid of every document of the index, in row order: row i is row i of the trie."""
    tables = list(_shards(index))
    return (
        pa.concat_tables(tables).combine_chunks()
        if tables
        else pa.table({"doc_id": pa.array([], pa.string()), "docid": pa.array([], pa.string())})
    )


def _shards(index: Index) -> Iterator[pa.Table]:
    for shard in shards_in(index.path("docids")):
        yield storage.read_parquet(index.shard("docids", shard), ["doc_id", "docid"])
