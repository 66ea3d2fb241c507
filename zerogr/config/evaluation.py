"""The sections that say what an index is measured by, and against which variants."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from zerogr.config.base import Section, Strategy

Baseline = Literal["bm25", "doc2query", "minilm", "rrf"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
Metric = Literal[
    "acc@1", "ndcg@10", "recall@100", "mrr@10", "map", "p@20", "err@20", "ndcg@5", "ndcg@20", "mrr@3", "mrr@20", "hits@10"
]  # fmt: skip
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Metric, ...] = ("acc@1", "ndcg@10", "recall@100")


def _known_strategy(text: str) -> str:
    strategies = get_args(Strategy)
    if text.partition(":")[0] not in strategies:
        raise PydanticCustomError("strategy", f"must be one of {', '.join(strategies)}, with options after a colon")
    return text


class EvaluationConfig(Section):
    dataset: str | None = Field(
        None, description="A BEIR folder with queries.jsonl and qrels/; null = `zerogr index` does not evaluate."
    )
    split: str = Field("test", description="qrels/<split>.tsv.")
    positions: Literal["all", "even", "odd"] = Field(
        "all", description="Queries at these positions of their file: choose settings on even ones, report on odd ones."
    )
    k: int = Field(100, ge=1, le=10_000, description="Documents per query.")
    exclude_query_id: bool = Field(
        False,
        description="Leave the document with the query's own id out of every answer, as BEIR does where queries are documents: "
        "ArguAna, Quora.",
    )
    strategies: list[Annotated[str, AfterValidator(_known_strategy)]] = Field(
        default_factory=lambda: ["beam", "reverse_annealing"],
        min_length=1,
        description="Decoding strategies to compare, with options after a colon: beam:beam_width=200,normalise=vocabulary.",
    )
    baselines: list[Baseline] = Field(
        default_factory=lambda: list[Baseline](["bm25"]),
        description="Other systems in the same table: BM25, BM25 with our pseudo-queries (doc2query), dense (minilm; "
        "`pip install zerogr[dense]`), the first strategy fused with BM25 (rrf).",
    )
    metrics: list[Metric] = Field(
        default_factory=lambda: list(DEFAULT_METRICS),
        min_length=1,
        description="What the printed table shows first and what differences between systems are tested by; all metrics are "
        f"measured: {', '.join(METRICS)}.",
    )


class AblationConfig(Section):
    out: str = Field(
        "ablation",
        min_length=1,
        description="Where results.parquet, the report and an index per variant go: a path or an s3:// URI.",
    )
    grids: list[dict[str, list[Any]]] = Field(
        default_factory=list,
        description="Each a mapping of keys to values, such as {docids.scheme: [title, tfidf], docids.max_words: [4, 8]}: "
        "every combination is a variant, and what a grid does not name is as in this file.",
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="US dollars per hour of the machine, for the report; null = no dollars."
    )


class StudyConfig(Section):
    out: str = Field(
        "study", min_length=1, description="Where results, the report and the indexes go: a path or an s3:// URI."
    )
    num_increments: int = Field(5, ge=1, le=100, description="Increments D1, D2, ... that the corpus grows by.")
    initial_fraction: float = Field(
        0.9, gt=0, lt=1, description="Share of the documents in D0, which the retriever is trained on."
    )
    date_key: str | None = Field(
        None, description="Key of the documents' metadata that orders them, oldest first; null = drawn by the seed."
    )
    splits: list[str] = Field(
        default_factory=lambda: ["test"],
        min_length=1,
        description="Splits of evaluation.dataset whose queries are asked.",
    )
    num_queries: int | None = Field(
        None, ge=1, description="Initial queries that are asked after every increment, drawn evenly; null = all."
    )
    strategy: str = Field("beam", description="Decoding strategy, as in evaluation.strategies.")
    baselines: list[Literal["bm25", "minilm"]] = Field(
        default_factory=lambda: list[Literal["bm25", "minilm"]](["bm25"]),
        description="Systems that are built anew after every increment.",
    )
    grids: list[dict[str, list[Any]]] = Field(
        default_factory=list,
        description="Variants, as in ablation.grids: docid schemes, methods and their settings, such as "
        "{docids.scheme: [tfidf, kmeans], update.method.name: [none, dome]}.",
    )
