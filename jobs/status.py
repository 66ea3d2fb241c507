"""What stands in an index: finished stages from the manifest, unfinished ones from their shards. `zerogr status INDEX`"""

from __future__ import annotations

import json
from typing import Any

from jobs.stages import summary
from zerogr.errors import UserError
from zerogr.index import FOLDERS, STAGES, Index, shards_in
from zerogr.progress import duration


def status(uri: str) -> dict[str, Any]:
    """Returns {"index", "stages": {name: {"state", "fingerprint", "counts", ...}}}.

    Raises:
        UserError: There is no index at the URI.
    """
    index = Index(uri)
    finished, begun = index.manifest()["stages"], index.begun()
    if not finished and not begun:
        raise UserError(f"there is no index at '{uri}'; `zerogr index CONFIG` makes one")
    num_shards = len(shards_in(index.path("corpus")))
    stages: dict[str, Any] = {}
    for stage in STAGES:
        if stage in finished:
            entry = finished[stage]
            rejected = index.num_rejected(stage)
            stages[stage] = {"state": "done", **entry, **({"rejected": rejected} if rejected else {})}
            rows = entry["counts"].get("rows")
            if rows and entry["seconds"]:
                stages[stage]["rows_per_second"] = round(rows / entry["seconds"], 2)
        elif stage in begun:
            folder = FOLDERS[stage][-1] if stage == "docids" else FOLDERS[stage][0]
            shards = (
                {} if stage in ("trie", "retriever", "evaluation") else {"shards": len(shards_in(index.path(folder)))}
            )
            if shards and stage != "corpus":
                shards["of"] = num_shards
            stages[stage] = {"state": "unfinished", **shards}
        else:
            stages[stage] = {"state": "not begun"}
    return {"index": uri, "stages": stages}


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
            print(f"  {stage:<10}  unfinished: {entry['shards']}{of} shards")
        else:
            print(f"  {stage:<10}  {entry['state']}")
