"""What a hit says of its document besides its names: title, a snippet of the text, kind and metadata, read from the corpus.

Cost: 1 ms for ten hits with short texts whose shards were read before, 5 ms if five shards of a disk are read for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zerogr.corpus.lookup import Lookup
from zerogr.errors import UserError
from zerogr.search.snippet import query_terms, snippet

FIELDS = ("title", "text", "kind", "metadata")
SNIPPET_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Contents:
    """What is wanted of the documents that are found."""

    fields: tuple[str, ...] = ()
    """Of `FIELDS`."""
    snippet_characters: int = SNIPPET_CHARACTERS
    """Of the text, at most."""

    @classmethod
    def of(cls, fields: Sequence[str], snippet_characters: int) -> Contents:
        """Returns what is wanted; 0 characters are no text.

        Raises:
            UserError: A field is unknown, or the length is negative.
        """
        if isinstance(fields, str) or (unknown := [field for field in fields if field not in FIELDS]):
            given = fields if isinstance(fields, str) else unknown[0]
            raise UserError(f"fields has '{given}'; it must be a list of some of {', '.join(FIELDS)}")
        if snippet_characters < 0:
            raise UserError(f"snippet_characters is {snippet_characters}; it must be 0 or more")
        wanted = (field for field in FIELDS if field in fields and (field != "text" or snippet_characters))
        return cls(tuple(wanted), snippet_characters)

    def read(
        self, corpus: Lookup, queries: Sequence[str], row_ids: Sequence[Sequence[int]]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yields for each query the fields of its documents; every shard that has one of them is read once."""
        different = list(dict.fromkeys(row_id for of_query in row_ids for row_id in of_query))
        documents = dict(zip(different, corpus.read(different, self.fields), strict=True))
        for query, of_query in zip(queries, row_ids, strict=True):
            terms = query_terms(query)
            yield [self._shown(documents[row_id], terms) for row_id in of_query]

    def _shown(self, document: dict[str, Any], terms: frozenset[str]) -> dict[str, Any]:
        shown = dict(document)
        if "text" in shown:
            shown["text"] = snippet(shown["text"], terms, self.snippet_characters)
        if "metadata" in shown:
            shown["metadata"] = json.loads(shown["metadata"])
        return shown
