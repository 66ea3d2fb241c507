"""MEMIT: values by Adam, then least squares at several layers, each making up for its share of what is lacking.

Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", and its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zerogr.editing.edits import LayeredSettings, edit, moment_of
from zerogr.editing.method import Change, New, Setting

if TYPE_CHECKING:
    import torch


class MemitSettings(LayeredSettings):
    """Of the method memit."""

    name: str = Field("memit", description="Least squares at several layers, old keys held (Meng et al. 2023).")
    preserve: float = Field(
        15_000, gt=0, description="Old keys that the statistics stand for: more keeps more of the old."
    )


class Memit:
    """See the module."""

    Settings = MemitSettings

    def __init__(self, settings: MemitSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the changes of the layers' MLPs."""
        from zerogr.editing.closed_form import least_squares

        own = self._settings

        def solve(layer: int, keys: torch.Tensor, lacking: torch.Tensor) -> torch.Tensor:
            return least_squares(keys, lacking, moment_of(setting, layer), own.preserve)

        return edit(setting, new, own, solve)
