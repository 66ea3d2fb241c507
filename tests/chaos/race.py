"""Two drivers are started together on one index, again and again: one works, one is refused, and the index is right.

python -m tests.chaos.race --rounds 100         # on a disk, then on an S3 server
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from jobs.cli import main as zerogr
from tests import tiny
from tests.chaos.settings import write_config
from tests.processes import running
from tests.published import contents
from tests.servers import s3
from zerogr.index.index import Index
from zerogr.index.lease import holder_of

EXPIRY_S = "120"
DEADLINE_S = 900.0


def race(index: str, config: str, folder: Path) -> int:
    """Starts two drivers of the corpus stage of an index that is not there yet; returns which of them worked, 0 or 1.

    The one that has the lease waits for a file, so that both are there until the other has been refused.
    """
    folder.mkdir()
    with ExitStack() as stack:
        drivers = [
            stack.enter_context(
                running(
                    "tests.chaos.waiting_driver", str(folder / "go"), EXPIRY_S, "corpus", config,
                    log=folder / f"driver-{number}.log",
                )
            )
            for number in range(2)
        ]  # fmt: skip
        deadline = time.monotonic() + DEADLINE_S
        while all(driver.poll() is None for driver in drivers):
            assert time.monotonic() < deadline, "neither was refused"
            time.sleep(0.02)
        loser = next(number for number, driver in enumerate(drivers) if driver.poll() is not None)
        winner = drivers[1 - loser]
        assert drivers[loser].returncode == 2 and winner.poll() is None
        said = (folder / f"driver-{loser}.log").read_text().splitlines()[-1]
        assert (
            said.startswith(f"zerogr: '{index}' is being changed by ") and f", process {winner.pid}, since 20" in said
        )
        assert said.endswith("ago; wait for its end with --wait, or end that process")
        (folder / "go").touch()
        assert winner.wait(timeout=DEADLINE_S) == 0
    assert holder_of(Index(index)) is None
    return 1 - loser


def main() -> None:
    """Runs the rounds, and says who won."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="on each of the two (default: 100)")
    options = parser.parse_args()
    with s3(), tempfile.TemporaryDirectory(prefix="zerogr-race-") as name:
        folder = Path(name)
        model, collection = tiny.save_model(folder / "model"), tiny.write_collection(folder / "collection")
        calm = str(folder / "calm")
        assert zerogr(["corpus", write_config(calm, collection, model, folder)]) == 0
        expected = contents(calm, "corpus", "rejected")
        for place, root in (("disk", str(folder / "indexes")), ("object storage", f"s3://zerogr/{folder.name}")):
            start, won = time.monotonic(), [0, 0]
            for number in range(options.rounds):
                index, own = f"{root}/{number}", folder / f"{place} {number}"
                own.mkdir()
                with redirect_stdout(StringIO()) as said:
                    try:
                        won[race(index, write_config(index, collection, model, own), own / "drivers")] += 1
                    except BaseException:
                        sys.stderr.write(said.getvalue())
                        raise
                assert contents(index, "corpus", "rejected") == expected, f"round {number}"
            seconds = time.monotonic() - start
            print(f"{place}: {options.rounds} rounds in {seconds:.0f} s; the first driver worked in {won[0]}, the second "
                  f"in {won[1]}; every index is that of a driver alone", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
