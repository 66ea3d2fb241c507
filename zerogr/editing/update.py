"""An update: documents come and go, and a new version of the index stands beside the old one.

It is begun by one conditional write, so that two updates with different contents never share a folder; its stages are those of
any index, in the version's own folder, and are finished shard by shard; it is published by one write of index.json. Until then
the old version answers, and after a fault the same command goes on where it stopped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from zerogr.config.file import config_of
from zerogr.config.tree import Config
from zerogr.corpus.readers import source_hash
from zerogr.errors import UserError
from zerogr.index.index import Index, fingerprint
from zerogr.index.versions import (
    REMOVED,
    REMOVED_SCHEMA,
    REQUEST,
    Layer,
    Version,
    folder_of,
    read_removed,
)
from zerogr.search.answer import Documents
from zerogr.store import storage
from zerogr.trie.opened import open_trie, read_documents

OWN_SECTIONS = ("corpus", "queries", "update", "compute")
"""Of the configuration, that an update may have otherwise than the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted of an update."""

    source: str | None = None
    """Of the documents to add, as corpus.source; None = none."""
    remove: tuple[str, ...] = ()
    """doc_ids."""
    compact: bool = False
    """Whether documents and trie are written anew as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update that was begun."""

    root: Index
    """The index."""
    index: Index
    """The version's own folder."""
    request: Request
    config: Config
    """Of its stages."""
    before: Version
    """What it is made from."""

    @property
    def number(self) -> int:
        """Of the version that it makes."""
        return self.before.last + 1

    @property
    def is_whole(self) -> bool:
        """Whether documents and trie are written anew as one: when asked for, and where tables stand beside the trie."""
        return self.request.compact or self.config.docids.has_shared or self.config.ranking.needs_lexical

    @property
    def folder(self) -> str:
        """Of the version, below the index."""
        return folder_of(self.number)


def update_config(root: Index, request: Request, overrides: list[str] | None = None) -> Config:
    """Returns the configuration of an update: the index's own, but for what it reads and what is overridden.

    Raises:
        UserError: There is no finished index, or something is overridden that is the same in all versions.
    """
    for stage in ("corpus", "docids", "queries", "trie", "retriever"):
        root.require(stage)
    for override in overrides or []:
        if re.split(r"[.=]", override, maxsplit=1)[0] not in OWN_SECTIONS:
            raise UserError(
                f"--set {override}: every version of an index has the same {override.partition('=')[0]}; an update may "
                f"change {', '.join(OWN_SECTIONS)}, and `zerogr index` builds anew"
            )
    tree = root.manifest()["config"]
    corpus = {**tree["corpus"], "max_documents": None, "keep_judged": None, "format": "auto"}
    if request.source is not None:
        corpus["source"] = request.source
    section = tree.get("update", {})
    if any(override.startswith("update.method.name=") for override in overrides or []):
        section = {**section, "method": {}}  # the settings of one method mean nothing to another
    # Stages of other indexes are none of this one's: their docids were given out among other documents.
    compute = {**tree["compute"], "reuse": []}
    return config_of({**tree, "index": root.uri, "corpus": corpus, "compute": compute, "update": section}, overrides)


def statistics_config(root: Index, config: Config) -> Config:
    """Returns the index's own configuration, with what an update's says of the statistics that its method needs."""
    own = config_of({**root.manifest()["config"], "index": root.uri})
    wanted = {key: getattr(config.update, key) for key in ("layers", "statistics_queries", "patch_queries")}
    return own.model_copy(update={"update": own.update.model_copy(update=wanted)})


