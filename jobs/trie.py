"""Reads docids/; writes trie/. `zerogr trie CONFIG`"""

from __future__ import annotations

from functools import partial

from jobs.apart import build_apart
from jobs.command import run_module
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import TRIE
from zerogr.trie.stage import build_trie, trie_inputs


def run(config: Config) -> StageRecord:
    """Runs the trie stage."""
    return run_stage(TRIE, config, trie_inputs(config, Index(config.index)), partial(build_apart, "trie", build_trie))


command = stage_command(TRIE, run)

if __name__ == "__main__":
    run_module("trie", command)
