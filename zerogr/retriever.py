"""The retriever: an index opened for search.

    retriever = Retriever.load("s3://bucket/index")
    retriever.search(["wing slipstream"], k=10)

A search encodes the prompts of its queries once and lets a strategy walk the trie for all of them together
(`zerogr.search.writer`); a ranker makes documents of what was written. Model on one device, tables are memory maps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

from zerogr.index.versions import name_of
from zerogr.ranking.ranker import Ranker, ranker_within
from zerogr.search.answer import Documents, Hit, Traced
from zerogr.search.answering import Answering
from zerogr.search.contents import SNIPPET_CHARACTERS
from zerogr.search.opening import open_index
from zerogr.search.planning import Plan, plan_of
from zerogr.search.tracing import trace
from zerogr.search.views import Views
from zerogr.search.writer import Instruction, Writer
from zerogr.trie.conditions import Conditions


class Retriever:
    """A loaded index. Not thread-safe: one search at a time."""

    def __init__(
        self,
        writer: Writer,
        ranker: Ranker,
        documents: Documents,
        *,
        instruction: str,
        decoding: dict[str, Any],
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """Puts the parts together; `load` is the usual way.

        Args:
            writer, ranker: What writes identifiers, and makes documents of them.
            documents: Of the index.
            instruction: Used where a search gives none.
            decoding: Defaults of `search`: the fields of `zerogr.config.tree.DecodingConfig`.
            manifest: The index's manifest.
        """
        self.writer, self.manifest, self.instruction = writer, manifest or {}, instruction
        self._ranker, self._documents, self._decoding = ranker, documents, decoding
        self._views = Views(writer, ranker, documents)

    @classmethod
    def load(
        cls,
        uri: str,
        *,
        device: str | None = None,
        dtype: Any = None,
        decoder: str | None = None,
        version: int | None = None,
    ) -> Self:
        """Returns the index at `uri`, ready to search.

        Args:
            uri: A path or an s3:// URI; remote files are copied into the cache once per version.
            device, dtype: "cuda", "cpu", ..., None = the GPU if there is one; of the weights, None = float32 on the CPU.
            decoder: `device` searches by array programs (`zerogr.decoding.device`), `reference` by the policies that define the
                answers; None = `device` on a GPU, `reference` on the CPU, where it is faster.
            version: Of an index that was updated; None = the current one.

        Raises:
            UserError: The index or the version is missing, unfinished or does not fit together, or its model is not supported.
        """
        loaded = cls(**open_index(uri, device=device, dtype=dtype, decoder=decoder, version=version))
        if loaded.writer.captures_graphs:
            loaded.search(["what is it about?"])  # single queries then find their graphs captured
        return loaded

    @property
    def index_version(self) -> str:
        """A short name of what is served; it changes whenever the trie or the retriever does."""
        return name_of(self.manifest)

    @property
    def rankers(self) -> dict[str, Ranker]:
        """The rankers whose weighted sum this index ranks by, by name; {} where it ranks by one."""
        return getattr(self._ranker, "rankers", {})

    @property
    def num_documents(self) -> int:
        """Documents of the index."""
        return self._documents.num_live

    def doc_ids(self) -> set[str]:
        """Returns the keys of all documents of the index."""
        return self._documents.live_doc_ids()

    def has_log_probs(self, ranking: str | None = None) -> bool:
        """Whether the scores of a search are natural-log probabilities."""
        return ranker_within(self._ranker, ranking).has_log_probs

    def restricted(
        self, *, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None, filter: Conditions | None = None
    ) -> Self:
        """Returns this retriever for some of the documents: a tenant's own, or all but the outdated.

        Searches answer as if the others were not in the trie. The model is shared. It can be restricted further.

        Args:
            allow, deny: The doc_ids that may be found, or may not; None = all, or none. Unknown ones are passed over.
            filter: What their metadata must be, as `search` has it; None = anything.

        Raises:
            UserError: `filter` does not fit the documents' metadata.
        """
        restricted = copy.copy(self)
        restricted.writer, restricted._ranker = writer, ranker = self._views.of(allow, deny, filter)
        restricted._views = Views(writer, ranker, self._documents)
        return restricted

    def search(
        self,
        queries: Sequence[str],
        *,
        instruction: Instruction = None,
        k: int | None = None,
        strategy: str | None = None,
        ranking: str | None = None,
        num_leaves: int | None = None,
        rerank: bool = False,
        seed: int = 0,
        batch_size: int = 16,
        filter: Conditions | None = None,
        fields: Sequence[str] = (),
        snippet_characters: int = SNIPPET_CHARACTERS,
        **options: Any,
    ) -> list[list[Hit]]:
        """Returns at most `k` hits per query, best first.

        Args:
            queries: Texts; longer than the training limit, they are cut as in training.
            instruction: For all queries, or one per query; None = the index's own.
            k, strategy, ranking: Documents per query, one of `STRATEGIES`, one of `rankers`; None = the index's own.
            num_leaves: What is generated, where the ranker has such a setting; None = the index's default.
            rerank: Whether they are ordered by the score of query and docid that the loss ranknet has taught.
            seed, batch_size: Of the sampling strategies; queries decoded together, which moves scores by rounding only.
            filter: {key: value, list of values or {"gte": x, "lte": y}} on the metadata; see `zerogr.trie.conditions`.
            fields, snippet_characters: What hits say of their documents besides (`zerogr.search.contents`), most of the text.
            **options: Passed to `decode`: `normalise`, `beam_width`, `max_temperature`, ...

        Raises:
            UserError: `ranking`, `num_leaves`, `rerank`, `filter` or `fields` is nothing that the index has.
            ValueError: `queries` is a bare string, `batch_size` is below 1, or an option does not fit the strategy.
        """
        plan = self.plan(
            k=k, strategy=strategy, ranking=ranking, num_leaves=num_leaves, rerank=rerank, seed=seed, filter=filter,
            fields=fields, snippet_characters=snippet_characters, **options,
        )  # fmt: skip
        hits = []
        for batch, prompts in plan.writer.batches(queries, instruction, self.instruction, batch_size):
            leaves = plan.writer.write(prompts, plan.num_leaves, plan.options)
            rankings = plan.rankings(self._documents, queries[batch], prompts, leaves)
            hits += self._documents.answers(queries[batch], rankings, plan.wanted)
        return hits

    def plan(self, **how: Any) -> Plan:
        """Returns what `search` does with such arguments, those of `restricted` among them; raises as they do."""
        return plan_of(self._views, self._decoding, **how)

    def answering(self, **limits: int) -> Answering:
        """Returns a thread that answers many requests at once with this model, which then searches for nobody else."""
        return Answering(self._documents, self.plan, self.writer, self.instruction, **limits)

    def trace(
        self,
        queries: Sequence[str],
        doc_ids: Sequence[Sequence[str]],
        *,
        instruction: Instruction = None,
        ranking: str | None = None,
        batch_size: int = 16,
    ) -> list[list[Traced]]:
        """Returns what the model thought of some documents, part by part, query by query.

        Args:
            queries, instruction, ranking, batch_size: As in `search`.
            doc_ids: For each query the documents that are traced.

        Raises:
            UserError: A document is not in the index.
        """
        rows = [[self._documents.row_of(doc_id) for doc_id in of_query] for of_query in doc_ids]
        ranker, traced = ranker_within(self._ranker, ranking), list[list[Traced]]()
        for batch, prompts in self.writer.batches(queries, instruction, self.instruction, batch_size):
            traced += trace(self.writer, ranker, self._documents, queries[batch], prompts, rows[batch])
        return traced
