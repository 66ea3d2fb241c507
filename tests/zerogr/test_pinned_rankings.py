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
from zerogr.retriever import Retriever
from zerogr.trie.stage import build_trie, trie_inputs

PINNED = Path(__file__).with_name("pinned_rankings.json")
QUERIES = ["the roast beans of coffee in the kettle", "safety of sailing with jib and mast", "gambit"]
ALLOW = [f"{topic}-{number}" for topic in ("coffee", "chess", "bread") for number in range(6)]
DENY = ["coffee-0", "coffee-3", "sailing-1", "chess-7"]
EXPLAINED = ["coffee-0", "sailing-6", "bread-2"]
K = 6


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
    finish("trie", trie_inputs(config, index), build_trie(config, index))
    _publish_retriever(config, index, model)
    finish("retriever", {}, {})
    return uri


def _publish_retriever(config: Config, index: Index, model: Path) -> None:
    target = Path(index.path("retriever"))
    shutil.copytree(model, target)
    settings = {"instruction": config.instruction, "max_instruction_tokens": 64, "max_query_tokens": 64}
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
    """Returns what some documents' scores are the sum of."""
    return [
        [(t.doc_id, t.score, [(word.word, word.probability, word.score) for word in t.words]) for t in of_query]
        for of_query in retriever.trace(QUERIES, [EXPLAINED] * len(QUERIES), **options)
    ]


def observed(folder: Path) -> dict[str, Any]:
    """Returns all that is pinned."""
    whole = Retriever.load(build_index(folder / "whole", docids__unit="docid"), dtype=torch.float64)
    terms = Retriever.load(build_index(folder / "terms", docids__scheme="tfidf"), dtype=torch.float64)
    found = {
        "whole": rankings(whole),
        "whole, vocabulary": rankings(whole, normalise="vocabulary"),
        "whole, paths": paths(whole),
        "mix": rankings(terms),
        "terms": rankings(terms, query_share=0),
        "lexical": rankings(terms, query_share=1),
        "mix, parts": parts(terms),
        "terms, parts": parts(terms, query_share=0),
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
