"""The model of the docid scheme `fusion`: pairs of document and query, learnt group by group (`zerogr.training.losses.fusion`).

A document's queries are the judged ones that it is relevant for, and spans of its own text. Groups are cut once: of the
documents in an order drawn by the seed, pair i goes into group i modulo the number of groups. All documents of a group are
different, and groups differ by one pair at most. GR2 draws the pairs of a batch anew in every epoch; ours draws the groups of
a step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from zerogr.config.tree import Config
from zerogr.corpus.collection import Collection
from zerogr.corpus.stage import load_frequency
from zerogr.docids.schemes.fusion import FusionSettings, judged_hash, text_of
from zerogr.errors import UserError
from zerogr.index.index import Index, fingerprint, shards_in
from zerogr.index.stage import SCHEME
from zerogr.llm.chat import ChatFormat
from zerogr.llm.latents import DOCUMENT, QUERY, closed_texts
from zerogr.llm.models import resolve_model, tokenizer_hash
from zerogr.queries.spans import make_spans
from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.text.words import words
from zerogr.training.examples import Examples
from zerogr.training.files import ExampleFiles
from zerogr.training.losses.fusion import FusionLossSettings
from zerogr.training.recipes.recipe import common_inputs, settings_of

VERSION = 1
AT_ONCE = 4096
"""Documents, or some more, whose pairs are grouped together: so many texts are in memory."""


class Texts(NamedTuple):
    """A document and what is asked of it."""

    document: str
    queries: list[str]


class FusionRecipe:
    """Groups of pairs become examples, of which the trained model and its bridge are left."""

    stage = SCHEME.name
    num_layers: int | None = None
    new_tokens: list[str] = []

    def __init__(self, config: Config) -> None:
        assert isinstance(config.docids, FusionSettings)
        scheme = self._scheme = config.docids
        self._config, self.index, self.base = config, Index(config.index), scheme.model
        self.settings = settings_of(
            config,
            num_epochs=scheme.num_epochs,
            batch_size=scheme.batch_size,
            learning_rate=scheme.learning_rate,
            normalise="vocabulary",
            loss=FusionLossSettings(
                num_latents=scheme.num_latents,
                autoencoder=scheme.autoencoder,
                alpha=scheme.alpha,
                beta=scheme.beta,
            ),
        )

    def inputs(self) -> dict[str, Any]:
        """Returns what the model is made from; how it is asked is not part of it."""
        own = ("num_epochs", "batch_size", "learning_rate", "max_query_tokens", "max_instruction_tokens")
        common = common_inputs(self._config, "docids", self.base)
        return {
            **{key: value for key, value in common.items() if key.removeprefix("training.") not in own},
            **self._pairs_inputs(),
            **{
                f"docids.{key}": getattr(self._scheme, key)
                for key in ("num_latents", "autoencoder", "alpha", "beta", "batch_size", "num_epochs", "learning_rate")
            },
            "docids.instructions": [DOCUMENT, QUERY],
        }

    def _pairs_inputs(self) -> dict[str, Any]:
        keys = ("num_spans_per_document", "max_document_tokens", "max_query_tokens", "group_size")
        return {
            "corpus": self.index.require("corpus").fingerprint,
            "docids.judged": judged_hash(self._scheme),
            **{f"docids.{key}": getattr(self._scheme, key) for key in keys},
            "pairs": VERSION,
        }

    def examples(self, tokenizer: Any) -> Examples:
        """Returns the groups, memory-mapped. Raises UserError if there is no pair."""
        examples = self._files().open(
            lambda: (examples_of(groups, tokenizer, self._scheme) for groups in self.groups())
        )
        if not len(examples):
            raise UserError(
                f"'{self.index.uri}' has no pair of document and query to learn docids from; raise "
                "docids.num_spans_per_document, or name judged queries of its documents as docids.judged"
            )
        return examples

    def _files(self) -> ExampleFiles:
        made_from = {
            **self._pairs_inputs(),
            "seed": self._config.seed,
            "tokenizer": tokenizer_hash(resolve_model(self.base)),
            "num_latents": self._scheme.num_latents,
            "instructions": [DOCUMENT, QUERY],
        }
        return ExampleFiles(fingerprint(made_from))

    def close(self) -> None:
        """Deletes the examples' files."""
        self._files().delete()

    def groups(self) -> Iterator[list[list[tuple[str, str]]]]:
        """Yields groups of (document, query), those of many documents at a time."""
        waiting: list[Texts] = []
        shards = shards_in(self.index.path("corpus"))
        for number, shard in enumerate(shards):
            waiting += self._texts(shard)
            if len(waiting) >= AT_ONCE or number == len(shards) - 1:
                random.Random(seed_of(self._config.seed, "groups", number)).shuffle(waiting)
                yield groups_of(waiting, self._scheme.group_size)
                waiting = []

    def _texts(self, shard: int) -> Iterator[Texts]:
        """Yields the documents of a shard that have words, with their queries."""
        settings = self._scheme
        for row in storage.read_parquet(self.index.shard("corpus", shard)).to_pylist():
            document = text_of(row, settings)
            if not words(document):
                continue
            seed = seed_of(self._config.seed, "fusion", row["doc_id"])
            count = settings.num_spans_per_document
            spans = make_spans(row["title"], row["text"], self._frequency, count, seed)
            yield Texts(document, list(dict.fromkeys([*self._judged.get(row["doc_id"], ()), *spans])))

    @cached_property
    def _frequency(self) -> Any:
        return load_frequency(self.index)

    @cached_property
    def _judged(self) -> dict[str, list[str]]:
        """The judged queries of every document that is relevant for some."""
        if self._scheme.judged is None:
            return {}
        collection = Collection.load(self._scheme.judged, self._scheme.judged_split)
        found = collection.by_document(self._config.instruction)
        return {doc_id: [query for _, query, _ in relevant] for doc_id, relevant in found.items()}

    def choices(self, tokenizer: Any) -> None:
        """There are none: queries are written among all tokens."""

    def write_settings(self, folder: Path) -> None:
        """Writes nothing: the index's configuration says how the model is asked."""


