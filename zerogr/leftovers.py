"""What is left in an index that nobody needs: of dead runs, of finished stages, and of old versions.

Nothing that a kept version, the version that the index began with, or an unfinished update refers to is a leftover. Versions
share folders: an old version's documents stay while a kept version has them among its layers, and so do its trie, its
retriever and the rest, each by itself, while a kept version names it.

Ask with the lease of the index in hand: what a driver is writing looks like what a dead one has left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from zerogr.index.index import CHECK, VERSIONS, Index
from zerogr.index.stage import STAGES
from zerogr.index.versions import MANIFEST, REMOVED, Version, folder_of, manifest_of
from zerogr.store import storage
from zerogr.store.uploads import Upload, abort_upload, unfinished_uploads
from zerogr.training.checkpoints import ATTEMPTS, CHECKPOINTS, superseded

_STATE = ("trie", "lexical", "retriever", "statistics", "states", REMOVED, CHECK)
"""What a version's folder has besides its manifest and the documents that it adds; samples of old queries belong to it, too."""
_SAMPLE = re.compile(r"sample-\d+\.parquet")


class Leftover(NamedTuple):
    """A file, a folder or an upload."""

    kind: str
    """For a person."""
    place: str
    """Below the index."""
    num_files: int
    num_bytes: int
    upload: Upload | None = None
    """Where it is one."""


def find_leftovers(index: Index, *, keep_versions: int | None = None) -> list[Leftover]:
    """Returns what can be deleted, in the order in which it should be.

    Args:
        index: An index, teacher data or generators.
        keep_versions: How many versions stay, the current one and the newest others; None = all. The one that the index
            began with always stays.
    """
    files = storage.list_files(index.uri)
    found = [] if keep_versions is None else list(_old_versions(index, files, keep_versions))
    gone = tuple(f"{leftover.place}/" for leftover in found)
    found += [each for each in _work(index, files) if not each.place.startswith(gone)]
    unfinished = storage.list_unfinished(index.uri)
    found += [Leftover("temporary file", name, 1, size) for name, size in unfinished.items()]
    uploads = unfinished_uploads(index.uri)
    return found + [Leftover("unfinished upload", each.name, 1, each.num_bytes, each) for each in uploads]


def delete_leftover(index: Index, leftover: Leftover) -> None:
    """Deletes it."""
    if leftover.upload:
        abort_upload(index.uri, leftover.upload)
    else:
        storage.delete(index.path(leftover.place))


def _version_folders(files: dict[str, int]) -> list[str]:
    """Returns the folders of the versions that the index has, in order."""
    return sorted({match[0] for name in files if (match := re.match(rf"{VERSIONS}/\d{{6}}(?=/)", name))})


def _work(index: Index, files: dict[str, int]) -> Iterator[Leftover]:
    """Yields what stages of the index, and of its versions, needed only while they ran."""
    stage_of = {place: stage for stage in STAGES.values() for place in stage.work}
    matches = (re.match(rf"({VERSIONS}/\d{{6}}/)?(work/[^/]+)/", name) for name in files)
    for folder, place in sorted({(match[1] or "", match[2]) for match in matches if match and match[2] in stage_of}):
        if stage_of[place].name in Index(index.path(folder)).manifest()["stages"]:
            yield from _all_below(files, "work of a finished stage", folder + place)
            continue
        yield from _all_below(files, "attempts of a dead run", f"{folder}{place}/{ATTEMPTS}")
        checkpoints = f"{folder}{place}/{CHECKPOINTS}"
        for old in superseded(index.path(checkpoints)):
            yield from _all_below(files, "superseded checkpoint", f"{checkpoints}/{old}")


def _old_versions(index: Index, files: dict[str, int], keep: int) -> Iterator[Leftover]:
    """Yields the folders of versions that are not kept, or what nobody needs in them; a version's manifest goes first."""
    current = Version.of(index.manifest())
    numbers = [number for folder in _version_folders(files) if 0 < (number := int(folder[-6:])) <= current.last]
    with_manifest = [number for number in numbers if f"{folder_of(number)}/{MANIFEST}" in files]
    others = sorted(set(with_manifest) - {current.number}, reverse=True)
    kept = {current.number, *others[: keep - 1]}
    needed = set().union(*(_needed(Version.of(manifest_of(index, number)), files) for number in kept))
    for number in sorted(set(numbers) - kept):
        folder, kind = folder_of(number), f"version {number}"
        manifest, parts = f"{folder}/{MANIFEST}", {f"{folder}/{part}" for part in _parts_of(folder, files)}
        yield from _all_below(files, kind, manifest)
        if folder not in needed and needed.isdisjoint(parts):
            yield from _all_below(files, kind, folder, without=manifest)
            continue
        for part in sorted(parts - needed - {manifest}):
            name = part.rpartition("/")[2]
            if folder not in needed or name in _STATE or _SAMPLE.fullmatch(name):
                yield from _all_below(files, kind, part)


def _needed(version: Version, files: dict[str, int]) -> set[str]:
    """Returns what a version consists of: folders of layers, and of other folders the parts that it names."""
    named = {f"{version.base}/trie", f"{version.base}/lexical", version.retriever}
    named |= {place for place in (version.changes, version.statistics, version.states) if place}
    if version.addition is not None:
        named.add(f"{version.addition}/trie")
    if version.removed is not None:
        named.add(f"{version.removed}/{REMOVED}")
    if version.kept is not None:
        folder = folder_of(version.kept)
        named |= {f"{folder}/{part}" for part in _parts_of(folder, files) if _SAMPLE.fullmatch(part)}
    return named | {layer.folder for layer in version.layers}


def _parts_of(folder: str, files: dict[str, int]) -> set[str]:
    """Returns the names of the files and folders in a folder."""
    return {name[len(folder) + 1 :].partition("/")[0] for name in files if name.startswith(f"{folder}/")}


def _all_below(files: dict[str, int], kind: str, place: str, *, without: str = "") -> Iterator[Leftover]:
    """Yields a file, or a folder with all that is in it but for one that comes by itself; nothing if there is none."""
    names = (name for name in files if name == place or name.startswith(f"{place}/"))
    sizes = [files[name] for name in names if name != without]
    if sizes:
        yield Leftover(kind, place, len(sizes), sum(sizes))
