"""Reads the source; writes corpus/ and the document frequencies. `zerogr corpus CONFIG`"""

from __future__ import annotations

from typing import Any

from jobs.command import run_module
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.corpus.stage import build_corpus, corpus_inputs
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import CORPUS
from zerogr.index.versions import is_update


def run(config: Config) -> StageRecord:
    """Runs the corpus stage."""
    return run_stage(CORPUS, config, corpus_inputs(config), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    if not is_update(index):
        return build_corpus(config, index)
    from zerogr.editing.existing import Existing

    return build_corpus(config, index, held=Existing(index).held)


command = stage_command(CORPUS, run)

if __name__ == "__main__":
    run_module("corpus", command)
