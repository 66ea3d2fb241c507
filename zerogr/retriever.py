"""The retriever: an index opened for search.

    retriever = Retriever.load("s3://bucket/index")
    retriever.search(["wing slipstream"], k=10)

A search encodes the prompts of its queries once and lets a strategy walk the trie for all of them together; see
`zerogr.decoding`. Where the index has postings what it finds are words, of which documents are made; see
`zerogr.ranking.postings`.
The model sits on one device, trie and postings are memory maps, doc_ids and docids are two Arrow columns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.decoding import Decoded, decode_batch
from zerogr.decoding.scoring import Scorer
from zerogr.decoding.trace import Step, trace_batch
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.llm.chat import SETTINGS_FILE, ChatFormat
from zerogr.ranking.postings import Postings, Weighted
from zerogr.store import cache, storage
from zerogr.trie import DocidTrie

if TYPE_CHECKING:
    from zerogr.trie.filtered import FilteredTrie


OF_WORDS = frozenset({"num_words", "query_share"})
"""Options of a search that mean something where words are written."""
TRACED_WORDS = 512
"""Words among which a trace looks for those of a document; the rest is too unlikely to matter."""


def check_options_of_docids(options: Iterable[str]) -> None:
    """Raises UserError for an option of a search that means nothing where docids are written whole."""
    for option in sorted(OF_WORDS & set(options)):
        raise UserError(f"{option} is for an index whose retriever writes words; this one writes docids whole")


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of an answer."""

    doc_id: str
    docid: str
    rank: int
    """From 1."""
    score: float
    """Natural-log probability of the docid, `normalise` says over which tokens; or the sum over its words, see
    `zerogr.ranking.postings`."""


@dataclass(frozen=True, slots=True)
class TracedWord:
    """A word of a document as the model saw it."""

    word: str
    """The likeliest of its forms."""
    probability: float
    """Of all its forms, over the allowed tokens; 0 if the model did not write it but the query names it."""
    score: float
    """What it adds to that of the document, from the model and because the query names it."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What the model thought of a document."""

    doc_id: str
    docid: str
    score: float
    """As a `Hit` has it, over the allowed tokens."""
    steps: list[Step] = field(default_factory=list)
    """Where docids are written: its docid's tokens and the end token."""
    words: list[TracedWord] = field(default_factory=list)
    """Where words are written: those that a search of `TRACED_WORDS` words finds, first those that add most."""


