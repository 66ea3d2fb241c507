"""Recipes: what the trainer is given and what becomes of it. One trainer, several of them.

    retriever          (instruction, query -> docid) of an index: its pseudo-queries, and judged queries where there are some
    docid_generator    (document -> docid), asked as `zerogr docids` asks
    query_generator    (document, instruction -> query), asked as `zerogr queries` asks
    scheme             what the docid scheme of an index says: fusion (text -> latent -> query)
    pretrained         (instruction, query -> titles of articles, by grades) of a corpus with links, before there is an index

The generators learn from teacher data (`zerogr distil`), from titles and from judged queries (`zerogr.teaching.pairs`); a
generator is then named as `docids.model` or `queries.model` of an index.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from zerogr.config.tree import Config
from zerogr.training.recipes.generator import GeneratorRecipe
from zerogr.training.recipes.pretraining import PretrainingRecipe
from zerogr.training.recipes.recipe import Recipe
from zerogr.training.recipes.retriever import RetrieverRecipe


def _of_scheme(config: Config) -> Recipe:
    """Returns the recipe that the configuration's docid scheme names."""
    module, _, name = str(config.docids.recipe).partition(":")
    recipe: Recipe = getattr(importlib.import_module(module), name)(config)
    return recipe


RECIPES: dict[str, Callable[[Config], Recipe]] = {
    "retriever": RetrieverRecipe,
    "docid_generator": lambda config: GeneratorRecipe(config, "docid_generator"),
    "query_generator": lambda config: GeneratorRecipe(config, "query_generator"),
    "scheme": _of_scheme,
    "pretrained": PretrainingRecipe,
}
