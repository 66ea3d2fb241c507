"""Reads corpus/, and embeddings/ where the docid scheme wants vectors; writes scheme/: what `fit` makes, or a model that is
trained under Ray Train. `zerogr scheme CONFIG`"""

from __future__ import annotations

from jobs import train
from jobs.command import run_module
from jobs.stages import run_stage, stage_command
from zerogr.config.tree import Config
from zerogr.docids.stage import fit_scheme, scheme_inputs
from zerogr.errors import UserError
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import SCHEME


def run(config: Config) -> StageRecord:
    """Runs the scheme stage. Raises UserError if the scheme has none."""
    if not SCHEME.is_wanted(config):
        raise UserError(
            f"docids.scheme {config.docids.scheme} makes nothing of the whole corpus; go on with `zerogr docids`"
        )
    if config.docids.recipe:
        return train.run(config, SCHEME.name)
    return run_stage(SCHEME, config, scheme_inputs(config, Index(config.index)), fit_scheme)


command = stage_command(SCHEME, run)

if __name__ == "__main__":
    run_module("scheme", command)
