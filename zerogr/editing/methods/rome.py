"""ROME: one layer, one rank-one change for every token of every new docid, one after the other.

A document's queries share a key and a value for each token of its docid, their means, as ROME takes means over contexts.
Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", and its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zerogr.editing.edits import OneLayerSettings, edit, moment_of
from zerogr.editing.method import Change, New, Setting

if TYPE_CHECKING:
    import torch


class RomeSettings(OneLayerSettings):
    """Of the method rome."""

    name: str = Field("rome", description="One layer, a rank-one change per token of a docid (Meng et al. 2022).")


class Rome:
    """See the module."""

    Settings = RomeSettings

    def __init__(self, settings: RomeSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the change of the layer's MLP."""
        from zerogr.editing.closed_form import one_by_one

        def solve(layer: int, keys: torch.Tensor, lacking: torch.Tensor) -> torch.Tensor:
            return one_by_one(keys, lacking, moment_of(setting, layer))

        return edit(setting, new, self._settings, solve, grouped=True)
