"""EMMET: one layer, and a change that gives every new key its value exactly.

Source: Gupta et al. 2024, "A Unified Framework for Model Editing", and its released code.
"""

from __future__ import annotations

from pydantic import Field

from zerogr.editing.edits import EditSettings, edit, moment_of, num_layers, remaining
from zerogr.editing.method import Change, New, Setting


class EmmetSettings(EditSettings):
    """Of the method emmet."""

    name: str = Field("emmet", description="One layer, new keys matched exactly (Gupta et al. 2024).")
    layer: float = Field(0.75, ge=0, le=1, description="The layer, as a share of the depth.")
    ridge: float = Field(0.1, gt=0, description="What is added to the diagonal of the new keys' products.")


class Emmet:
    """See the module."""

    Settings = EmmetSettings

    def __init__(self, settings: EmmetSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the change of the layer's MLP."""
        from zerogr.editing.closed_form import equality
        from zerogr.editing.statistics import layers_between
        from zerogr.editing.values import Search

        own = self._settings
        return edit(
            setting,
            new,
            own,
            layers=layers_between([own.layer, own.layer], num_layers(setting)),
            search=Search("hard", own.num_steps, own.learning_rate, own.weight_decay, own.max_norm),
            share=remaining,
            solve=lambda layer, keys, lacking: equality(keys, lacking, moment_of(setting, layer), own.ridge),
        )