def groups_of(documents: Sequence[Texts], size: int) -> list[list[tuple[str, str]]]:
    """Returns (document, query) pairs in groups of at most `size`, no group with two pairs of one document.

    As few groups as there can be, and as equal ones.
    """
    num_pairs = sum(len(document.queries) for document in documents)
    most = max((len(document.queries) for document in documents), default=0)
    groups: list[list[tuple[str, str]]] = [[] for _ in range(max(-(-num_pairs // size), most))]
    pairs = ((document.document, query) for document in documents for query in document.queries)
    for number, pair in enumerate(pairs):
        groups[number % len(groups)].append(pair)
    return groups


def examples_of(groups: Sequence[Sequence[tuple[str, str]]], tokenizer: Any, settings: FusionSettings) -> Examples:
    """Returns groups of (document, query) as examples. Only queries weigh, each as much as it has tokens to write."""
    limits = (settings.max_document_tokens, settings.max_query_tokens)
    of_documents, of_queries = chats = [ChatFormat.of(tokenizer, max_query_tokens=limit) for limit in limits]
    texts = [[pair[side] for group in groups for pair in group] for side in range(2)]
    closed = [
        closed_texts(chat, instruction, each, settings.num_latents)
        for chat, instruction, each in zip(chats, (DOCUMENT, None), texts, strict=True)
    ]
    pairs = zip(*closed, strict=True)

    def answers(document: list[int], query: list[int]) -> list[tuple[list[int], float]]:
        # An answer's last token goes through no model (`zerogr.training.examples`): one more, which nobody reads.
        num_written = len(query) - settings.num_latents + 1
        return [
            ([*document, of_documents.end_token_id], 0.0),
            ([*query, of_queries.end_token_id], num_written / (len(query) + 1)),
        ]

    return Examples.of_groups(of_queries.prefix(QUERY), ([answers(*next(pairs)) for _ in group] for group in groups))
