"""Looking documents up by their row_id: which shard holds a row is arithmetic, and shards that were read are kept a while.

Never more than a few shards are in memory, whatever the size of the corpus.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from zerogr.index.index import Index, shard_name
from zerogr.index.versions import Layer, Version
from zerogr.store import storage

KEPT_SHARDS = 16
COLUMNS = ("doc_id", "title", "text", "kind", "metadata")


class Lookup:
    """The corpus of a version, by row_id."""

    def __init__(self, index: Index, version: Version) -> None:
        """Opens nothing yet."""
        self._index, self._layers = index, version.layers
        self._starts = [layer.first_row for layer in version.layers]
        self._shards: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def read(self, row_ids: Sequence[int], columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
        """Returns columns of documents, in the order of `row_ids`."""
        found = []
        for row_id in row_ids:
            layer = self._layers[bisect_right(self._starts, row_id) - 1]
            shard, place = divmod(row_id - layer.first_row, layer.shard_size)
            table = self._shard(layer, shard)
            found.append({name: table.column(name)[place].as_py() for name in columns})
        return found

    def _shard(self, layer: Layer, shard: int) -> pa.Table:
        key = (layer.number, shard)
        if key not in self._shards:
            uri = self._index.path(layer.folder, "corpus", shard_name(shard))
            self._shards[key] = storage.read_parquet(uri, list(COLUMNS))
            if len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(key)
        return self._shards[key]
