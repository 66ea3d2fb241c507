"""What the application is told: `args` and `user_config` of the config file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from serve.requests import MAX_K, MAX_SNIPPET_CHARACTERS, FieldName
from zerogr.search.contents import SNIPPET_CHARACTERS


class ServeArguments(BaseModel):
    """What a searcher loads, and who may ask; `args` in the config file."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(min_length=1, description="URI of a finished index; every node must reach it.")
    version: int | None = Field(
        None, ge=0, description="Of the index, which then stays; null = the current one, and what comes after it."
    )
    device: str | None = Field(None, description="cuda, cpu, ...; null = the GPU where there is one.")
    dtype: str | None = Field(None, description="Of the weights, such as bfloat16; null = the retriever's choice.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads of one searcher; null = one per reserved CPU.")
    most_queries: int = Field(32, ge=1, le=4096, description="Queries that a searcher decodes together.")
    follow_s: float | None = Field(
        30,
        gt=0,
        description="Seconds between two looks whether the index has another version; null = it is never loaded.",
    )
    token_file: str | None = Field(
        None,
        min_length=1,
        description="File with the bearer token that clients must send, on every node with an ingress; null = anybody may "
        "search, and the admin routes are closed.",
    )

    @property
    def follows(self) -> bool:
        """Whether other versions of the index are looked for."""
        return self.follow_s is not None and self.version is None


class SearchDefaults(BaseModel):
    """What a search does unless its request says otherwise; `user_config` of Ingress, changeable while running."""

    model_config = ConfigDict(extra="forbid")

    k: int | None = Field(None, ge=1, le=MAX_K, description="Documents per query; null = the index's own.")
    strategy: str | None = Field(None, description="Decoding strategy; null = the index's own.")
    rerank: bool = Field(False, description="Order what is found by the score that training.loss ranknet teaches.")
    fields: list[FieldName] = Field(
        default_factory=lambda: list[FieldName](["title", "text"]),
        description="What hits say of their documents besides; [] reads nothing of the corpus.",
    )
    snippet_characters: int = Field(
        SNIPPET_CHARACTERS, ge=0, le=MAX_SNIPPET_CHARACTERS, description="Of the field text, at most; 0 = no text."
    )
    wait_s: float = Field(
        2,
        gt=0,
        description="A search that would probably take longer is refused, once as many queries are underway as the searchers "
        "decode together.",
    )
    timeout_s: float = Field(60, gt=0, description="A search, waiting included, is cancelled after this long.")
    log_queries: bool = Field(False, description="Whether the log has the texts of queries; they may be private.")
