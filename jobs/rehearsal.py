"""Builds two small indexes by a configuration on this machine, for `zerogr plan CONFIG --rehearse`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zerogr.config.tree import Config
from zerogr.cost.rehearsal import FEW, MOST_PER_ENGINE
from zerogr.errors import UserError
from zerogr.index.index import Index

logger = logging.getLogger(__name__)

Recorded = tuple[Mapping[str, float], Mapping[str, float]]


def counts_for(num_documents: int, num_engines: int) -> tuple[int, int]:
    """Returns how many documents the two indexes have.

    Raises:
        UserError: The corpus is too small for two.
    """
    many = min(MOST_PER_ENGINE * num_engines, num_documents)
    if many < 2 * FEW:
        raise UserError(
            f"--rehearse builds indexes of {FEW} and of at least {2 * FEW} documents; this corpus has {num_documents}"
        )
    return FEW, many


def rehearse(config: Config, counts: tuple[int, int], num_engines: int) -> Recorded:
    """Builds an index of each size, by itself, as `zerogr index` does; returns the seconds of their stages.

    Raises:
        UserError: One of them could not be built; its last line says why.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="zerogr-rehearsal-") as folder:
        for number, count in enumerate(counts, 1):
            logger.info("rehearsal %d of %d: an index of %d documents", number, len(counts), count)
            place = Path(folder) / str(count)
            place.mkdir()
            found.append(_built(_small(config, count, num_engines, place), place))
    return found[0], found[1]


def _small(config: Config, count: int, num_engines: int, place: Path) -> dict[str, Any]:
    """Returns the configuration of an index of the first documents, with a shard for every engine."""
    tree = config.model_dump(mode="json", exclude_unset=True)  # a default of one owner means nothing to another
    tree["index"] = str(place / "index")
    tree["corpus"] = tree.get("corpus", {}) | {
        "max_documents": count,
        "keep_judged": None,
        "shard_size": -(-count // num_engines),
    }
    # Where Ray has an address, as here, one engine is the default.
    tree["compute"] = tree.get("compute", {}) | {"num_engine_workers": num_engines}
    tree["evaluation"] = {}
    tree["training"] = tree.get("training", {}) | {"judged": None}
    return tree


def _built(tree: dict[str, Any], place: Path) -> dict[str, float]:
    """Builds an index; returns the seconds of its stages."""
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "index", str(path)],
        env={**os.environ, "RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the rehearsal has failed: {last.removeprefix('zerogr: ')}")
    stages = Index(tree["index"]).manifest()["stages"]
    return {name: float(record["seconds"]) for name, record in stages.items()}
