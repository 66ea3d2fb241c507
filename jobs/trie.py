"""Reads docids/; writes trie/. `zerogr trie CONFIG`"""

from __future__ import annotations

from jobs.stages import run_stage
from zerogr.config import Config
from zerogr.index import Index, StageRecord
from zerogr.trie_stage import build_trie, trie_inputs


def run(config: Config) -> StageRecord:
    """Runs the trie stage."""
    return run_stage("trie", config, trie_inputs(config, Index(config.index)), build_trie)


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("trie")
