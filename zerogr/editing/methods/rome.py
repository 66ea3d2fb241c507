"""ROME: one layer, one rank-one change for every token of every new docid, one after the other.

A document's queries share a key and a value for each token of its docid, their means, as ROME takes means over contexts.
Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", and its released code.
"""

from __future__ import annotations

from pydantic import Field

from zerogr.editing.edits import EditSettings, edit, moment_of, num_layers, remaining
from zerogr.editing.method import Change, New, Setting


class RomeSettings(EditSettings):
    """Of the method rome."""

    name: str = Field("rome", description="One layer, a rank-one change per token of a docid (Meng et al. 2022).")
    layer: float = Field(0.75, ge=0, le=1, description="The layer, as a share of the depth.")


class Rome:
    """See the module."""

    Settings = RomeSettings

    def __init__(self, settings: RomeSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the change of the layer's MLP."""
        from zerogr.editing.closed_form import one_by_one
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
            solve=lambda layer, keys, lacking: one_by_one(keys, lacking, moment_of(setting, layer)),
            grouped=True,
        )
