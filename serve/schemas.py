"""What the API takes and answers, for programs: what GET /openapi.json says beyond the fields of a request."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class HitModel(BaseModel):
    """A document that was found; what stands below `score` only where `fields` asks for it."""

    model_config = ConfigDict(extra="forbid", title="Hit")

    doc_id: str
    docid: str = Field(description="The identifier that was written.")
    rank: int = Field(ge=1)
    score: float = Field(description="Log-probability of the docid, or what the index's ranking makes of it.")
    title: str = ""
    text: str = Field("", description="A snippet.")
    kind: str = Field("", description="text, table or code.")
    metadata: dict[str, Any] = Field(default_factory=dict)


class SearchAnswer(BaseModel):
    """The answer to POST /search."""

    model_config = ConfigDict(extra="forbid")

    hits: list[HitModel] | list[list[HitModel]] = Field(
        description="Best first: one list for `query`, a list of lists for `queries`."
    )
    index_version: str
    took_ms: float


class ExplainedHit(HitModel):
    """A document that was found, with what its score is the sum of where it is one."""

    model_config = ConfigDict(title="ExplainedHit")

    parts: list[dict[str, Any]] = Field(default_factory=list, description="The largest, each with its score.")


class ExplainAnswer(BaseModel):
    """The answer to POST /explain."""

    model_config = ConfigDict(extra="forbid")

    hits: list[ExplainedHit] = Field(description="Best first.")
    tree: dict[str, Any] | None = Field(
        description="The prefixes of docids that were considered, from `root` down; null where scores are sums."
    )
    index_version: str
    took_ms: float


class IndexAnswer(BaseModel):
    """The answer to GET /index: the manifest, without URIs and prompts."""

    model_config = ConfigDict(extra="allow")

    index_version: str
    instruction: str | None = None
    num_documents: int = Field(
        description="Of the version that is searched; the counts of `stages` are those of the first."
    )
    filter_keys: list[str]
    strategies: list[str]
    k: int | None = None
    strategy: str | None = None
    versions: dict[str, str | None] = Field(
        description="Of the index: `current` and `previous`, which the searcher that answers has loaded, and `refused`."
    )


class ErrorAnswer(BaseModel):
    """The answer to a request that failed."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="One sentence.")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body is not JSON.",
        401: "The token is missing or wrong, where the service has one.",
        408: "The body did not arrive.",
        413: "The body is too large.",
        422: "A field is wrong.",
        500: "Anything else; the server's log says more.",
        503: "Overloaded, or no model is loaded yet; Retry-After says when to try again.",
        504: "The search took too long.",
    }.items()
}
"""Of POST /search."""
AT_ANY_TIME: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 500, 503, 504)}
"""Of requests that cannot be wrong."""

_STRING, _NUMBER = (
    {"type": "string"},
    {"type": "number", "exclusiveMinimum": -(2.0**1023), "exclusiveMaximum": 2.0**1023},
)
_SCALAR = {"anyOf": [_STRING, _NUMBER, {"type": "boolean"}]}
FILTER: dict[str, Any] = {
    "additionalProperties": {
        "anyOf": [
            _SCALAR,
            {"type": "array", "items": _SCALAR, "minItems": 1},
            *(
                {
                    "type": "object",
                    "properties": {"gte": end, "lte": end},
                    "minProperties": 1,
                    "additionalProperties": False,
                }
                for end in (_STRING, _NUMBER)
            ),
        ]
    }
}
"""Of the field `filter`, as `zerogr.trie.conditions` has it."""
ONE_OR_SEVERAL: dict[str, Any] = {
    "oneOf": [
        {"required": [given], "properties": {given: {"type": kind}, other: {"type": "null"}}}
        for given, other, kind in (("query", "queries", "string"), ("queries", "query", "array"))
    ]
}
"""Of a request: either `query` or `queries`."""


def query_text(most: int) -> dict[str, Any]:
    """Returns what a query must be: no more than so many characters, one of them no space."""
    return {"type": "string", "maxLength": most, "pattern": r"[^\s\x1c-\x1f]"}
