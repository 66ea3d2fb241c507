"""Work that holds something of every document at once: done by one Ray task, on whatever node has a CPU free.

The driver stays as small as its progress. No memory is reserved: a node that has too little ends the task. One whose process or
node is lost is begun again, `compute.max_retries` times; it publishes nothing once another driver has the index.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from jobs.cluster import cause_of, ray_session
from zerogr.config.tree import Config
from zerogr.errors import Fault
from zerogr.index.driver import Ticket, ticket_of, working_under
from zerogr.index.index import Index
from zerogr.index.versions import is_update

logger = logging.getLogger(__name__)

Build = Callable[[Config, Index], dict[str, Any]]
"""Publishes something and returns its counts; done twice, it publishes the same."""
FEW = 2**18
"""Documents, some 40 MB, that are not worth a process where there is no cluster."""
MORE = "it needs a node with more memory, or one on which less runs beside it"


def build_apart(stage: str, build: Build, config: Config, index: Index) -> dict[str, Any]:
    """Returns what `build` returns; a few documents, or those of an update, are left to this process.

    Raises:
        UserError: As `build`.
        Fault: As `build`, or it was lost too often, or needs more memory than a node has.
    """
    if is_update(index) or (not os.environ.get("RAY_ADDRESS") and index.require("corpus").counts["rows"] <= FEW):
        return build(config, index)
    with ray_session():
        import ray

        # Not Ray's retries: it tries for ever where a node runs out of memory.
        task = ray.remote(num_cpus=1, max_retries=0)(_build_under)
        num_left = config.compute.max_retries
        while True:
            try:
                counts: dict[str, Any] = ray.get(task.remote(ticket_of(index), build, config, index.uri))
                return counts
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                lost = f"the process that works on all documents at once ended with {cause_of(error, MORE)}"
                if not num_left:
                    raise Fault(
                        f"stage '{stage}' gave up: {lost}; what is published is kept, and the same command goes on from there"
                    ) from error
                logger.error("%s: %s; it is begun again", stage, lost)
                num_left -= 1


def _build_under(ticket: Ticket | None, build: Build, config: Config, uri: str) -> dict[str, Any]:
    """Runs in the task."""
    with working_under(ticket):
        return build(config, Index(uri))
