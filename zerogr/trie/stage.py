"""The trie stage: what the retriever may write, tokenised as it will write it, becomes a memory-mappable trie.

Its rows are the documents, each with its docid; or, where documents share identifiers, the identifiers, beside which a table of
owners says which documents have one. docids/ says which of the two it is. Where searches may filter, a table of the documents'
metadata stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.docids.scheme import scheme_class
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import resolve_model, tokenizer_hash
from zerogr.progress import Progress
from zerogr.ragged import offsets_of
from zerogr.ranking.owners import OWNERS, Owners
from zerogr.store import storage
from zerogr.trie import DocidTrie
from zerogr.trie.metadata import INPUT, documents_of, num_with, read_metadata, write_table
from zerogr.trie.written import Written

VERSION = 7
_AT_ONCE = 2**16


def trie_inputs(config: Config, index: Index) -> dict[str, Any]:
    """Returns what the trie is made from."""
    tokenizer = tokenizer_hash(resolve_model(config.retriever.model))
    keys = config.serving.filter_keys
    return {
        "docids": index.require("docids").fingerprint,
        "retriever.tokenizer": tokenizer,
        "version": VERSION,
        **({INPUT: keys} if keys else {}),
    }


def build_trie(config: Config, index: Index) -> dict[str, Any]:
    """Builds and publishes the trie, the owners of shared identifiers and the table of metadata; returns the stage's counts.

    Texts are tokenised part by part, so that of all of them only the tokens are held, four bytes each.
    """
    written = Written(config, index)
    owners = None
    if config.docids.has_shared:
        parts = (part.column("identifiers") for part in _docids(index, ["identifiers"]))
        owners, identifiers = Owners.build(parts, scheme_class(config.docids).fold)
        texts: Iterable[list[str]] = (identifiers[i : i + _AT_ONCE] for i in range(0, len(identifiers), _AT_ONCE))
    else:
        texts = (part.column("docid").to_pylist() for part in _docids(index, ["docid"]))
    tokens, offsets = tokens_of(texts, written.chat())
    if len(offsets) == 1:
        raise UserError(f"'{index.uri}' has no docid; every document was rejected, see `zerogr status {index.uri}`")
    trie = DocidTrie.build((tokens, offsets))
    counts: dict[str, Any] = {
        "rows": trie.num_rows,
        "docids": trie.num_docids,
        "nodes": trie.num_nodes,
        "bytes": trie.nbytes,
    }
    with storage.staging_folder(index.path("trie")) as target:
        trie.save(target, extra={"tokenizer": written.hash()})
        if owners:
            owners.save(target / OWNERS)
            counts = {
                "rows": owners.num_rows, "identifiers": trie.num_docids, "nodes": trie.num_nodes,
                "bytes": trie.nbytes + owners.nbytes,
            }  # fmt: skip
        if keys := config.serving.filter_keys:
            table = read_metadata(documents_of(index), keys)
            write_table(table, target)
            counts["documents with"] = num_with(table, keys)
    return counts


def tokens_of(texts: Iterable[list[str]], chat: ChatFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of all texts, given part by part, int32 [T], and their offsets, int64 [N + 1]."""
    tokens, lengths = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for part in texts:
        part_tokens, offsets = chat.docids(part)
        tokens.append(part_tokens)
        lengths.append(np.diff(offsets))
    return np.concatenate(tokens), offsets_of(np.concatenate(lengths))


def _docids(index: Index, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields columns of one shard of docids after the other, and says how far it is."""
    shards = shards_in(index.path("docids"))
    progress = Progress("trie", total=len(shards), unit="shards")
    for shard in shards:
        yield from storage.read_parquet(index.shard("docids", shard), columns).to_batches()
        progress.advance(1)
    progress.close()
