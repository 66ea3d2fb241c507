"""Runs a command as a driver of its own, which waits for a file before the corpus stage publishes anything.
`python -m tests.chaos.waiting_driver FILE EXPIRY_S COMMAND ...`"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jobs.corpus
from jobs.cli import main
from zerogr.index import lease

if __name__ == "__main__":
    until, expiry_s, *command = sys.argv[1:]
    build_corpus = jobs.corpus.build_corpus

    def build_later(*arguments: Any, **options: Any) -> Any:
        while not Path(until).exists():
            time.sleep(0.02)
        return build_corpus(*arguments, **options)

    lease.EXPIRY_S = float(expiry_s)
    jobs.corpus.build_corpus = build_later
    sys.exit(main(command))
