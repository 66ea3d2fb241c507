"""Pre-trains a model on what articles link to, under Ray Train: pretraining.source into pretraining.out.
`zerogr pretrain CONFIG`"""

from __future__ import annotations

from jobs import train
from jobs.command import run_module
from jobs.stages import stage_command
from zerogr.config.tree import Config
from zerogr.index.index import StageRecord
from zerogr.index.stage import PRETRAINED


def run(config: Config) -> StageRecord:
    """Pre-trains the model."""
    return train.run(config, PRETRAINED.name)


command = stage_command(PRETRAINED, run)

if __name__ == "__main__":
    run_module("pretrain", command)
