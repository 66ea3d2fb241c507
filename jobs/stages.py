"""The frame around every stage: refuse what does not fit, skip what is done, run the rest, record it, say one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from zerogr.config import Config
from zerogr.errors import UserError
from zerogr.index import Index, StageRecord
from zerogr.ledger import read_effort
from zerogr.progress import duration

logger = logging.getLogger(__name__)


def run_stage(
    stage: str,
    config: Config,
    inputs: dict[str, Any],
    build: Callable[[Config, Index], dict[str, Any]],
    *,
    uri: str | None = None,
) -> StageRecord:
    """Runs one stage unless it is done; returns its record.

    Args:
        stage: Its name in the manifest.
        config: Of the run.
        inputs: What its fingerprint is made of.
        build: Does the work that is left and returns the stage's counts.
        uri: Where the stage lives; None = in the configuration's index.

    Raises:
        UserError: The stage was made from other inputs, or too many of its rows were rejected.
    """
    index = Index(uri or config.index)
    for donor in config.compute.reuse:
        if index.adopt(stage, inputs, Index(donor), config=config.model_dump(mode="json")):
            logger.info("%s: taken over from %s", stage, donor)
            break
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
    effort = read_effort(index, stage)
    index.finish(
        stage,
        inputs,
        config=config.model_dump(mode="json"),
        counts=counts,
        seconds=seconds,
        effort=effort.rounded() if effort.seconds else None,
    )
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
    """Returns the counts that are not zero, on one line: a number, the numbers of rounds, or numbers by name."""
    return ", ".join(
        f"{key.replace('_', ' ')} {shown}" for key, value in counts.items() if (shown := _shown(value)) is not None
    )


def _shown(value: Any) -> str | None:
    match value:
        case int() | float():
            return f"{value:,}" if value else None
        case list() if any(value) and all(isinstance(number, int) for number in value):
            return " → ".join(f"{number:,}" for number in value)
        case dict() if value and all(isinstance(number, int) for number in value.values()):
            return f"({summary(value)})"
        case str():
            return value
        case _:
            return None
