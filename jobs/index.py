"""Runs every stage in order on one Ray session, each resumable. `zerogr index CONFIG`"""

from __future__ import annotations

import contextlib

from zerogr.config import Config
from zerogr.index import Index, StageRecord


def run(config: Config) -> dict[str, StageRecord]:
    """Runs all stages; returns their records in order. Ray is started only when a stage that needs it has work left."""
    from jobs import corpus, docids, evaluate, queries, train, trie
    from jobs.cluster import ray_session

    steps = {
        "corpus": corpus.run,
        "docids": docids.run,
        "queries": queries.run,
        "trie": trie.run,
        "retriever": train.run,
    }
    if config.evaluation.dataset is not None:
        evaluate.check(config)  # what is wrong there must not be found out after days of training
        steps["evaluation"] = evaluate.run
    records: dict[str, StageRecord] = {}
    with contextlib.ExitStack() as session:
        needs_ray = any(Index(config.index).record(stage) is None for stage in ("docids", "queries", "retriever"))
        for stage, step in steps.items():
            if stage == "docids" and needs_ray:
                session.enter_context(ray_session())
            if stage == "evaluation":
                session.close()  # the decoder wants the machine for itself
            records[stage] = step(config)
    return records


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("index")
