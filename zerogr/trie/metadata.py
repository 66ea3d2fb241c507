"""The table that filters are answered from: a row per document, in the order of the trie's documents.

    metadata.arrow   row_id, and for each of `serving.filter_keys` a column per kind of value that documents have:
                     `string:KEY` (dictionary-encoded), `integer:KEY`, `real:KEY`, `boolean:KEY`

It lies in the folder of the trie and is memory-mapped. A document without a key, or with a list, a mapping or null there, has
null in all columns of the key, and no condition on it holds. An addition to an index brings a table for its own documents.

Cost: 4 bytes per document for a key of strings and 8 for one of numbers, besides 8; about 8 microseconds per document to make.
A condition reads its key's columns once, 0.1 s for ten million documents on two busy cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.index.versions import Version
from zerogr.store import cache, storage
from zerogr.trie.conditions import Condition, Conditions, Kind, as_kind, conditions_of, shown

METADATA = "metadata.arrow"
"""In the folder of a trie."""
INPUT = "serving.filter_keys"
"""Of the trie stage; absent where there are none."""
ROW_ID = "row_id"
TYPES = {
    "string": pa.dictionary(pa.int32(), pa.string()),
    "integer": pa.int64(),
    "real": pa.float64(),
    "boolean": pa.bool_(),
}
KINDS: dict[str, Kind] = {"string": "string", "integer": "number", "real": "number", "boolean": "boolean"}
"""Of a column -> of the values that it is compared with."""
_NAMES: dict[Kind, str] = {"string": "strings", "number": "numbers", "boolean": "true and false"}
_LEAST, _MOST = -(2**63), 2**63 - 1


class Metadata:
    """What the N documents of a version can be filtered by."""

    def __init__(self, table: pa.Table, keys: Sequence[str]) -> None:
        """Wraps a table of N rows; `keys` are those that it was made for."""
        self.table, self.keys = table, tuple(keys)

    def rows(self, wanted: Conditions) -> np.ndarray:
        """Returns the rows (int64, ascending) for which all conditions of a filter hold.

        Raises:
            UserError: It is no filter, names an unknown key, or compares with what the key's values never are.
        """
        is_left = np.ones(len(self.table), dtype=bool)
        for condition in conditions_of(wanted):
            is_left &= self._holds(condition)
        return np.flatnonzero(is_left)

    def _holds(self, condition: Condition) -> np.ndarray:
        """Returns bool [N]: for which documents a condition holds."""
        if condition.key not in self.keys:
            raise UserError(_unknown(condition.key, self.keys))
        columns = [column for column in TYPES if f"{column}:{condition.key}" in self.table.column_names]
        _check_kinds(condition, {KINDS[column] for column in columns})
        holds = np.zeros(len(self.table), dtype=bool)
        for column in columns:
            chunks = self.table.column(f"{column}:{condition.key}").chunks
            found = [pc.fill_null(_found(chunk, column, condition), False) for chunk in chunks]
            holds |= np.concatenate([each.to_numpy(zero_copy_only=False) for each in found])
        return holds


def keys_of(manifest: dict[str, Any]) -> list[str]:
    """Returns the keys that an index can be filtered by; none before it has a trie."""
    keys: list[str] = manifest["stages"].get("trie", {"inputs": {}})["inputs"].get(INPUT, [])
    return keys


def open_metadata(index: Index, manifest: dict[str, Any], version: Version) -> Metadata:
    """Opens the tables of a version as memory maps. Raises UserError if one is missing or damaged."""
    keys = keys_of(manifest)
    if not keys:
        return Metadata(pa.table({ROW_ID: pa.array([], pa.int64())}), keys)
    folders = [folder for folder in (version.base, version.addition) if folder is not None]
    return Metadata(joined([open_table(index, folder) for folder in folders]), keys)


def open_table(index: Index, folder: str) -> pa.Table:
    """Returns the table in the folder of a base or of an addition as a memory map. Raises UserError as `open_metadata`."""
    file = cache.local_folder(index.path(folder, "trie")) / METADATA
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"'{file}' cannot be read ({error}); run `zerogr index` with --rebuild trie") from None


def documents_of(index: Index) -> Iterator[tuple[pa.Table, str]]:
    """Yields shard by shard the row_id of an index's or an update's documents with a docid, and the URI of their corpus."""
    for shard in shards_in(index.path("docids")):
        yield storage.read_parquet(index.shard("docids", shard), [ROW_ID]), index.shard("corpus", shard)


def read_metadata(shards: Iterable[tuple[pa.Table, str]], keys: Sequence[str]) -> pa.Table:
    """Returns the table of documents, given shard by shard: their row_id, in order, and the URI of their corpus."""
    parts = [pa.table({ROW_ID: pa.array([], pa.int64())})]
    for documents, uri in shards:
        row_ids = documents.column(ROW_ID).combine_chunks()
        corpus = storage.read_parquet(uri, [ROW_ID, "metadata"])
        places = pc.index_in(row_ids, value_set=corpus.column(ROW_ID).combine_chunks())
        parts.append(table_of(row_ids, corpus.column("metadata").take(places).to_pylist(), keys))
    return joined(parts)


def table_of(row_ids: pa.Array, metadata: Iterable[str], keys: Sequence[str]) -> pa.Table:
    """Returns the table of some documents, whose metadata is given as JSON."""
    found, columns = [json.loads(text) for text in metadata], {ROW_ID: row_ids}
    for key in keys:
        values = [_stored(of_row.get(key)) for of_row in found]
        for name, of_type in TYPES.items():
            if any(kind == name for kind, _ in values):
                columns[f"{name}:{key}"] = pa.array([v if kind == name else None for kind, v in values], of_type)
    return pa.table(columns)


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Returns tables one after the other; nothing is copied but where a column is missing."""
    return pa.concat_tables(parts, promote_options="default")


