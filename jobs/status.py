"""What stands in an index: finished stages from the manifest, unfinished ones from their shards. `zerogr status INDEX`"""

from __future__ import annotations

import json
from typing import Any

from jobs.stages import summary
from zerogr.errors import UserError
from zerogr.index import DISTIL, FOLDERS, KINDS, Index, shards_in
from zerogr.ledger import Effort, read_effort
from zerogr.progress import duration


def status(uri: str) -> dict[str, Any]:
    """Returns {"index", "stages": {name: {"state", "fingerprint", "counts", ...}}}, of teacher data and generators as well.

    Raises:
        UserError: There is none of them at the URI.
    """
    index = Index(uri)
    finished, begun = index.manifest()["stages"], index.begun()
    if not finished and not begun:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    stages: dict[str, Any] = {}
    for stage in KINDS[index.kind() or "an index"][0]:
        if stage in finished:
            entry = finished[stage]
            rejected = index.num_rejected(stage)
            stages[stage] = {"state": "done", **entry, **({"rejected": rejected} if rejected else {})}
            rows = entry["counts"].get("rows")
            if "effort" in entry:
                stages[stage] |= Effort(**entry["effort"]).rates()
            elif rows and entry["seconds"]:
                stages[stage]["rows_per_second"] = round(rows / entry["seconds"], 2)
        elif stage in begun:
            stages[stage] = {"state": "unfinished", **_unfinished(index, stage)}
        else:
            stages[stage] = {"state": "not begun"}
    return {"index": uri, "stages": stages}


def _unfinished(index: Index, stage: str) -> dict[str, Any]:
    """Returns the shards a stage has published, of how many, and at what rate and price it goes on."""
    if stage not in ("corpus", "docids", "queries", DISTIL):
        return {}
    published = set(shards_in(index.path(FOLDERS[stage][-1] if stage == "docids" else FOLDERS[stage][0])))
    entry: dict[str, Any] = {"shards": len(published)}
    effort = read_effort(index, stage)
    if stage not in ("corpus", DISTIL):
        num_rows = index.rows_of_shards()
        entry["of"] = len(num_rows)
        entry |= effort.remaining(sum(rows for shard, rows in num_rows.items() if shard not in published))
    return entry | effort.rates()


def print_status(uri: str, *, as_json: bool) -> None:
    """Prints the status for a person, or as one JSON document."""
    found = status(uri)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(uri)
    for stage, entry in found["stages"].items():
        if entry["state"] == "done":
            print(
                f"  {stage:<10}  done  {duration(entry['seconds']):>7}  {entry['fingerprint']}  {summary(entry['counts'])}"
            )
        elif "shards" in entry:
            of = f" of {entry['of']}" if "of" in entry else ""
            print(f"  {stage:<10}  unfinished: {entry['shards']}{of} shards{_pace(entry)}")
        else:
            print(f"  {stage:<10}  {entry['state']}")


def _pace(entry: dict[str, Any]) -> str:
    pace = f", {entry['rows_per_second']:,} documents/s" if "rows_per_second" in entry else ""
    if "remaining_hours" in entry:
        pace += f", {duration(entry['remaining_hours'] * 3600)} left"
        if entry["remaining_gpu_hours"]:
            pace += f" ({entry['remaining_gpu_hours']:,} GPU-hours)"
    return pace
