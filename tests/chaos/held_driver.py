"""A driver in a process of its own, on the cluster that RAY_ADDRESS names. Its engines answer one batch, then wait for a file.
`python -m tests.chaos.held_driver STAGE CONFIG FILE DIARY`"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from jobs.cli import main
from tests.chaos.engines import STAGES, Held, make_worker

if __name__ == "__main__":
    stage, config, until, diary = sys.argv[1:]
    STAGES[stage][0].make_worker = partial(
        make_worker, stage, partial(Held, batches=1, until=Path(until), diary=Path(diary))
    )
    sys.exit(main([stage, config]))
