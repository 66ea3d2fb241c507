"""Reads the source; writes corpus/ and the document frequencies. `zerogr corpus CONFIG`"""

from __future__ import annotations

from jobs.stages import run_stage
from zerogr.config import Config
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.index import StageRecord


def run(config: Config) -> StageRecord:
    """Runs the corpus stage."""
    return run_stage("corpus", config, corpus_inputs(config), build_corpus)


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("corpus")