def begin(root: Index, request: Request, config: Config) -> Update | None:
    """Begins an update, or goes on with the same one; None if the current version is what it made.

    Raises:
        UserError: Another update was begun and not finished.
    """
    before = Version.of(root.manifest())
    made_from = {stage: root.require(stage).fingerprint for stage in ("corpus", "docids", "trie", "retriever")}
    inputs = {**_inputs(request, config), "before": before.number, "made_from": made_from}
    done = _request_of(root, before.number) if before.number else None
    if done is not None and done["fingerprint"] == inputs["fingerprint"]:
        return None
    update = Update(
        root=root, index=Index(root.path(folder_of(before.last + 1))), request=request, config=config, before=before
    )
    update = replace(update, config=config.model_copy(update={"index": update.index.uri}))
    _check_removed(update)
    while not storage.create_json(update.index.path(REQUEST), inputs):
        begun = _request_of(root, update.number)
        if begun is None:
            continue  # it was discarded since
        is_same = all(begun[key] == inputs[key] for key in ("fingerprint", "before"))
        if is_same and begun.get("made_from") != made_from:
            raise UserError(
                f"this update of '{root.uri}' was begun before the index was built anew; forget it with "
                f"`zerogr update {root.uri} --discard`, and give it again"
            )
        if not is_same:
            raise UserError(
                f"another update of '{root.uri}' was begun and not finished ({_in_words(begun)}); give the same again to "
                f"finish it, or forget it with `zerogr update {root.uri} --discard`"
            )
        break
    _write_removed(update)
    return update


def discard(root: Index) -> bool:
    """Forgets an update that was begun and not published; returns whether there was one."""
    folder = root.path(folder_of(Version.of(root.manifest()).last + 1))
    if not storage.list_files(folder):
        return False
    storage.delete(folder)
    return True


def planned(update: Update, *, num_removed: int) -> Version:
    """Returns the version that an update makes, its corpus and docids finished; the retriever is that of the version before.

    Args:
        update: With its stages up to the trie done.
        num_removed: Documents that it takes away.
    """
    before, request = update.before, update.request
    layers = before.layers
    num_added = 0
    if request.source is not None:
        corpus, docids = update.index.require("corpus"), update.index.require("docids")
        num_rows, num_added = int(corpus.counts["rows"]), int(docids.counts["rows"])
        first = layers[-1].first_row + layers[-1].num_rows
        shard_size = update.config.corpus.shard_size
        layers += (
            Layer(
                number=update.number, folder=update.folder, first_row=first, num_rows=num_rows, shard_size=shard_size
            ),
        )
    return replace(
        before,
        number=update.number,
        last=update.number,
        layers=layers,
        base=update.folder if update.is_whole else before.base,
        addition=None if update.is_whole else update.folder,
        removed=update.folder,
        num_documents=before.num_documents + num_added - num_removed,
    )


def _inputs(request: Request, config: Config) -> dict[str, Any]:
    asked = {
        "add": request.source,
        "content": source_hash(config.corpus) if request.source is not None else None,
        "remove": sorted(request.remove),
        "compact": request.compact,
        "method": config.update.method.model_dump(mode="json"),
    }
    same = {key: value for key, value in asked.items() if key != "add"}  # a copy elsewhere is the same
    return {**asked, "fingerprint": fingerprint(same)}


def _request_of(root: Index, number: int) -> dict[str, Any] | None:
    try:
        return dict(storage.read_json(root.path(folder_of(number), REQUEST)))
    except FileNotFoundError:
        return None


def _check_removed(update: Update) -> None:
    """Raises UserError for documents to remove that the index does not hold, or if none would be left."""
    wanted = update.request.remove
    if not wanted:
        return
    opened, table = open_trie(update.root, update.before), read_documents(update.root, update.before)
    documents = Documents.of(table, opened.denied)
    held = set(documents.held(wanted))
    if unknown := [doc_id for doc_id in wanted if doc_id not in held]:
        raise UserError(
            f"{len(unknown)} of the {len(wanted)} documents to remove are not in '{update.root.uri}', the first is "
            f"{unknown[0]!r}; take them out of the list"
        )
    if len(wanted) == documents.num_live and update.request.source is None:
        raise UserError(f"no document of '{update.root.uri}' would be left; an index holds at least one")


def _write_removed(update: Update) -> None:
    """Publishes the list of all documents that were removed up to this version."""
    removed = pa.table(
        {"doc_id": sorted(set(update.request.remove)), "update": [update.number] * len(set(update.request.remove))},
        schema=REMOVED_SCHEMA,
    )
    storage.write_parquet(
        update.index.path(REMOVED), pa.concat_tables([read_removed(update.root, update.before), removed])
    )


def _in_words(begun: dict[str, Any]) -> str:
    parts = [
        f"adds {begun['add']}" if begun["add"] else "",
        f"removes {len(begun['remove'])} documents" if begun["remove"] else "",
        "compacts" if begun["compact"] else "",
        f"method {begun['method']['name']}",
    ]
    return ", ".join(filter(None, parts))
