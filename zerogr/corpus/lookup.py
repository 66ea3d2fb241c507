"""Looking documents up by their row_id: which shard holds a row is arithmetic, and shards that were read are kept a while.

The shards that a call needs are read once each, many at a time where storage answers late. Never more than `KEPT_BYTES` and the
`AT_ONCE` shards in hand are in memory, whatever the size of the corpus.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from zerogr.errors import Fault
from zerogr.index.index import Index, shard_name
from zerogr.index.versions import Version
from zerogr.store import storage

KEPT_BYTES = 128 * 2**20
AT_ONCE = 16
COLUMNS = ("doc_id", "title", "text", "kind", "metadata")


class Lookup:
    """The corpus of a version, by row_id."""

    def __init__(self, index: Index, version: Version) -> None:
        """Opens nothing yet."""
        self._index, self._layers = index, version.layers
        self._starts = [layer.first_row for layer in version.layers]
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], pa.Table] = OrderedDict()
        self._num_bytes = 0

    def read(self, row_ids: Sequence[int], columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
        """Returns columns of documents, in the order of `row_ids`. Raises Fault if a shard of the corpus is missing."""
        found: list[dict[str, Any]] = [{} for _ in row_ids]
        wanted: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, row_id in enumerate(row_ids):
            uri, place = self._place(row_id)
            wanted[uri].append((number, place))
        uris = list(wanted)
        for begin in range(0, len(uris), AT_ONCE):
            for uri, table in self._tables(uris[begin : begin + AT_ONCE], tuple(columns)).items():
                rows = table.take([place for _, place in wanted[uri]]).to_pylist()
                for (number, _), row in zip(wanted[uri], rows, strict=True):
                    found[number] = row
        return found

    def _place(self, row_id: int) -> tuple[str, int]:
        """Returns the URI of the shard that holds a row, and which of its rows that is."""
        layer = self._layers[bisect_right(self._starts, row_id) - 1]
        shard, place = divmod(row_id - layer.first_row, layer.shard_size)
        return self._index.path(layer.folder, "corpus", shard_name(shard)), place

    def _tables(self, uris: list[str], columns: tuple[str, ...]) -> dict[str, pa.Table]:
        """Returns columns of shards, and forgets those that were used longest ago where there are too many."""
        missing = [uri for uri in uris if (uri, columns) not in self._kept]
        read = storage.for_each(lambda uri: _read(uri, columns), missing)
        for uri, table in zip(missing, read, strict=True):
            self._kept[uri, columns] = table
            self._num_bytes += table.nbytes
        tables = {uri: self._kept[uri, columns] for uri in uris}
        for uri in uris:
            self._kept.move_to_end((uri, columns))
        while self._num_bytes > KEPT_BYTES:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return tables


def _read(uri: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        return storage.read_parquet(uri, list(columns))
    except FileNotFoundError:
        raise Fault(f"'{uri}' is missing, and what its documents say with it; bring the corpus back") from None
