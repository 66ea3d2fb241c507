"""Versions of an index: what each holds and where it lies.

An update (`zerogr update`) writes a folder of its own and touches nothing that was published before:

    versions/000003/          corpus/, docids/, queries/ of the documents it adds; trie/ and, where it learns, retriever/
    versions/000003/version.json      the index's manifest as of this version, with its `Version`
    index.json                        the manifest of the version that is current: publishing is this one write

A version is therefore a few names: the layers whose shards it reads, its documents and trie (those of a base, and an addition
to them), its retriever. Removed documents stay in their shards and are left out by whoever reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zerogr.errors import UserError
from zerogr.index.index import VERSIONS, Index, shard_name, shards_in
from zerogr.store import storage

MANIFEST, REQUEST = "version.json", "update.json"
"""In a version's folder: the index's manifest as of it, and what was asked for."""
REMOVED = "removed.parquet"
REMOVED_SCHEMA = pa.schema([("doc_id", pa.string()), ("update", pa.int32())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The shards of the documents that one update has added; those that the index began with are layer 0."""

    number: int
    folder: str
    """Below the index; "" = the index itself."""
    first_row: int
    """The row_id of its first document."""
    num_rows: int
    """Of its corpus."""
    shard_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What one version consists of. Folders are below the index."""

    number: int = 0
    last: int = 0
    """The highest number that any version of the index has had; after a rollback more than `number`."""
    layers: tuple[Layer, ...] = ()
    base: str = ""
    """Of the documents and the trie that everything else is added to: the index itself, or a version that compacted them."""
    addition: str | None = None
    """Of the documents and the trie that were added since."""
    removed: str | None = None
    """Of the list of all removed documents."""
    retriever: str = "retriever"
    """Of the model."""
    changes: str | None = None
    """Of tensors that replace the model's own, and of terms that are added to its scores."""
    statistics: str | None = None
    """Of what is known of the queries learnt so far, for the methods that need it."""
    kept: int | None = None
    """The update that has last handed on its sample of old queries."""
    states: str | None = None
    """Of the retriever's hidden states for old queries, for the method that needs them; None where its weights have changed."""
    num_documents: int = 0
    """That can be found."""

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Version:
        """Returns the version that a manifest describes."""
        if "version" not in manifest:
            return cls._first(manifest)
        entry = dict(manifest["version"])
        return cls(**{**entry, "layers": tuple(Layer(**layer) for layer in entry["layers"])})

    @classmethod
    def _first(cls, manifest: dict[str, Any]) -> Version:
        stages = manifest["stages"]
        rows = stages.get("corpus", {}).get("counts", {}).get("rows", 0)
        documents = stages.get("docids", {}).get("counts", {}).get("rows", 0)
        shard_size = manifest["config"].get("corpus", {}).get("shard_size", 1)
        layer = Layer(number=0, folder="", first_row=0, num_rows=rows, shard_size=shard_size)
        return cls(layers=(layer,), num_documents=documents)

    def as_json(self) -> dict[str, Any]:
        """Returns what `of` reads."""
        return asdict(self)


def name_of(manifest: dict[str, Any]) -> str:
    """Returns a short name of what a manifest describes; it changes whenever what is found does."""
    stages = manifest.get("stages", {})
    name = "-".join(stages[stage]["fingerprint"][:8] for stage in ("trie", "retriever") if stage in stages)
    number = manifest.get("version", {}).get("number", 0)
    return f"{name}+{number}" if number else name


def folder_of(number: int) -> str:
    """Returns the folder of a version, below the index."""
    return f"{VERSIONS}/{number:06d}"


def root_of(index: Index) -> Index:
    """Returns the index that a version's folder belongs to; an index itself."""
    return Index(re.sub(rf"/{VERSIONS}/\d{{6}}$", "", index.uri))


def is_update(index: Index) -> bool:
    """Whether this is the folder of an update."""
    return root_of(index).uri != index.uri


def manifest_of(index: Index, number: int | None = None) -> dict[str, Any]:
    """Returns the manifest of a version; None = the current one.

    Raises:
        UserError: There is no such version.
    """
    current = index.manifest()
    if number is None or number == Version.of(current).number:
        return current
    if number == 0 and "version" not in current:
        return current
    try:
        return dict(storage.read_json(index.path(folder_of(number), MANIFEST)))
    except FileNotFoundError:
        raise UserError(
            f"'{index.uri}' has no version {number}; the current one is {Version.of(current).number}"
        ) from None


def number_before(index: Index, number: int) -> int | None:
    """Returns the version that an update was made from; None for the one that the index began with."""
    if number == 0:
        return None
    return int(storage.read_json(index.path(folder_of(number), REQUEST))["before"])


class Live:
    """The documents of a version that were not removed, read from the shards of all its layers."""

    def __init__(self, index: Index, version: Version | None = None) -> None:
        """Reads the list of removed documents; None = the current version."""
        self._index = root_of(index)
        self.version = Version.of(self._index.manifest()) if version is None else version
        self.removed = read_removed(self._index, self.version)

    def shards(self, folder: str) -> Iterator[tuple[Layer, int]]:
        """Yields the published shards of a folder, in order."""
        for layer in self.version.layers:
            for shard in shards_in(self._path(layer, folder)):
                yield layer, shard

    def read(self, layer: Layer, folder: str, shard: int, columns: list[str]) -> pa.Table:
        """Returns columns of the documents of a shard that were not removed."""
        uri = storage.join(self._path(layer, folder), shard_name(shard))
        wanted = columns if "doc_id" in columns else [*columns, "doc_id"]
        return self.left_of(layer, storage.read_parquet(uri, wanted)).select(columns)

    def tables(self, folder: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yields the same of every shard."""
        for layer, shard in self.shards(folder):
            yield self.read(layer, folder, shard, columns)

    def left_of(self, layer: Layer, table: pa.Table) -> pa.Table:
        """Returns the rows of a layer's table that were not removed by a later update."""
        later = self.removed.filter(pc.greater(self.removed.column("update"), layer.number))
        if not len(later):
            return table
        return table.filter(
            pc.invert(pc.is_in(table.column("doc_id"), value_set=later.column("doc_id").combine_chunks()))
        )

    def _path(self, layer: Layer, folder: str) -> str:
        return self._index.path(layer.folder, folder)


def read_removed(index: Index, version: Version) -> pa.Table:
    """Returns doc_id and number of the update of everything that was removed up to a version."""
    if version.removed is None:
        return REMOVED_SCHEMA.empty_table()
    return storage.read_parquet(index.path(version.removed, REMOVED))


def propose(index: Index, version: Version) -> None:
    """Writes the manifest of a version into its folder, where it can be opened by its number before it is published."""
    manifest = index.manifest()
    before = Version.of(manifest)
    if before.number == 0:
        storage.write_json(index.path(folder_of(0), MANIFEST), {**manifest, "version": before.as_json()})
    storage.write_json(index.path(folder_of(version.number), MANIFEST), {**manifest, "version": version.as_json()})


def publish(index: Index, number: int) -> None:
    """Makes a version the current one, with one write; what was current stays readable.

    An older version that is made current again keeps count of the younger ones, so that their folders are not used again.

    Raises:
        UserError: There is no such version.
    """
    last = Version.of(index.manifest()).last
    manifest = manifest_of(index, number)
    version = Version.of(manifest)
    storage.write_json(
        index.path("index.json"), {**manifest, "version": {**version.as_json(), "last": max(last, version.last)}}
    )
