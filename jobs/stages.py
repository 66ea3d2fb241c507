"""The frame around every stage: refuse what does not fit, skip what is done, run the rest, record it, say one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from zerogr.config import Config
from zerogr.errors import UserError
from zerogr.index import Index, StageRecord
from zerogr.progress import duration

logger = logging.getLogger(__name__)


def run_stage(
    stage: str, config: Config, inputs: dict[str, Any], build: Callable[[Config, Index], dict[str, Any]]
) -> StageRecord:
    """Runs one stage unless it is done; returns its record.

    Args:
        stage: Its name in the manifest.
        config: Of the run.
        inputs: What its fingerprint is made of.
        build: Does the work that is left and returns the stage's counts.

    Raises:
        UserError: The stage was made from other inputs, or too many of its rows were rejected.
    """
    index = Index(config.index)
    if not index.begin(stage, inputs):
        record = index.require(stage)
        logger.info("%s: done before (%s)", stage, summary(record.counts))
        return record
    start = time.monotonic()
    try:
        counts = build(config, index)
    except UserError:
        index.release(stage)  # with another column name, say, the same command must not be refused
        raise
    _check_rejected(stage, config, index, counts)
    seconds = time.monotonic() - start
    index.finish(stage, inputs, config=config.model_dump(mode="json"), counts=counts, seconds=seconds)
    logger.info("%s: done in %s (%s)", stage, duration(seconds), summary(counts))
    return index.require(stage)


def _check_rejected(stage: str, config: Config, index: Index, counts: dict[str, Any]) -> None:
    rejected, rows = counts.get("rejected", 0), counts.get("rows", 0)
    limit = config.compute.max_rejected_fraction
    if rejected > limit * (rows + rejected):
        reasons = ", ".join(f"{reason} {count}" for reason, count in index.num_rejected(stage).items())
        raise UserError(
            f"stage '{stage}' rejected {rejected} of {rows + rejected} rows ({reasons}), "
            f"more than compute.max_rejected_fraction = {limit}; they are listed in '{index.path('rejected')}': "
            f"mend them and use --rebuild {stage}, or raise the limit"
        )


def summary(counts: dict[str, Any]) -> str:
    """Returns the counts that are not zero, on one line."""
    shown = []
    for key, value in counts.items():
        if isinstance(value, dict | list) or value in (None, 0):
            continue
        shown.append(
            f"{key.replace('_', ' ')} {value:,}"
            if isinstance(value, int | float)
            else f"{key.replace('_', ' ')} {value}"
        )
    return ", ".join(shown)