class Retriever:
    """A loaded index. Not thread-safe: one search at a time."""

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        trie: DocidTrie,
        doc_ids: pa.Array,
        docids: pa.Array,
        *,
        postings: Postings | None = None,
        instruction: str,
        decoding: dict[str, Any],
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """Puts the parts together; `load` is the usual way.

        Args:
            model: Causal LM in eval mode.
            chat: How it is prompted.
            trie: Over the docids' tokens, its row i is `doc_ids[i]`; or over those of words, its row i is word i of `postings`.
            doc_ids: string [N].
            docids: string [N].
            postings: Of the words; None where docids are written whole.
            instruction: Used where a search gives none.
            decoding: Defaults of `search`: the fields of `zerogr.config.tree.DecodingConfig`.
            manifest: The index's manifest.

        Raises:
            UserError: The model's architecture does not support tree decoding.
        """
        from zerogr.decoding.language_model import TreeModel

        self.manifest = manifest or {}
        self.instruction = instruction
        self._model, self._chat = TreeModel(model), chat
        self._trie: DocidTrie | FilteredTrie = trie
        self._postings = postings
        self._doc_ids, self._docids = doc_ids, docids
        self._decoding = decoding

    @classmethod
    def load(cls, uri: str, *, device: str | None = None, dtype: Any = None) -> Retriever:
        """Returns the index at `uri`, ready to search.

        Args:
            uri: A path or an s3:// URI; remote files are copied into the cache once per version.
            device: "cuda", "cpu", ...; None = the GPU if there is one.
            dtype: Of the weights; None = float32 on the CPU, bfloat16 elsewhere.

        Raises:
            UserError: The index is missing or unfinished, or its trie was made with another tokenizer or of other docids.
        """
        from zerogr.llm.models import load_model, tokenizer_hash
        from zerogr.trie.stage import POSTINGS, read_docids

        index = Index(uri)
        manifest = index.manifest()
        if not manifest["stages"]:
            raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
        for stage in ("docids", "trie", "retriever"):
            index.require(stage)
        trie_folder = cache.local_folder(index.path("trie"))
        trie = DocidTrie.load(trie_folder)
        postings = Postings.load(trie_folder / POSTINGS) if trie.extra.get("unit") == "word" else None
        table = read_docids(index)
        if (postings or trie).num_rows != len(table):
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
        chat = ChatFormat.of(
            tokenizer,
            max_instruction_tokens=settings["max_instruction_tokens"],
            max_query_tokens=settings["max_query_tokens"],
        )
        return cls(
            model,
            chat,
            trie,
            table.column("doc_id").combine_chunks(),
            table.column("docid").combine_chunks(),
            postings=postings,
            instruction=settings["instruction"],
            decoding=manifest["config"]["decoding"],
            manifest=manifest,
        )

    @property
    def index_version(self) -> str:
        """A short name of what is served; it changes whenever the trie or the retriever does."""
        stages = self.manifest.get("stages", {})
        return "-".join(stages[stage]["fingerprint"][:8] for stage in ("trie", "retriever") if stage in stages)

    @property
    def unit(self) -> Literal["word", "docid"]:
        """What is written: words, whose sum is a document's score, or whole docids, whose log-probability it is."""
        return "word" if self._postings else "docid"

    @property
    def num_documents(self) -> int:
        """Documents of the index."""
        return len(self._doc_ids)

    def doc_ids(self) -> set[str]:
        """Returns the keys of all documents of the index."""
        return set(self._doc_ids.to_pylist())

    def restricted(self, *, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None) -> Self:
        """Returns this retriever for some of the documents: a tenant's own, or all but the outdated.

        Searches answer as if only these documents were in the trie. It shares model and index with this one; make it once
        per set and keep it. A restricted retriever can be restricted further.

        Args:
            allow: The doc_ids that may be found; None = all. Keys that are not in the index are passed over.
            deny: The doc_ids that may not be found.
        """
        allowed, denied = (None if keys is None else self._rows_of(keys) for keys in (allow, deny))
        restricted = copy.copy(self)
        if self._postings:
            restricted._postings, words = self._postings.filter(allow=allowed, deny=denied)
            restricted._trie = self._trie.filter(allow=words)
        else:
            restricted._trie = self._trie.filter(allow=allowed, deny=denied)
        return restricted

    def search(
        self,
        queries: Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        k: int | None = None,
        strategy: str | None = None,
        seed: int = 0,
        batch_size: int = 16,
        **options: Any,
    ) -> list[list[Hit]]:
        """Returns at most `k` hits per query, best first.

        Args:
            queries: Texts; longer than the training limit, they are cut as in training.
            instruction: For all queries, or one per query; None = the index's own.
            k: Documents per query; None = the index's default.
            strategy: One of `zerogr.decoding.STRATEGIES`; None = the index's default.
            seed: Of the sampling strategies.
            batch_size: Queries decoded together. It moves scores by rounding only.
            **options: Where the index has postings `num_words`, how many words are written, at most `beam_width`, and
                `query_share`, how much of the score is for the words that the query itself names. The others are passed to
                `decode`: `normalise`, `beam_width`, `max_temperature`, ...

        Raises:
            UserError: `num_words` or `query_share` where docids are written whole.
            ValueError: `queries` is a bare string, `batch_size` is below 1, or an option does not fit the strategy.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        strategy = strategy or self._decoding["strategy"]
        options = {"normalise": self._decoding["normalise"], **self._strategy_options(strategy), **options}
        k = k or self._decoding["k"]
        num_leaves, query_share = k, 0.0
        if self._postings:
            query_share = options.pop("query_share", self._decoding["query_share"])
            num_words = options.pop("num_words", self._decoding["num_words"])
            # A beam cannot find more than its width.
            num_leaves = min(num_words, options.get("beam_width") or num_words)
        else:
            check_options_of_docids(options)
        prompts = self._prompts(queries, instruction)
        results = []
        for begin in range(0, len(prompts), batch_size):
            decoded = decode_batch(
                self._model.start(prompts[begin : begin + batch_size]),
                self._trie,
                num_leaves,
                eos_token_id=self._chat.end_token_id,
                strategy=strategy,
                seed=seed,
                **options,
            )
            asked = queries[begin : begin + batch_size]
            results += [self._hits(query, found, k, query_share) for query, found in zip(asked, decoded, strict=True)]
        return results

    def trace(
        self,
        queries: Sequence[str],
        doc_ids: Sequence[Sequence[str]],
        *,
        instruction: str | Sequence[str | None] | None = None,
        query_share: float | None = None,
        batch_size: int = 16,
    ) -> list[list[Traced]]:
        """Returns what the model thought of some documents, token by token or word by word, query by query.

        Args:
            queries, instruction, query_share, batch_size: As in `search`.
            doc_ids: For each query the documents that are traced.

        Raises:
            UserError: A document is not in the index.
        """
        rows = {doc_id: self._row_of(doc_id) for wanted in doc_ids for doc_id in wanted}
        prompts = self._prompts(queries, instruction)
        traced = []
        for begin in range(0, len(prompts), batch_size):
            wanted = [[rows[doc_id] for doc_id in of_query] for of_query in doc_ids[begin : begin + batch_size]]
            scorer = self._model.start(prompts[begin : begin + batch_size])
            if self._postings:
                share = self._decoding["query_share"] if query_share is None else query_share
                traced += self._trace_words(scorer, queries[begin : begin + batch_size], wanted, share)
            else:
                traced += self._trace_docids(scorer, wanted)
        return traced

    def _trace_docids(self, scorer: Scorer, rows: list[list[int]]) -> list[list[Traced]]:
        """Returns the traces of documents, query by query of the scorer."""
        docids = [[self._docids[row].as_py() for row in of_query] for of_query in rows]
        steps = trace_batch(
            scorer,
            self._trie,
            [[self._chat.docid(docid) for docid in of_query] for of_query in docids],
            eos_token_id=self._chat.end_token_id,
        )
        return [
            [
                Traced(self._doc_ids[row].as_py(), docid, sum(step.log_prob for step in path), path)
                for row, docid, path in zip(*of_query, strict=True)
            ]
            for of_query in zip(rows, docids, steps, strict=True)
        ]

    def _trace_words(
        self, scorer: Scorer, queries: Sequence[str], rows: list[list[int]], query_share: float
    ) -> list[list[Traced]]:
        """The same where words are written."""
        assert self._postings is not None
        decoded = decode_batch(
            scorer, self._trie, TRACED_WORDS, eos_token_id=self._chat.end_token_id, strategy="beam", normalise="allowed"
        )
        traced = []
        for query, of_query, found in zip(queries, rows, decoded, strict=True):
            named, names = self._postings.named(query)
            texts = dict(zip(named.words.tolist(), names, strict=True))
            texts |= {each.row: self._chat.tokenizer.decode(each.tokens).strip() for each in found}
            of_documents = []
            for row in of_query:
                own = [
                    TracedWord(texts[part.word], part.probability, part.score)
                    for part in self._postings.of_row(row, _written(found), named, query_share)
                ]
                doc_id, docid = self._doc_ids[row].as_py(), self._docids[row].as_py()
                of_documents.append(Traced(doc_id, docid, sum(word.score for word in own), words=own))
            traced.append(of_documents)
        return traced

    def token_text(self, token: int) -> str:
        """Returns a token as text; the one that ends a docid is `<end>`."""
        return "<end>" if token == self._chat.end_token_id else str(self._chat.tokenizer.decode([token]))

    def _prompts(
        self, queries: Sequence[str], instruction: str | Sequence[str | None] | None
    ) -> list[tuple[list[int], list[int]]]:
        """Returns (prefix, rest) of every query's prompt."""
        if isinstance(queries, str):
            raise ValueError("queries must be a list of strings, not one string")
        instructions = (
            [instruction] * len(queries) if isinstance(instruction, str) or instruction is None else list(instruction)
        )
        return [
            (self._chat.prefix(text or self.instruction), self._chat.query(query))
            for query, text in zip(queries, instructions, strict=True)
        ]

    def _row_of(self, doc_id: str) -> int:
        row = pc.index(self._doc_ids, pa.scalar(doc_id, self._doc_ids.type)).as_py()
        if row < 0:
            raise UserError(f"the index holds no document '{doc_id}'")
        return int(row)

    def _hits(self, query: str, found: Sequence[Decoded], k: int, query_share: float) -> list[Hit]:
        rows, scores = [each.row for each in found], [each.score for each in found]
        if self._postings:
            named, _ = self._postings.named(query)
            best = self._postings.rank(_written(found), named, query_share, k)
            rows, scores = best[0].tolist(), best[1].tolist()
        return [
            Hit(self._doc_ids[row].as_py(), self._docids[row].as_py(), rank, score)
            for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
        ]

    def _rows_of(self, doc_ids: Sequence[str]) -> Any:
        """Returns the rows (int64) of the doc_ids that are in the index."""
        is_wanted = pc.is_in(self._doc_ids, value_set=pa.array(doc_ids, self._doc_ids.type))
        return pc.indices_nonzero(is_wanted).to_numpy().astype("int64")

    def _strategy_options(self, strategy: str) -> dict[str, Any]:
        """Returns the index's settings that mean something to this strategy."""
        keys = {"reverse_annealing": ("max_temperature",), "nucleus": ("top_p",)}.get(strategy, ())
        return {key: self._decoding[key] for key in keys}


def _written(found: Sequence[Decoded]) -> Weighted:
    """Returns the words that were written, and their probabilities."""
    return Weighted(
        np.array([each.row for each in found], dtype=np.int64),
        np.exp(np.array([each.score for each in found], dtype=np.float64)),
    )
