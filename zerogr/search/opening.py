"""Opening an index: its parts, checked against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zerogr.config.owned import ranking_of
from zerogr.corpus.lookup import Lookup
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.index.versions import Version, manifest_of
from zerogr.llm.chat import SCORER, ChatFormat
from zerogr.llm.models import load_model, tokenizer_hash
from zerogr.ranking.ranker import Data, load_ranker
from zerogr.search.answer import Documents
from zerogr.search.changes import apply_changes
from zerogr.search.writer import Writer
from zerogr.store import cache
from zerogr.trie.metadata import open_metadata
from zerogr.trie.opened import map_documents, open_trie


def open_index(
    uri: str, *, device: str | None, dtype: Any, decoder: str | None = None, version: int | None = None
) -> dict[str, Any]:
    """Returns the arguments of `zerogr.retriever.Retriever` for the index at `uri`; see `Retriever.load`."""
    index = Index(uri)
    manifest = manifest_of(index, version)
    if not manifest["stages"]:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    ranking = ranking_of(manifest["config"].get("ranking", {}))
    for stage in ("docids", *(["lexical"] if ranking.needs_lexical else []), "trie", "retriever"):
        index.require(stage)
    chosen = Version.of(manifest)
    lexical_folder = cache.local_folder(index.path(chosen.base, "lexical")) if ranking.needs_lexical else None
    opened, table = open_trie(index, chosen), map_documents(index, chosen)
    data = Data(opened.folder, lexical_folder)
    if (data.owners.num_rows if data.has_owners else opened.num_rows) != len(table):
        raise UserError(
            f"the trie of '{uri}' is not that of its {len(table)} docids; run `zerogr index` with --rebuild trie"
        )
    metadata = open_metadata(index, manifest, chosen)
    folder = cache.local_folder(index.path(chosen.retriever))
    if opened.extra.get("tokenizer") != tokenizer_hash(str(folder)):
        raise UserError(
            f"the trie of '{uri}' was made with another tokenizer than its retriever; "
            "run `zerogr index` with --rebuild trie"
        )
    model, tokenizer = load_model(str(folder), device=device, dtype=dtype)
    changes = apply_changes(model, index, chosen)
    chat, instruction = ChatFormat.trained(str(folder), tokenizer)
    return {
        "writer": Writer(model, chat, opened.trie, decoder, terms=changes, scorer=_scorer(folder)),
        "ranker": load_ranker(ranking, data),
        "documents": Documents.of(table, opened.denied, Lookup(index, chosen), metadata),
        "instruction": instruction,
        "decoding": manifest["config"]["decoding"],
        "manifest": manifest,
    }


def _scorer(folder: Path) -> torch.Tensor | None:
    file = folder / SCORER
    return load_file(file)["weight"] if file.exists() else None
