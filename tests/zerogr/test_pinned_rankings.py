"""What a search and an explanation return, pinned: a refactoring that changes a ranking by accident is found here.

The index is made of 40 documents by the fake engine, the retriever is an untrained tiny model in fp64, so that another
processor moves scores by less than the tolerance. `python -m tests.zerogr.test_pinned_rankings` pins anew; do that only for a
change that is meant to change a result, and say which in the commit.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.decoding import STRATEGIES
from zerogr.docids.stage import FOLDER, DocidProposer, assign_docids, docids_inputs
from zerogr.index.index import Index
from zerogr.llm.chat import SETTINGS_FILE
from zerogr.llm.engines.fake import FakeEngine
from zerogr.ranking.ranker import Part
from zerogr.ranking.stage import FOLDER as LEXICAL_FOLDER
from zerogr.ranking.stage import TermCounter, build_lexical, lexical_inputs
from zerogr.retriever import Retriever
from zerogr.text.words import stem
from zerogr.trie.stage import build_trie, trie_inputs

PINNED = Path(__file__).with_name("pinned_rankings.json")
QUERIES = ["the roast beans of coffee in the kettle", "safety of sailing with jib and mast", "gambit"]
ALLOW = [f"{topic}-{number}" for topic in ("coffee", "chess", "bread") for number in range(6)]
DENY = ["coffee-0", "coffee-3", "sailing-1", "chess-7"]
EXPLAINED = ["coffee-0", "sailing-6", "bread-2"]
K = 6
HYBRID = {
    "docids": {"scheme": "terms"},
    "ranking": {"name": "mix", "parts": {"terms": 0.5, "lexical": 0.5}},
}


def build_index(folder: Path, **changes: Any) -> str:
    """Makes corpus, docids and trie, and an untrained retriever; returns the URI."""
    collection = tiny.write_collection(folder / "collection")
    model = tiny.save_model(folder / "model", initializer_range=0.25)
    uri = str(folder / "index")
    config = validate_config(tiny.settings(uri, collection, model, **changes))
    index = Index(uri)

    def finish(stage: str, inputs: dict[str, Any], counts: dict[str, Any]) -> None:
        index.finish(stage, inputs, config=config.model_dump(mode="json"), counts=counts, seconds=0)

    finish("corpus", corpus_inputs(config), build_corpus(config, index))
    proposer = DocidProposer(config, index, FakeEngine())
    for shard in index.pending_shards(FOLDER):
        proposer(shard)
    finish("docids", docids_inputs(config, index), assign_docids(config, index))
    if config.ranking.needs_lexical:
        for shard in index.pending_shards(LEXICAL_FOLDER):
            TermCounter(index)(shard)
        finish("lexical", lexical_inputs(index), build_lexical(index))
    finish("trie", trie_inputs(config, index), build_trie(config, index))
    _publish_retriever(config, index, model)
    finish("retriever", {}, {})
    return uri


def _publish_retriever(config: Config, index: Index, model: Path) -> None:
    target = Path(index.path("retriever"))
    shutil.copytree(model, target)
    settings = {
        "instruction": config.instruction,
        "codec": "text",
        "max_instruction_tokens": 64,
        "max_query_tokens": 64,
    }
    (target / SETTINGS_FILE).write_text(json.dumps(settings))


def rankings(retriever: Retriever, **options: Any) -> dict[str, Any]:
    """Returns what every strategy finds for every query, among all documents and among some."""
    views = {"all": retriever, "allow": retriever.restricted(allow=ALLOW), "deny": retriever.restricted(deny=DENY)}
    return {
        f"{strategy} {view}": [
            [(hit.doc_id, hit.docid, hit.score) for hit in hits]
            for hits in restricted.search(QUERIES, k=K, strategy=strategy, seed=3, **options)
        ]
        for strategy in STRATEGIES
        for view, restricted in views.items()
    }


def paths(retriever: Retriever) -> list[Any]:
    """Returns the tokens of some documents' docids as the model saw them."""
    return [
        [(t.doc_id, t.score, [(s.token, s.log_prob, s.rank, s.num_allowed, s.best) for s in t.steps]) for t in of_query]
        for of_query in retriever.trace(QUERIES, [EXPLAINED] * len(QUERIES))
    ]


def parts(retriever: Retriever, **options: Any) -> list[Any]:
    """Returns what some documents' scores are the sum of; what a mix has of one word is added up."""
    return [
        [(t.doc_id, t.score, _by_word(t.parts)) for t in of_query]
        for of_query in retriever.trace(QUERIES, [EXPLAINED] * len(QUERIES), **options)
    ]


def _by_word(found: list[Part]) -> list[tuple[str, float, float]]:
    words: dict[str, list[Part]] = {}
    for part in found:
        words.setdefault(stem(part.text), []).append(part)
    summed = []
    for of_word in words.values():
        generated = [part for part in of_word if part.probability is not None] or of_word
        score = sum(part.score for part in of_word)
        summed.append((generated[0].text, generated[0].probability or 0.0, score))
    return sorted(summed, key=lambda word: -word[2])


def observed(folder: Path) -> dict[str, Any]:
    """Returns all that is pinned."""
    whole = Retriever.load(build_index(folder / "whole", docids__scheme="keywords"), dtype=torch.float64)
    terms = Retriever.load(build_index(folder / "terms", **HYBRID), dtype=torch.float64)
    found = {
        "whole": rankings(whole),
        "whole, vocabulary": rankings(whole, normalise="vocabulary"),
        "whole, paths": paths(whole),
        "mix": rankings(terms),
        "terms": rankings(terms, ranking="terms"),
        "lexical": rankings(terms, ranking="lexical"),
        "mix, parts": parts(terms),
        "terms, parts": parts(terms, ranking="terms"),
    }
    return json.loads(json.dumps(found))


def test_rankings_are_as_pinned(tmp_path: Path) -> None:
    pinned, found = json.loads(PINNED.read_text()), observed(tmp_path)
    assert pinned.keys() == found.keys()
    for name in pinned:
        assert _texts(found[name]) == _texts(pinned[name]), name
        assert _numbers(found[name]) == pytest.approx(_numbers(pinned[name]), abs=1e-6, rel=1e-6), name


def _leaves(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    return [leaf for item in items for leaf in (_leaves(item) if isinstance(item, list | dict) else [item])]


def _texts(value: Any) -> list[Any]:
    return [leaf for leaf in _leaves(value) if not isinstance(leaf, float)]


def _numbers(value: Any) -> list[float]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, float)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in observed(Path(temporary)).items()]
        PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
