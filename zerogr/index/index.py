"""The index: a folder of stages, a manifest that is written last, and the rule of when a stage may run.

A stage's *fingerprint* is the hash of its inputs: the configuration keys it reads, its prompts, the content hashes of the
models it runs, the fingerprints of the stages it reads, and the version of its own code. Nothing about hardware enters.
A stage is cut into shards with deterministic names; a published shard file is a finished shard, so a rerun lists and goes
on. A stage that was begun with one fingerprint refuses another, naming the keys that differ, until it is rebuilt.

    index.json          {"format", "config", "stages": {name: {"fingerprint", "inputs", "counts", "files", "seconds", ...}}}
    work/<stage>.json   {"fingerprint", "inputs"} of a stage that has begun
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from zerogr.errors import StageRefused, UserError
from zerogr.index.stage import EVALUATION, INDEX, KINDS, STAGES, STATISTICS, FolderKind, Stage, kind_of
from zerogr.store import cache, storage

FORMAT = 2
VERSIONS = "versions"
"""Folder of what updates have added; see `zerogr.index.versions`."""
RUNS = "work/runs"
"""What the runs of each stage cost (`zerogr.index.ledger`)."""
CHECK = "check.json"
"""What a version must be, for whoever serves it (`zerogr.search.check`)."""

REJECTED_SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StageRecord:
    """What the manifest says of a finished stage."""

    fingerprint: str
    inputs: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    """Rows, rates and tokens, as the stage reports them."""
    files: int = 0
    seconds: float = 0.0
    """Wall time of the run that finished the stage, without earlier interrupted runs."""
    effort: dict[str, float] = field(default_factory=dict)
    """What all its runs did and cost, as `zerogr.index.ledger.Effort`; empty for a stage that is not made by engines."""


def fingerprint(inputs: dict[str, Any]) -> str:
    """Returns the hash of a stage's inputs, 16 hex digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def shard_name(shard: int) -> str:
    """Returns the file name of a shard."""
    return f"part-{shard:06d}.parquet"


def shards_in(folder: str) -> list[int]:
    """Returns the numbers of the shards published in a folder, ascending."""
    matches = (re.fullmatch(r"part-(\d{6,})\.parquet", name) for name in storage.list_files(folder))
    return sorted(int(match[1]) for match in matches if match)


