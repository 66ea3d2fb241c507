"""What stands in an index: finished stages from the manifest, unfinished ones from their shards. `zerogr status INDEX`"""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from jobs.command import run_module
from jobs.hosts import read_hosts
from jobs.tables import summary
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import RUNS, Index, shards_in
from zerogr.index.lease import Lease, holder_of
from zerogr.index.ledger import Effort, read_effort
from zerogr.index.stage import INDEX, Stage
from zerogr.index.versions import REQUEST, Version, folder_of
from zerogr.progress import duration
from zerogr.store import storage

SILENT_AFTER_S = 1800.0
"""A stage that has written nothing for so long has probably lost its job: shards and checkpoints come sooner."""


def status(uri: str) -> dict[str, Any]:
    """Returns {"index", "stages": {name: {"state", "fingerprint", "counts", ...}}}, of teacher data and generators as well.

    "driver" says who is changing it, if anybody is.

    Raises:
        UserError: There is none of them at the URI.
    """
    index = Index(uri)
    finished, begun = index.manifest()["stages"], index.begun()
    if not finished and not begun:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    wants = _config_of(index)
    stages: dict[str, Any] = {}
    for stage in (index.kind() or INDEX).stages:
        if stage.name in finished:
            stages[stage.name] = {"state": "done", **_finished(index, stage, finished[stage.name])}
        elif stage.name in begun:
            stages[stage.name] = {"state": "unfinished", **_unfinished(index, stage)}
        elif wants is None or stage.is_wanted(wants):
            stages[stage.name] = {"state": "not begun"}
    holder = holder_of(index)
    return {"index": uri, **_version(index), **({"driver": holder.as_json()} if holder else {}), "stages": stages}


def _version(index: Index) -> dict[str, Any]:
    """Returns {"version": ...} of an index that was updated, or is about to be; {} of another."""
    version = Version.of(index.manifest())
    begun = storage.exists(index.path(folder_of(version.last + 1), REQUEST))
    if not version.number and not begun:
        return {}
    return {
        "version": {
            "number": version.number,
            "documents": version.num_documents,
            "updates": len(version.layers) - 1,
            "is_compact": version.addition is None,
            "unfinished_update": begun,
        }
    }


def _config_of(index: Index) -> Config | None:
    """Returns the configuration that the index was last made with; None if this program cannot read it."""
    try:
        return Config.model_validate(index.manifest()["config"])
    except ValidationError:  # made with a plugin that is not here, say
        return None


def _finished(index: Index, stage: Stage, entry: dict[str, Any]) -> dict[str, Any]:
    """Returns what the manifest says of a stage, its rejected rows and its rates."""
    rejected, rows = index.num_rejected(stage.name), entry["counts"].get("rows")
    found = {**entry, **({"rejected": rejected} if rejected else {}), **_hosts(index, stage)}
    if "effort" in entry:
        return found | Effort(**entry["effort"]).rates()
    if rows and entry["seconds"]:
        found["rows_per_second"] = round(rows / entry["seconds"], 2)
    return found


def _unfinished(index: Index, stage: Stage) -> dict[str, Any]:
    """Returns the shards a stage has published, of how many, where, at what rate and price, and whether it fell silent."""
    silent_s = time.time() - _last_change(index, stage)
    silence = {"silent_seconds": round(silent_s)} if silent_s >= SILENT_AFTER_S else {}
    if stage.shards is None:
        return silence
    published = set(shards_in(index.path(stage.shards)))
    entry: dict[str, Any] = {"shards": len(published), **_hosts(index, stage), **silence}
    effort = read_effort(index, stage.name)
    if stage.follows_corpus:
        num_rows = index.rows_of_shards()
        entry["of"] = len(num_rows)
        entry |= effort.remaining(sum(rows for shard, rows in num_rows.items() if shard not in published))
    return entry | effort.rates()


def _hosts(index: Index, stage: Stage) -> dict[str, Any]:
    """Returns {"hosts": {host: its shards}}; {} of a stage without shards."""
    hosts = read_hosts(index, stage.name)
    return {"hosts": hosts} if hosts else {}


def _last_change(index: Index, stage: Stage) -> float:
    """Returns when a file of a stage was last written, in seconds since 1970; now, where the storage does not say."""
    times = []
    for place in (*stage.folders, *stage.work, f"work/{stage.name}.json", RUNS):
        fs, path = storage.filesystem(index.path(place))
        for name, info in fs.find(path, detail=True).items() if fs.exists(path) else ():
            if place == RUNS and not name.rpartition("/")[2].startswith((f"{stage.name}.", f"{stage.name}-")):
                continue  # another stage's
            if at := info.get("LastModified") or info.get("mtime"):
                times.append(at.timestamp() if isinstance(at, datetime) else float(at))
    return max(times, default=time.time())


def command(options: argparse.Namespace) -> None:
    """Prints the status for a person, or as one JSON document."""
    found = status(options.index)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(options.index)
    if "version" in found:
        version = found["version"]
        unfinished = "; an update was begun and is not finished" if version["unfinished_update"] else ""
        print(
            f"  version {version['number']}, {version['documents']:,} documents{unfinished}; the stages are those it began with"
        )
    if "driver" in found:
        driver = Lease.of(found["driver"])
        print(f"  being changed by {driver.who()}; last heard of {driver.last_heard()}")
    for stage, entry in found["stages"].items():
        if entry["state"] == "done":
            print(
                f"  {stage:<10}  done  {duration(entry['seconds']):>7}  {entry['fingerprint']}  {summary(entry['counts'])}"
            )
        elif "shards" in entry:
            of = f" of {entry['of']}" if "of" in entry else ""
            print(f"  {stage:<10}  unfinished: {entry['shards']}{of} shards{_pace(entry)}{_silence(entry)}")
            for host, shards in entry.get("hosts", {}).items():
                print(f"  {'':<10}    {host}: {len(shards)} shards")
        else:
            print(f"  {stage:<10}  {entry['state']}{_silence(entry)}")


def _pace(entry: dict[str, Any]) -> str:
    pace = f", {entry['rows_per_second']:,} documents/s" if "rows_per_second" in entry else ""
    if "remaining_hours" in entry:
        pace += f", {duration(entry['remaining_hours'] * 3600)} left"
        if entry["remaining_gpu_hours"]:
            pace += f" ({entry['remaining_gpu_hours']:,} GPU-hours)"
    return pace


def _silence(entry: dict[str, Any]) -> str:
    if "silent_seconds" not in entry:
        return ""
    return f"; STUCK? nothing was written for {duration(entry['silent_seconds'])}: see whether its job still runs"


if __name__ == "__main__":
    run_module("status", command)
