"""The stages that a search needs, called one after the other, without Ray."""

from __future__ import annotations

from typing import Any

import torch

from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.docids.stage import FOLDER, DocidProposer, assign_docids, docids_inputs
from zerogr.index.index import Index
from zerogr.llm.engines.fake import FakeEngine
from zerogr.queries.stage import QueryWriter, queries_counts, queries_inputs
from zerogr.ranking.stage import FOLDER as LEXICAL_FOLDER
from zerogr.ranking.stage import TermCounter, build_lexical, lexical_inputs
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors
from zerogr.training.loop import train
from zerogr.training.recipes.recipe import load_base, publish_model
from zerogr.training.recipes.retriever import RetrieverRecipe
from zerogr.trie.stage import build_trie, trie_inputs


def build_index(config: Config) -> dict[str, torch.Tensor]:
    """Runs the five stages that a search needs; returns the trained weights."""
    index = Index(config.index)

    def finish(stage: str, inputs: dict[str, Any], counts: dict[str, Any]) -> None:
        index.finish(stage, inputs, config=config.model_dump(mode="json"), counts=counts, seconds=0)

    finish("corpus", corpus_inputs(config), build_corpus(config, index))
    proposer, writer = DocidProposer(config, index, FakeEngine()), QueryWriter(config, index, FakeEngine())
    for shard in index.pending_shards(FOLDER):
        proposer(shard)
        writer(shard)
    finish("docids", docids_inputs(config, index), assign_docids(config, index))
    finish("queries", queries_inputs(config, index), queries_counts(index))
    if config.ranking.needs_lexical:
        for shard in index.pending_shards(LEXICAL_FOLDER):
            TermCounter(index)(shard)
        finish("lexical", lexical_inputs(index), build_lexical(index))
    finish("trie", trie_inputs(config, index), build_trie(config, index))
    recipe = RetrieverRecipe(config)
    model, tokenizer = load_base(recipe)
    checkpointer = StorageCheckpointer(index.path("work", "training"))
    examples, choices = recipe.examples(tokenizer), recipe.choices(tokenizer)
    counts = train(model, examples, recipe.settings, checkpointer=checkpointer, choices=choices)
    publish_model(recipe, model)
    finish("retriever", recipe.inputs(), counts)
    return full_tensors(model)