class Index:
    """An index at a URI. Holds no state of its own beyond the URI: every question is asked of the storage."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"

    def path(self, *parts: str) -> str:
        """Returns the URI of something in the index; "" among the parts is the folder itself."""
        return storage.join(self.uri, *filter(None, parts))

    def shard(self, folder: str, shard: int) -> str:
        """Returns the URI of one shard of a folder."""
        return self.path(folder, shard_name(shard))

    def manifest(self) -> dict[str, Any]:
        """Returns index.json; an empty one if the index has no finished stage.

        Raises:
            UserError: The manifest is damaged or of another format version, or the URI is that of a file.
        """
        try:
            manifest = storage.read_json(self.path("index.json"))
        except FileNotFoundError:
            return {"format": FORMAT, "config": {}, "stages": {}}
        except NotADirectoryError:
            raise UserError(f"'{self.uri}' is a file, and an index is a folder; name another place") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "stages" not in manifest:
            seen = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise UserError(
                f"'{self.path('index.json')}' has format {seen}; this version reads {FORMAT}: build the index anew"
            )
        return manifest

    def record(self, stage: str) -> StageRecord | None:
        """Returns what the manifest says of a finished stage, or None."""
        entry = self.manifest()["stages"].get(stage)
        return StageRecord(**entry) if entry else None

    def require(self, stage: str) -> StageRecord:
        """Returns the record of a stage another one needs.

        Raises:
            UserError: The stage has not been finished.
        """
        record = self.record(stage)
        if record is None:
            raise UserError(
                f"'{self.uri}' has no finished stage '{stage}'; "
                f"run `zerogr {STAGES[stage].command} CONFIG` or `zerogr index CONFIG` first"
            )
        return record

    def begin(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Returns whether there is anything left to do, and claims the stage for these inputs if so.

        Raises:
            StageRefused: The stage was begun or finished with other inputs; the differing keys are named.
            UserError: The folder holds something of another kind, or files where the stage has not begun.
        """
        self._check_kind(stage)
        claim = {"fingerprint": fingerprint(inputs), "inputs": inputs}
        while True:
            stored = self.record(stage)
            begun = None if stored else self._begun(stage)
            known = stored.inputs if stored else begun["inputs"] if begun else None
            if known is not None and fingerprint(known) != claim["fingerprint"]:
                raise StageRefused(_refusal(self.uri, stage, known, inputs))
            if stored:
                return False
            if begun:
                return True
            self._check_nothing_there(stage)
            if storage.create_json(self.path("work", f"{stage}.json"), claim):
                return True  # else another driver has begun it since; look at what with

    def release(self, stage: str) -> None:
        """Forgets that a stage was begun, if it has published nothing: a mistake that made nothing binds nobody."""
        if not self._published(stage):
            storage.delete(self.path("work", f"{stage}.json"))

    def _published(self, stage: str) -> str | None:
        """Returns a file of a stage that depends on what it was begun with; None if there is none."""
        keyed = tuple(f"{self.path(folder)}/" for folder in STAGES[stage].keyed)
        places = map(self.path, _places(STAGES[stage]))
        files = (f"{place}/{name}" for place in places for name in storage.list_files(place))
        return next((file for file in files if not file.startswith(keyed)), None)

    def _check_nothing_there(self, stage: str) -> None:
        # The user's own files, perhaps the corpus itself; or shards of an update that was forgotten halfway, which the stage
        # would take for its own.
        if file := self._published(stage):
            raise UserError(
                f"'{file}' is there, and stage '{stage}' of '{self.uri}' was never begun; give the index another place, or "
                f"delete what is there with --rebuild {stage} (`zerogr update INDEX --discard` where it is an update's)"
            )

    def _clear(self, stage: str) -> None:
        """Deletes everything of a stage, the claim last."""
        for place in _places(STAGES[stage]):
            storage.delete(self.path(place))
        for folder in ("rejected", RUNS):
            for file in storage.list_files(self.path(folder)):
                if file.startswith((f"{stage}-", f"{stage}.")):
                    storage.delete(self.path(folder, file))
        storage.delete(self.path("work", f"{stage}.json"))

    def kind(self) -> FolderKind | None:
        """Returns what the folder holds; None if nothing was begun there."""
        known = {*self.manifest()["stages"], *self.begun()}
        return next((kind for kind in KINDS if known & {stage.name for stage in kind.stages}), None)

    def _check_kind(self, stage: str) -> None:
        # Several kinds hold shards in docids/ and queries/; one would take the other's for its own.
        there, wanted = self.kind(), kind_of(STAGES[stage])
        if there not in (None, wanted):
            raise UserError(
                f"'{self.uri}' holds {there.name}; give {wanted.name} a folder of its own: set {wanted.key}"
            )

    def _begun(self, stage: str) -> dict[str, Any] | None:
        try:
            return storage.read_json(self.path("work", f"{stage}.json"))
        except FileNotFoundError:
            return None

    def _inputs(self, stage: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Returns what a stage was begun or finished with; {} if it was not."""
        return (manifest["stages"].get(stage) or self._begun(stage) or {}).get("inputs", {})

    def begun(self) -> list[str]:
        """Returns the stages that were begun and not finished."""
        finished = self.manifest()["stages"]
        return [stage for stage in STAGES if stage not in finished and self._begun(stage)]

    def finish(
        self,
        stage: str,
        inputs: dict[str, Any],
        *,
        config: dict[str, Any],
        counts: dict[str, Any],
        seconds: float,
        effort: dict[str, float] | None = None,
    ) -> None:
        """Writes the stage into the manifest: from here on it is done."""
        manifest = self.manifest()
        files = sum(len(storage.list_files(self.path(folder))) for folder in STAGES[stage].folders)
        manifest["config"] = config
        manifest["stages"][stage] = {
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "counts": counts,
            "files": files,
            "seconds": round(seconds, 3),
            **({"effort": effort} if effort else {}),
        }
        storage.write_json(self.path("index.json"), manifest)

    def adopt(self, stage: str, inputs: dict[str, Any], donor: Index, *, config: dict[str, Any]) -> bool:
        """Takes over a finished stage of another index, if that was made from the same inputs and this one has not begun it.

        The stage is claimed first, the manifest goes last, and every file is published whole: what an interrupted call leaves
        are finished shards of a stage that was begun with these inputs.

        Returns:
            Whether the stage is now done.
        """
        record = donor.record(stage)
        begun = self._begun(stage)
        is_ours = begun is not None and not ("donor" in begun and begun["fingerprint"] == fingerprint(inputs))
        if record is None or record.fingerprint != fingerprint(inputs) or self.record(stage) or is_ours:
            return False
        self._check_kind(stage)
        if begun is None:
            self._check_nothing_there(stage)
            claim = {"fingerprint": fingerprint(inputs), "inputs": inputs, "donor": donor.uri}
            storage.write_json(self.path("work", f"{stage}.json"), claim)
        for place in (*STAGES[stage].keeps, *STAGES[stage].folders):
            if storage.list_files(donor.path(place)):
                storage.upload_folder(cache.local_folder(donor.path(place)), self.path(place))
            elif storage.exists(donor.path(place)):
                storage.write_bytes(self.path(place), storage.read_bytes(donor.path(place)))
        for name in storage.list_files(donor.path("rejected")):
            if name.startswith(f"{stage}-"):
                storage.write_bytes(self.path("rejected", name), storage.read_bytes(donor.path("rejected", name)))
        manifest = self.manifest()
        manifest["config"] = config
        manifest["stages"][stage] = donor.manifest()["stages"][stage]
        storage.write_json(self.path("index.json"), manifest)
        return True

    def rebuild(self, stage: str) -> list[str]:
        """Forgets a stage and everything made from it; returns their names.

        The manifest goes first, so that an interrupted rebuild leaves a stage to do and never a half-deleted finished one.

        Raises:
            UserError: The folder holds something of another kind.
        """
        self._check_kind(stage)
        manifest = self.manifest()
        inputs = {name: self._inputs(name, manifest) for name in STAGES}
        doomed = [stage]
        for name in STAGES:  # in order: what a stage is made from comes before it
            if name != stage and not inputs[name].keys().isdisjoint(doomed):
                doomed.append(name)
        manifest["stages"] = {name: entry for name, entry in manifest["stages"].items() if name not in doomed}
        is_served = not set(doomed) <= {EVALUATION.name, STATISTICS.name}
        if is_served:
            manifest.pop("version", None)
        if storage.exists(self.path("index.json")):
            storage.write_json(self.path("index.json"), manifest)
        if is_served:  # a stage made again from the same inputs need not have the same bytes
            storage.delete(self.path(CHECK))
            storage.delete(self.path(VERSIONS))  # updates, finished or not, were made from what is forgotten
        for name in doomed:
            self._clear(name)
        logger.info("rebuilding %s", ", ".join(doomed))
        return doomed

    def rows_of_shards(self) -> dict[int, int]:
        """Returns {shard: documents} of the finished corpus, as the shards' footers say."""
        self.require("corpus")
        shards = shards_in(self.path("corpus"))
        counts = storage.for_each(storage.parquet_num_rows, [self.shard("corpus", shard) for shard in shards])
        return dict(zip(shards, counts, strict=True))

    def pending_shards(self, folder: str) -> list[int]:
        """Returns the shards of the corpus that `folder` does not hold yet."""
        done = set(shards_in(self.path(folder)))
        return [shard for shard in shards_in(self.path("corpus")) if shard not in done]

    def publish_shard(
        self, stage: str, folder: str, shard: int, table: pa.Table, rejected: Iterable[tuple[str, str, str]]
    ) -> None:
        """Publishes a finished shard; its rejected rows (doc_id, reason, detail) go first, so that none is lost."""
        rows = [
            {"doc_id": doc_id, "stage": stage, "reason": reason, "detail": detail}
            for doc_id, reason, detail in rejected
        ]
        if rows:
            storage.write_parquet(
                self.path("rejected", f"{stage}-{shard_name(shard)}"),
                pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA),
            )
        storage.write_parquet(self.shard(folder, shard), table)

    def num_rejected(self, stage: str) -> dict[str, int]:
        """Returns {reason: rows} of a stage's rejected rows."""
        names = [name for name in storage.list_files(self.path("rejected")) if name.startswith(f"{stage}-")]
        uris = [self.path("rejected", name) for name in names]
        counts: Counter[str] = Counter()
        for table in storage.for_each(lambda uri: storage.read_parquet(uri, ["reason"]), uris):
            counts.update(table.column("reason").to_pylist())
        return dict(sorted(counts.items()))


def _places(stage: Stage) -> tuple[str, ...]:
    """Returns everything that a stage leaves below its index."""
    return (*stage.folders, *stage.work, *stage.keeps)


def _refusal(uri: str, stage: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    def show(inputs: dict[str, Any], key: str) -> str:
        text = json.dumps(inputs[key], ensure_ascii=False) if key in inputs else "absent"
        return text if len(text) <= 60 else text[:57] + "..."

    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    named = ", ".join(f"{name} ({show(old, name)} there, {show(new, name)} now)" for name in differing)
    kind = kind_of(STAGES[stage])
    return (
        f"stage '{stage}' of '{uri}' was made with another {named}; run again with --rebuild {stage}, "
        f"or with another {'index URI' if kind is INDEX else kind.key}"
    )
