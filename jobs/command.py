"""The frame of every command: logging, and who is at fault decides the exit status.

Results go to standard output, everything else to standard error. Exit status: 0 done, 2 the user's mistake (one sentence),
1 anything else.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable

from jobs.parser import build_parser
from zerogr.errors import Fault, UserError

Command = Callable[[argparse.Namespace], None]
"""Does what the parsed command line says, and prints the result. Where there is a `--set`, `options.config` is the validated
configuration."""


def execute(command: Command, options: argparse.Namespace) -> int:
    """Runs a command; returns its exit status."""
    _set_up_logging(options.verbose)
    try:
        if "set" in options:
            from zerogr.config.file import load_config

            options.config = load_config(options.config, options.set)  # a mistake is told before anything heavy loads
        command(options)
    except UserError as error:
        print(f"zerogr: {error}", file=sys.stderr)
        return 2
    except Fault as fault:
        print(f"zerogr: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zerogr: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        return 1
    return 0


def run_module(name: str, command: Command) -> None:
    """Makes `python -m jobs.NAME ...` do what `zerogr NAME ...` does."""
    sys.exit(execute(command, build_parser().parse_args([name, *sys.argv[1:]])))


def _set_up_logging(verbose: bool) -> None:
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 gets escapes for what it cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    if not verbose:
        for name in ("ray", "httpx", "bm25s", "aiobotocore", "transformers", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR if name == "ray.data" else logging.WARNING)
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
