"""Prints the documented default configuration. `zerogr config`"""

from __future__ import annotations

import argparse

from jobs.command import run_module
from zerogr.config.file import default_yaml


def command(_options: argparse.Namespace) -> None:
    """Prints the file."""
    print(default_yaml(), end="")


if __name__ == "__main__":
    run_module("config", command)
