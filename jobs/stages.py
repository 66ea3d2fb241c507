"""The frame around every stage: refuse what does not fit, skip what is done, run the rest, record it, say one line."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from jobs.command import Command
from jobs.driving import driving
from jobs.tables import print_stages, summary
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import Index, StageRecord
from zerogr.index.ledger import read_effort
from zerogr.index.stage import STAGES, Stage, kind_of
from zerogr.index.versions import is_update
from zerogr.progress import duration

logger = logging.getLogger(__name__)


def run_stage(
    stage: Stage, config: Config, inputs: dict[str, Any], build: Callable[[Config, Index], dict[str, Any]]
) -> StageRecord:
    """Runs one stage unless it is done; returns its record.

    Args:
        stage: Which one; it says where it lives.
        config: Of the run.
        inputs: What its fingerprint is made of.
        build: Does the work that is left and returns the stage's counts.

    Raises:
        UserError: Another driver is at work there, the stage was made from other inputs, or too many of its rows were rejected.
    """
    index = Index(kind_of(stage).place(config))
    with driving(index.uri):
        return _run(stage, index, config, inputs, build)


def _run(
    stage: Stage,
    index: Index,
    config: Config,
    inputs: dict[str, Any],
    build: Callable[[Config, Index], dict[str, Any]],
) -> StageRecord:
    """Does what `run_stage` says, with the lease in hand."""
    name = stage.name
    for donor in config.compute.reuse:
        if index.adopt(name, inputs, Index(donor), config=config.model_dump(mode="json")):
            logger.info("%s: taken over from %s", name, donor)
            break
    if not index.begin(name, inputs):
        record = index.require(name)
        logger.info("%s: done before (%s)", name, summary(record.counts))
        return record
    start = time.monotonic()
    try:
        counts = build(config, index)
    except UserError:
        index.release(name)  # with another column name, say, the same command must not be refused
        raise
    _check_rejected(name, config, index, counts)
    seconds = time.monotonic() - start
    effort = read_effort(index, name)
    index.finish(
        name,
        inputs,
        config=config.model_dump(mode="json"),
        counts=counts,
        seconds=seconds,
        effort=effort.rounded() if effort.seconds else None,
    )
    logger.info("%s: done in %s (%s)", name, duration(seconds), summary(counts))
    return index.require(name)


def _check_rejected(stage: str, config: Config, index: Index, counts: dict[str, Any]) -> None:
    rejected, rows = counts.get("rejected", 0), counts.get("rows", 0)
    limit = config.compute.max_rejected_fraction
    if rejected > limit * (rows + rejected):
        reasons = ", ".join(f"{reason} {count}" for reason, count in index.num_rejected(stage).items())
        cure = "mend them and give the update again" if is_update(index) else f"mend them and use --rebuild {stage}"
        raise UserError(
            f"stage '{stage}' rejected {rejected} of {rows + rejected} rows ({reasons}), "
            f"more than compute.max_rejected_fraction = {limit}; they are listed in '{index.path('rejected')}': "
            f"{cure}, or raise the limit"
        )


def rebuild(config: Config, names: Sequence[str]) -> None:
    """Forgets stages and all that was made from them."""
    for name in names:
        index = Index(kind_of(STAGES[name]).place(config))
        with driving(index.uri):
            index.rebuild(name)


def stage_command(stage: Stage, run: Callable[[Config], StageRecord]) -> Command:
    """Returns the command that runs one stage and prints what it did."""

    def command(options: argparse.Namespace) -> None:
        place = kind_of(stage).place(options.config)
        with driving(place, wait=options.wait):
            rebuild(options.config, options.rebuild)
            record = run(options.config)
        print_stages(place, {stage.name: record})

    return command
