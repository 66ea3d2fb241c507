"""Opening an index: its parts, checked against each other."""

from __future__ import annotations

from typing import Any

from zerogr.config.owned import ranking_of
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.llm.chat import SETTINGS_FILE, ChatFormat
from zerogr.llm.models import load_model, tokenizer_hash
from zerogr.ranking.ranker import Data, load_ranker
from zerogr.search.answer import Documents
from zerogr.search.writer import Writer
from zerogr.store import cache, storage
from zerogr.trie import DocidTrie
from zerogr.trie.stage import read_docids


def open_index(uri: str, *, device: str | None, dtype: Any, decoder: str | None = None) -> dict[str, Any]:
    """Returns the arguments of `zerogr.retriever.Retriever` for the index at `uri`; see `Retriever.load`."""
    index = Index(uri)
    manifest = index.manifest()
    if not manifest["stages"]:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    ranking = ranking_of(manifest["config"].get("ranking", {}))
    for stage in ("docids", *(["lexical"] if ranking.needs_lexical else []), "trie", "retriever"):
        index.require(stage)
    trie_folder = cache.local_folder(index.path("trie"))
    lexical_folder = cache.local_folder(index.path("lexical")) if ranking.needs_lexical else None
    trie, table = DocidTrie.load(trie_folder), read_docids(index)
    data = Data(trie_folder, lexical_folder)
    if (data.owners if data.has_owners else trie).num_rows != len(table):
        raise UserError(
            f"the trie of '{uri}' is not that of its {len(table)} docids; run `zerogr index` with --rebuild trie"
        )
    folder = cache.local_folder(index.path("retriever"))
    if trie.extra.get("tokenizer") != tokenizer_hash(str(folder)):
        raise UserError(
            f"the trie of '{uri}' was made with another tokenizer than its retriever; "
            "run `zerogr index` with --rebuild trie"
        )
    settings = storage.read_json(str(folder / SETTINGS_FILE))
    model, tokenizer = load_model(str(folder), device=device, dtype=dtype)
    prompting = {key: settings[key] for key in ("codec", "max_instruction_tokens", "max_query_tokens")}
    return {
        "writer": Writer(model, ChatFormat.of(tokenizer, **prompting), trie, decoder),
        "ranker": load_ranker(ranking, data),
        "documents": Documents(table.column("doc_id").combine_chunks(), table.column("docid").combine_chunks()),
        "instruction": settings["instruction"],
        "decoding": manifest["config"]["decoding"],
        "manifest": manifest,
    }
