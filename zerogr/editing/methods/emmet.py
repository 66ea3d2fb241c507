"""EMMET: one layer, and a change that gives every new key its value exactly.

Source: Gupta et al. 2024, "A Unified Framework for Model Editing", and its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zerogr.editing.edits import OneLayerSettings, edit, moment_of
from zerogr.editing.method import Change, New, Setting

if TYPE_CHECKING:
    import torch


class EmmetSettings(OneLayerSettings):
    """Of the method emmet."""

    name: str = Field("emmet", description="One layer, new keys matched exactly (Gupta et al. 2024).")
    ridge: float = Field(0.1, gt=0, description="What is added to the diagonal of the new keys' products.")


class Emmet:
    """See the module."""

    Settings = EmmetSettings

    def __init__(self, settings: EmmetSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the change of the layer's MLP."""
        from zerogr.editing.closed_form import equality

        own = self._settings

        def solve(layer: int, keys: torch.Tensor, lacking: torch.Tensor) -> torch.Tensor:
            return equality(keys, lacking, moment_of(setting, layer), own.ridge)

        return edit(setting, new, own, solve)
