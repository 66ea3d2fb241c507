"""Reads the source; writes corpus/ and the document frequencies. `zerogr corpus CONFIG`"""

from __future__ import annotations

from jobs.command import run_module
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.index.index import StageRecord
from zerogr.index.stage import CORPUS


def run(config: Config) -> StageRecord:
    """Runs the corpus stage."""
    return run_stage(CORPUS, config, corpus_inputs(config), build_corpus)


command = stage_command(CORPUS, run)

if __name__ == "__main__":
    run_module("corpus", command)