def num_with(table: pa.Table, keys: Sequence[str]) -> dict[str, int]:
    """Returns how many documents have a value for each key."""
    found = {key: [table.column(name) for name in table.column_names if name.partition(":")[2] == key] for key in keys}
    return {key: sum(len(column) - column.null_count for column in columns) for key, columns in found.items()}


def write_table(table: pa.Table, folder: Path) -> None:
    """Writes a table into the local folder of a trie."""
    whole = table.unify_dictionaries().combine_chunks()
    with pa.OSFile(str(folder / METADATA), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)


def _stored(value: Any) -> tuple[str | None, Any]:
    """Returns the column that a value of metadata goes into, and the value there; (None, None) for what is no scalar."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, str):
        return "string", value
    if isinstance(value, int) and _LEAST <= value <= _MOST:
        return "integer", value
    if isinstance(value, int | float) and abs(value) < 2**1023:
        return "real", float(value) + 0.0  # no -0.0, which is another value to Arrow's sets
    return None, None


def _check_kinds(condition: Condition, held: set[Kind]) -> None:
    """Raises UserError for what the values of a key, of the kinds `held`, never are."""
    fitting = held - {"boolean"} if condition.is_range else held
    for value in condition.scalars:
        if held and all(as_kind(value, kind) is None for kind in fitting):
            names = " and ".join(_NAMES[kind] for kind in sorted(held))
            raise UserError(
                f"filter.{condition.key} cannot be compared with {shown(value)}: the documents' values are {names}"
            )


def _found(chunk: pa.Array, column: str, condition: Condition) -> pa.Array:
    """Returns for each value of a column whether a condition holds; null or false where there is none."""
    values = chunk.dictionary if column == "string" else chunk
    given = [as_kind(value, KINDS[column]) for value in condition.scalars]
    if not condition.is_range:
        exact = [each for value in given if value is not None for each in _exact(value, column)]
        holds = pc.is_in(values, value_set=pa.array(exact, values.type))
    elif column == "boolean" or None in given:
        holds = pa.repeat(False, len(values))
    else:
        least, most = (
            None if end is None else as_kind(end, KINDS[column]) for end in (condition.least, condition.most)
        )
        holds = _between(values, column, least, most)
    return holds.take(chunk.indices) if column == "string" else holds


def _between(values: pa.Array, column: str, least: Any, most: Any) -> pa.Array:
    """Returns which values are in a range; None = it is open at that end."""
    if column == "integer":
        least = _LEAST if least is None else max(math.ceil(least), _LEAST)
        most = _MOST if most is None else min(math.floor(most), _MOST)
        if least > most:  # among them those that no integer of 64 bits reaches
            return pa.repeat(False, len(values))
    elif column == "real":
        least = -math.inf if least is None else _real(least, is_least=True)
        most = math.inf if most is None else _real(most, is_least=False)
    holds = pa.repeat(True, len(values))
    for compare, end in ((pc.greater_equal, least), (pc.less_equal, most)):
        if end is not None:
            holds = pc.and_(holds, compare(values, pa.scalar(end, values.type)))
    return holds


def _exact(value: Any, column: str) -> list[Any]:
    """Returns a value as its column would hold it; nothing if it cannot."""
    if column == "integer":
        return [int(value)] if value == math.floor(value) and _LEAST <= value <= _MOST else []
    if column == "real":
        return [float(value) + 0.0] if float(value) == value else []
    return [value]


def _real(end: int | float, *, is_least: bool) -> float:
    """Returns the first float that is not below an end, or the last that is not above it."""
    near = float(end)
    if is_least:
        return math.nextafter(near, math.inf) if near < end else near
    return math.nextafter(near, -math.inf) if near > end else near


def _unknown(key: str, keys: Sequence[str]) -> str:
    if keys:
        return f"filter has the key '{key}'; the index can be filtered by {', '.join(keys)}"
    return (
        f"filter has the key '{key}', and the index has no keys to filter by; name them in serving.filter_keys and run "
        "`zerogr index` with --rebuild trie"
    )
