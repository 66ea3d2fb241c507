"""Recipes: what the trainer is given and what becomes of it. One trainer, four of them.

    retriever          (instruction, query -> docid) of an index: its pseudo-queries, and judged queries where there are some
    docid_generator    (document -> docid), asked as `zerogr docids` asks
    query_generator    (document, instruction -> query), asked as `zerogr queries` asks
    pretrained         (instruction, query -> titles of articles, by grades) of a corpus with links, before there is an index

The generators learn from teacher data (`zerogr distil`), from titles and from judged queries (`zerogr.teaching.pairs`); a
generator is then named as `docids.model` or `queries.model` of an index.
"""

from __future__ import annotations

from collections.abc import Callable

from zerogr.config.tree import Config
from zerogr.training.recipes.generator import GeneratorRecipe
from zerogr.training.recipes.pretraining import PretrainingRecipe
from zerogr.training.recipes.recipe import Recipe
from zerogr.training.recipes.retriever import RetrieverRecipe

RECIPES: dict[str, Callable[[Config], Recipe]] = {
    "retriever": RetrieverRecipe,
    "docid_generator": lambda config: GeneratorRecipe(config, "docid_generator"),
    "query_generator": lambda config: GeneratorRecipe(config, "query_generator"),
    "pretrained": PretrainingRecipe,
}
