"""Replay: new documents' queries and old ones side by side, in sharpness-aware steps, which forget less.

Source: Mehta et al. 2023, "DSI++: Updating Transformer Memory with New Documents": its generative memory is our old pseudo-
queries, its flat minima are sharpness-aware minimisation (Foret et al. 2021), whose radius it does not tell; .05 is theirs.
"""

from __future__ import annotations

from pydantic import Field

from zerogr.editing.method import Change, New, Setting
from zerogr.editing.training import TrainSettings, train_on


class ReplaySettings(TrainSettings):
    """Of the method replay."""

    name: str = Field("replay", description="Trains all weights on new and old queries, towards flat minima (DSI++).")
    old_per_new: float = Field(1.0, ge=0, le=100, description="Old pseudo-queries for each new one.")
    sharpness: float = Field(0.05, ge=0, description="Radius of the sharpness-aware steps; 0 = ordinary ones.")


class Replay:
    """See the module."""

    Settings = ReplaySettings

    def __init__(self, settings: ReplaySettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns how all weights have changed."""
        from zerogr.editing.statistics import sample_ids

        num_old = round(self._settings.old_per_new * len(new.known))
        old = new.old.taken(sample_ids(len(new.old), num_old, setting.config.seed)) if num_old else []
        examples = setting.tokenised([*new.known, *old])
        return train_on(setting, examples, self._settings, sharpness=self._settings.sharpness)
