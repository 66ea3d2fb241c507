"""What may be asked of the API: the bodies of its requests, and their bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from serve.schemas import FILTER, ONE_OR_SEVERAL, query_text
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.search.contents import FIELDS
from zerogr.trie.conditions import conditions_of

FieldName = Literal["title", "text", "kind", "metadata"]
MAX_QUERIES = 64
MAX_QUERY_CHARACTERS = 4096
MAX_K = 1000
MAX_SNIPPET_CHARACTERS = 2000
MAX_DOC_IDS = 10_000
"""In each of the lists `allow` and `deny`."""
MAX_FILTER_VALUES = 1000
"""In all conditions of a filter together."""


class SearchRequest(BaseModel):
    """The body of POST /search. Strict: unknown fields and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=ONE_OR_SEVERAL)

    query: Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))] | None = Field(
        None, max_length=MAX_QUERY_CHARACTERS, description="What is looked for; answered by a list of hits."
    )
    queries: list[Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))]] | None = Field(
        None, min_length=1, max_length=MAX_QUERIES, description="Several at once; answered by a list of such lists."
    )
    instruction: str | None = Field(
        None, max_length=MAX_QUERY_CHARACTERS, description="The retrieval task in one sentence; null = the index's own."
    )
    k: int | None = Field(None, ge=1, le=MAX_K, description="Documents per query; null = the service's default.")
    strategy: str | None = Field(
        None,
        description="Decoding strategy; null = the service's default.",
        json_schema_extra={"enum": [*STRATEGIES, None]},
    )
    rerank: bool | None = Field(
        None,
        description="Order what is found by the score that training.loss ranknet teaches; null = the service's default.",
    )
    fields: list[FieldName] | None = Field(
        None,
        max_length=len(FIELDS),
        description="What hits say of their documents besides doc_id, docid, rank and score; null = the service's default.",
    )
    snippet_characters: int | None = Field(
        None,
        ge=0,
        le=MAX_SNIPPET_CHARACTERS,
        description="Of the field text, at most: the part that has most of the query's words. 0 = no text; null = the "
        "service's default.",
    )
    allow: list[str] | None = Field(
        None,
        max_length=MAX_DOC_IDS,
        description="The doc_ids that may be found; unknown ones are passed over. null = all.",
    )
    deny: list[str] | None = Field(None, max_length=MAX_DOC_IDS, description="The doc_ids that may not be found.")
    filter: Annotated[dict[str, Any], WithJsonSchema({"type": "object", **FILTER})] | None = Field(
        None,
        description='{key: value, list of values, or {"gte": x, "lte": y}}: what documents\' metadata must be. All conditions '
        "must hold. GET /index names the keys.",
    )

    @field_validator("k", "snippet_characters", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one kind of numbers

    @field_validator("query", "queries")
    @classmethod
    def _texts(cls, value: str | list[str] | None) -> str | list[str] | None:
        for text in [value] if isinstance(value, str) else value or []:
            if not text.strip():
                raise ValueError("a query must not be empty")
            if len(text) > MAX_QUERY_CHARACTERS:
                raise ValueError(f"a query has {len(text)} characters; at most {MAX_QUERY_CHARACTERS} are allowed")
        return value

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, value: str | None) -> str | None:
        if value is not None and value not in STRATEGIES:
            raise ValueError(f"unknown strategy; allowed: {', '.join(STRATEGIES)}")
        return value

    @model_validator(mode="after")
    def _one_of_query_and_queries(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either 'query' (a string) or 'queries' (a list of strings)")
        return self

    @model_validator(mode="after")
    def _is_a_filter(self) -> SearchRequest:
        try:
            num_values = sum(len(condition.scalars) for condition in conditions_of(self.filter or {}))
        except UserError as error:
            raise ValueError(str(error)) from None
        if num_values > MAX_FILTER_VALUES:
            raise ValueError(f"filter has {num_values} values; at most {MAX_FILTER_VALUES} are allowed")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        return [self.query] if self.query is not None else self.queries or []

    @property
    def restrictions(self) -> dict[str, Any]:
        """What says which documents may be found; empty if all may."""
        return {name: value for name in ("allow", "deny", "filter") if (value := getattr(self, name)) is not None}


class ExplainRequest(SearchRequest):
    """The body of POST /explain: that of a search for one query."""

    model_config = ConfigDict(json_schema_extra=None)

    query: Annotated[str, WithJsonSchema(query_text(MAX_QUERY_CHARACTERS))] = Field(
        max_length=MAX_QUERY_CHARACTERS, description="What is looked for."
    )
    queries: SkipJsonSchema[None] = None

    @field_validator("queries", mode="before")
    @classmethod
    def _are_none(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("one search at a time is explained; give one 'query'")
