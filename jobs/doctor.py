"""Looks for what would stop a run. `zerogr doctor [CONFIG]`"""

from __future__ import annotations

import argparse
import json

from jobs.command import run_module
from zerogr.doctor import examine
from zerogr.errors import UserError

_MARKS = {"ok": "ok", "warning": "!!", "fault": "XX"}


def command(options: argparse.Namespace) -> None:
    """Prints a line per finding. Raises UserError if something would stop a run."""
    found = []
    for finding in examine(options.config):
        found.append(finding)
        if not options.json:
            print(f"{_MARKS[finding.state]}  {finding.subject:<8} {finding.text}", flush=True)
    if options.json:
        print(json.dumps({"findings": [finding._asdict() for finding in found]}, indent=2, ensure_ascii=False))
    faults = [finding for finding in found if finding.state == "fault"]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(found)} findings would stop a run: {', '.join(f.subject for f in faults)}"
        )


if __name__ == "__main__":
    run_module("doctor", command)
